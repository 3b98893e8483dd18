# Needs python3 with venv, and make. VENV names an environment to create or to reuse.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.emim_nnunet_installed
# processes of the tests; auto = cores, as far as the memory goes
WORKERS ?= auto

# of the image: cpu, cuda, or a CUDA of https://download.pytorch.org/whl such as cu126
VARIANT ?= cpu
DOCKER ?= docker

.PHONY: test demo lint docs image clean

test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

demo: $(STAMP)
	$(BIN)/emim_demo -o demo --overwrite

lint: $(STAMP)
	$(BIN)/python -m pip install --quiet ruff mypy
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

# into site/; `make docs MKDOCS=serve` shows the pages while they are written
MKDOCS ?= build
docs: $(STAMP)
	$(BIN)/python -m pip install --quiet -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs $(MKDOCS)

image:
	$(DOCKER) build --build-arg VARIANT=$(VARIANT) --tag emim_nnunet:$(VARIANT) .

# the whole installation, nnU-Net and torch with CUDA included, is about 6 GB; a venv without pip is one that failed half-way
$(STAMP): setup.py pyproject.toml
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools
	$(BIN)/python -m pip install --quiet -e ".[test]"
	touch $(STAMP)

clean:
	rm -rf build dist site *.egg-info demo
