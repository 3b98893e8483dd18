"""Settings of the suite: one thread, no compilation, nnU-Net's folders in temporary places."""

from __future__ import annotations

import os

# before torch is imported: waiting threads must not spin on a small machine
os.environ.update(
    OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", nnUNet_compile="0", nnUNet_def_n_proc="1", MPLBACKEND="Agg"
)

from pathlib import Path

import pytest

from tests.pipeline import nnunet, prepared  # noqa: F401 - fixtures

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First what forks this process and trains in the fork: autograd refuses that once it has threads of its own, which it
    starts with the first backward pass where there is a GPU, or where a fake one has been (``planners/dry_run.py``).
    """
    items.sort(key=lambda item: item.path.name != "test_reliability.py")


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
