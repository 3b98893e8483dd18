# Needs python3 with venv, and make. VENV names an environment to create or to reuse.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.emim_nnunet_installed
# the package as it is installed, its siblings inside it: mypy does not follow the finder of an editable installation
LINKS = build/mypy

.PHONY: test demo lint clean

test: $(STAMP)
	$(BIN)/python -m pytest

demo: $(STAMP)
	$(BIN)/emim_demo -o demo --overwrite

lint: $(STAMP)
	$(BIN)/python -m pip install --quiet ruff mypy
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	rm -rf $(LINKS)
	mkdir -p $(LINKS)/emim_nnunet
	ln -s $(addprefix ../../../,$(wildcard emim_nnunet/*)) $(LINKS)/emim_nnunet
	ln -sfn $(addprefix ../../../,planners trainers dataset_conversion) $(LINKS)/emim_nnunet
	MYPYPATH=$(LINKS) $(BIN)/python -m mypy

# the whole installation, nnU-Net and torch with CUDA included, is about 6 GB; a venv without pip is one that failed half-way
$(STAMP): setup.py pyproject.toml
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools
	$(BIN)/python -m pip install --quiet -e ".[test]"
	touch $(STAMP)

clean:
	rm -rf build *.egg-info demo
