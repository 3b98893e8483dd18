"""nnU-Net finds the trainers in each of the ways that the documentation names, and its commands end well.

Every look-up runs in a fresh process: nnU-Net caches modules, and a registration must never reach the nnunetv2 in use here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from emim_nnunet import trainer_search

ROOT = Path(__file__).resolve().parent.parent
TRAINER_FOLDER = Path("nnunetv2", "training", "nnUNetTrainer")

LOOK_UP_ALL = """
import pickle, sys
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find

stock = find("nnUNetTrainer")
assert not [m for m in sys.modules if m.startswith("emim_nnunet")], "the stock trainer needs nothing of ours"

import emim_nnunet.methods

emim_nnunet.methods.__path__.append("methods_of_a_user")
import emim_nnunet.trainers as ours

assert "nnUNetTrainerOwnPretrain" in ours.__all__
assert ours.nnUNetTrainerOwnPretrain.method_class.__name__ == "Own"
for name in ours.__all__:
    found = find(name)
    assert found is getattr(ours, name) is find(name), name
    assert issubclass(found, stock)
    assert pickle.loads(pickle.dumps(found)) is found
"""


def run_python(code: str, cwd: Path, *first_on_path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process that has the folders first on its path, then this checkout."""
    path = os.pathsep.join(map(str, [*first_on_path, ROOT]))
    base = {key: value for key, value in os.environ.items() if key != trainer_search.SEARCH_VARIABLE}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=base | {"PYTHONPATH": path} | env, capture_output=True, text=True
    )


def run_register(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``emim_register`` with the nnunetv2 of a folder."""
    code = (
        "import sys; sys.argv[0] = 'emim_register'; from emim_nnunet.cli.register import entry\n"
        f"sys.argv[1:] = {list(arguments)!r}\n"
        "try: entry()\n"
        "finally: assert 'torch' not in sys.modules, 'slow import'"
    )
    return run_python(code, folder, folder)


@pytest.fixture
def empty_nnunet(tmp_path: Path) -> Path:
    """A folder with an nnunetv2 package that has the folder of the trainers, but nothing in it."""
    (tmp_path / TRAINER_FOLDER).mkdir(parents=True)
    (tmp_path / "nnunetv2" / "__init__.py").touch()
    return tmp_path


@pytest.fixture
def copied_nnunet(tmp_path: Path) -> Path:
    """A folder with a copy of the real nnunetv2 and a method without trainer; compiled files stay valid: times are kept."""
    installed = find_spec("nnunetv2").submodule_search_locations[0]
    shutil.copytree(installed, tmp_path / "nnunetv2")
    (tmp_path / "methods_of_a_user").mkdir()
    own = "from emim_nnunet.methods.mim import MIM\n\nclass Own(MIM):\n    pass\n"
    (tmp_path / "methods_of_a_user" / "own.py").write_text(own)
    (tmp_path / TRAINER_FOLDER / trainer_search.REGISTERED_MODULE).unlink(missing_ok=True)
    return tmp_path


def test_search_path_comes_first_and_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = str(trainer_search.trainers_path())
    monkeypatch.setenv(trainer_search.SEARCH_VARIABLE, os.pathsep.join(["first", ours, "second", "first", ""]))
    trainer_search.enable_search()
    trainer_search.enable_search()
    assert os.environ[trainer_search.SEARCH_VARIABLE].split(os.pathsep) == [ours, "first", "second"]


def test_search_path_is_set_when_there_was_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(trainer_search.SEARCH_VARIABLE, "")
    trainer_search.enable_search()
    assert os.environ[trainer_search.SEARCH_VARIABLE] == str(trainer_search.trainers_path())


def test_plugin_folder_holds_one_module() -> None:
    assert [p.name for p in trainer_search.trainers_path().glob("*.py")] == ["emim_trainers_plugin.py"]


def test_variable_lets_nnunet_find_every_trainer(copied_nnunet: Path) -> None:
    folder = str(trainer_search.trainers_path())
    process = run_python(LOOK_UP_ALL, copied_nnunet, copied_nnunet, nnUNet_extTrainer=folder)
    assert process.returncode == 0, process.stderr
    assert f"Using trainer 'nnUNetTrainerEMIM' from: {folder}" in process.stdout


def test_our_own_commands_find_our_trainers_without_timm_and_all_others_as_nnunet_does(copied_nnunet: Path) -> None:
    code = """
import sys
from nnunetv2.run import run_training
from emim_nnunet.nnunet.commands import search_trainers_with
from emim_nnunet.trainer_search import own_trainers_first
from emim_nnunet.trainers import nnUNetTrainerEMIM

search_trainers_with(own_trainers_first)
assert run_training.recursive_find_trainer_class_by_name("nnUNetTrainerEMIM") is nnUNetTrainerEMIM
assert "timm" not in sys.modules
assert run_training.recursive_find_trainer_class_by_name("nnUNetTrainer_5epochs").__name__ == "nnUNetTrainer_5epochs"
"""
    process = run_python(code, copied_nnunet, copied_nnunet)
    assert process.returncode == 0, process.stderr


def test_register_lets_nnunet_find_every_trainer_and_does_nothing_without_us(copied_nnunet: Path) -> None:
    assert run_register(copied_nnunet).returncode == 0
    # in nnU-Net's root folder, so that timm and torchvision are not needed
    code = LOOK_UP_ALL + "assert 'timm' not in sys.modules\nassert sys.excepthook.reports_user_errors"
    process = run_python(code, copied_nnunet, copied_nnunet)
    assert process.returncode == 0, process.stderr

    uninstalled_then_broken = """
import sys, warnings
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find

warnings.simplefilter("error")
sys.modules["emim_nnunet"] = None  # as if it was not installed
name = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer_emim_nnunet"
__import__(name)
assert not hasattr(sys.modules.pop(name), "nnUNetTrainerEMIM")

del sys.modules["emim_nnunet"]
sys.modules["emim_nnunet.trainers"] = None  # as if something in it cannot be imported
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert find("nnUNetTrainerNoMirroring").__name__ == "nnUNetTrainerNoMirroring"
assert any("trainers of emim_nnunet cannot be imported" in str(w.message) for w in caught), caught
"""
    process = run_python(uninstalled_then_broken, copied_nnunet, copied_nnunet)
    assert process.returncode == 0, process.stderr


def test_register_and_remove_leave_nothing_else(empty_nnunet: Path) -> None:
    folder = empty_nnunet / TRAINER_FOLDER
    expected = folder / trainer_search.REGISTERED_MODULE
    for _ in range(2):
        process = run_register(empty_nnunet)
        assert (process.returncode, process.stderr) == (0, "")
        assert process.stdout == f"registered: {expected}\n"
        assert [p.name for p in folder.iterdir()] == [expected.name]
    assert expected.read_text() == trainer_search.REGISTERED_SOURCE
    assert run_register(empty_nnunet, "--remove").stdout == "removed\n"
    assert run_register(empty_nnunet, "--remove").stdout == "nothing was registered\n"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("obstacle", ["missing", "a file", "read-only"])
def test_register_says_what_to_do_when_it_cannot_write(empty_nnunet: Path, obstacle: str) -> None:
    folder = empty_nnunet / TRAINER_FOLDER
    if obstacle == "read-only":
        if os.geteuid() == 0:
            pytest.skip("root writes anywhere")
        folder.chmod(0o555)
    else:
        folder.rmdir()
        if obstacle == "a file":
            folder.touch()
    process = run_register(empty_nnunet)
    assert process.returncode == 2
    assert process.stderr.startswith(f"emim_register: error: cannot write {folder}")
    assert process.stderr.count("\n") == 1
    assert "emim_train" in process.stderr
    assert trainer_search.SEARCH_VARIABLE in process.stderr


HOOK = """
import sys
from emim_nnunet.errors import UserError
from emim_nnunet.trainer_search import report_user_errors

sys.argv[0] = "folder/nnUNetv2_train"
before = sys.excepthook
def earlier(kind, error, traceback):
    print("earlier hook", file=sys.stderr)
    before(kind, error, traceback)
sys.excepthook = earlier
report_user_errors()
hook = sys.excepthook
report_user_errors()
assert sys.excepthook is hook
"""


def test_user_errors_end_in_one_line_and_code_2(tmp_path: Path) -> None:
    process = run_python(HOOK + "raise UserError('file x: mend it')", tmp_path)
    assert (process.returncode, process.stderr) == (2, "nnUNetv2_train: error: file x: mend it\n")


def test_other_errors_keep_their_traceback_and_the_earlier_hook(tmp_path: Path) -> None:
    process = run_python(HOOK + "raise ValueError('a bug')", tmp_path)
    assert process.returncode == 1
    assert process.stderr.startswith("earlier hook\nTraceback")
    assert process.stderr.endswith("ValueError: a bug\n")
