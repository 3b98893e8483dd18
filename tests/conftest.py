"""Settings of the suite: one thread, no compilation, nnU-Net's folders in temporary places."""

from __future__ import annotations

import os

# before torch is imported: waiting threads must not spin on a small machine
os.environ.update(
    OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", nnUNet_compile="0", nnUNet_def_n_proc="1", MPLBACKEND="Agg"
)

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from emim_nnunet.planners.workers import num_cores
from tests.pipeline import nnunet, prepared  # noqa: F401 - fixtures

LONGEST = tuple(
    f"test_{name}.py" for name in ("compare", "planner", "trainers", "faults", "several_processes", "methods")
)
WORKER_BYTES = 3 << 30  # of one process of pytest-xdist with the commands that it starts
SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First what forks this process and trains in the fork: autograd refuses that once it has threads of its own, which it
    starts with the first backward pass where there is a GPU, or where a fake one has been (``planners/dry_run.py``).
    Of several processes of pytest-xdist the first gets that file first (``--dist loadfile --no-loadscope-reorder``). Then the
    files that take longest, so that no process is left alone with one of them at the end.
    """
    first = ("test_reliability.py", *LONGEST)
    items.sort(key=lambda item: first.index(item.path.name) if item.path.name in first else len(first))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Processes of ``-n auto``: one per core, as far as the memory goes."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(num_cores(), memory // WORKER_BYTES))


@pytest.fixture(autouse=True, scope="session")
def count_memory_once() -> Iterator[None]:
    """The planner counts the memory of a step once per plan: that takes seconds, and many tests plan the same toys."""
    memory = import_module("emim_nnunet.planners.memory")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("segmentation_gigabytes", "ssl_gigabytes"):
            patch.setattr(memory, name, _once_per_arguments(getattr(memory, name)))
        yield


@pytest.fixture(autouse=True, scope="session")
def no_reports() -> Iterator[None]:
    """Runs that end in this process leave no ``report.html``, which takes seconds; ``test_report.py`` asks for it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in (
            "training.ssl_trainer",
            "training.finetune_trainer",
            "compare.comparison",
            "classification.evaluate",
        ):
            patch.setattr(f"emim_nnunet.{name}.leave_report", lambda *of_the_run: None)
        yield


def _once_per_arguments(count: Callable[..., float]) -> Callable[..., float]:
    known: dict[str, float] = {}

    def counted(*arguments: Any) -> float:
        key = repr([vars(a) if isinstance(a, LabelManager) else a for a in arguments])
        if key not in known:
            known[key] = count(*arguments)
        return known[key]

    return counted


@pytest.fixture
def nnunet_dirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with nnU-Net's three folders, named in the environment."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path


def shared_data(name: str) -> Path:
    """A folder of real data beside the repository; skips the test where it is missing."""
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"real data '{name}' is not beside this checkout (expected ../shared/data/{name})")
    return folder
