"""Imports go one way, from higher tiers to lower ones; and a few rules of the house that no linter knows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import structure

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("emim_nnunet", "trainers", "planners", "dataset_conversion")

# A room imports rooms of lower tiers only, so there is no circle. The first two parts of a module's name decide; a new module
# or folder of emim_nnunet must be entered here.
TIERS = {
    "emim_nnunet": 0,
    "emim_nnunet.anatomy": 0,
    "emim_nnunet.bootstrap": 0,
    "emim_nnunet.distributed": 0,
    "emim_nnunet.errors": 0,
    "emim_nnunet.masking": 0,
    "emim_nnunet.nnunet": 0,
    "emim_nnunet.phantom": 0,
    "emim_nnunet.randomness": 0,
    "emim_nnunet.devices": 1,
    "emim_nnunet.diagnostics": 1,
    "emim_nnunet.losses": 1,
    "emim_nnunet.networks": 1,
    "emim_nnunet.settings": 1,
    "emim_nnunet.slurm": 1,
    "emim_nnunet.storage": 1,
    "emim_nnunet.trainer_search": 1,
    "emim_nnunet.views": 1,
    "emim_nnunet.datasets": 2,
    "emim_nnunet.methods": 2,
    "emim_nnunet.checkpoints": 3,
    "emim_nnunet.dataloading": 3,
    "emim_nnunet.dataset_conversion": 3,
    "emim_nnunet.planners": 4,
    "emim_nnunet.diagnosis": 5,
    "emim_nnunet.report": 5,
    "emim_nnunet.training": 6,
    "emim_nnunet.classification": 7,
    "emim_nnunet.compare": 7,
    "emim_nnunet.demo": 7,
    "emim_nnunet.estimate": 7,
    "emim_nnunet.prediction": 7,
    "emim_nnunet.trainers": 7,
    "emim_nnunet.cli": 8,
    "emim_nnunet.nnunet_plugin": 8,
}
# rooms that can be used without waiting the seconds that nnunetv2 takes to import
DOOR = "emim_nnunet.nnunet"  # alone imports nnunetv2
WITHOUT_NNUNET = {part for part, tier in TIERS.items() if tier <= 1} - {DOOR, "emim_nnunet.views"}
ENDS = {  # imported only from there
    "emim_nnunet.trainers": ("emim_nnunet.trainers", "emim_nnunet.nnunet_plugin", "emim_nnunet.cli"),
    "emim_nnunet.cli": ("emim_nnunet.cli",),
    "emim_nnunet.compare": ("emim_nnunet.compare", "emim_nnunet.cli"),
    "emim_nnunet.demo": ("emim_nnunet.cli",),
}
PLUGIN = "emim_nnunet.nnunet_plugin.emim_trainers_plugin"
FILE_NAMES = ("splits_final.json", "patients.json", "origins.json")  # constants of the module `splits`
ITK_READS = ("ReadImage", "ImageSeriesReader")  # ImageFileReader reads headers alone, where there are no threads
MACHINE_PATH = re.compile(r"(?<![\w.~$}])/(?:home|root|opt|work|mnt|media|scratch|Users|tmp)/|\b[A-Z]:\\\\?Users")


def part(module: str) -> str:
    """``emim_nnunet.losses.barlow`` -> ``emim_nnunet.losses``."""
    return ".".join(module.split(".")[:2])


def modules() -> Iterator[tuple[str, str]]:
    """Name and source of every module, by the names they are imported with."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            relative = path.relative_to(ROOT).with_suffix("")
            parts = [part for part in relative.parts if part != "__init__"]
            yield ".".join(parts if folder == "emim_nnunet" else ["emim_nnunet", *parts]), path.read_text("utf-8")


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of everything imported, in functions and under TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, "." * node.level + (node.module or "")
            elif node.module == "emim_nnunet":
                yield from ((node.lineno, f"emim_nnunet.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module or ""


def import_violations(module: str, source: str) -> list[str]:
    """What is wrong with the imports of a module; empty when nothing is."""
    own_tier = TIERS.get(part(module))
    if own_tier is None:
        return [f"{module}: {part(module)} has no tier in {Path(__file__).name}"]
    found = []
    for line, name in imports(ast.parse(source)):
        target = part(name)
        # `from emim_nnunet import __version__` is the package itself
        tier = TIERS.get(target, 0) if name.split(".")[0] == "emim_nnunet" else None
        if name.startswith("."):
            found.append(f"{module}:{line}: relative import")
        elif name.split(".")[0] in FOLDERS[1:]:
            found.append(f"{module}:{line}: {name} is imported as emim_nnunet.{name}")
        elif target in ENDS and part(module) not in ENDS[target]:
            found.append(f"{module}:{line}: nothing else imports {target}")
        elif tier is not None and tier >= own_tier and target not in (part(module), "emim_nnunet"):
            found.append(f"{module}:{line}: tier {own_tier} imports {name} of tier {tier}")
        elif name.split(".")[0] == "nnunetv2" and part(module) != DOOR:
            found.append(f"{module}:{line}: {name} is imported through {DOOR}")
        elif target == DOOR and part(module) in WITHOUT_NNUNET:
            found.append(f"{module}:{line}: {part(module)} does without nnU-Net")
    return found


def other_violations(module: str, source: str) -> list[str]:
    """Star imports, print outside cli and demo, paths of somebody's machine, durations that a clock can make negative, a
    second way to read JSON or to name a file, images read by threads at the same time.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*" and module != PLUGIN:
            found.append(f"{module}:{node.lineno}: import *")
        called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        if isinstance(node, ast.ImportFrom) and node.module == "time" and "time" in [n.name for n in node.names]:
            found.append(f"{module}:{node.lineno}: the clock on the wall may be put back: use monotonic")
        if isinstance(node, ast.ImportFrom) and {"load_json", "save_json"} & {alias.name for alias in node.names}:
            found.append(f"{module}:{node.lineno}: JSON is read with read_json, written with write_json")
        if isinstance(node, ast.Constant) and node.value in FILE_NAMES and not module.endswith(".splits"):
            found.append(f"{module}:{node.lineno}: '{node.value}' has a name in datasets.splits")
        if isinstance(node, ast.Attribute) and node.attr in ITK_READS and not module.endswith("datasets.images"):
            found.append(f"{module}:{node.lineno}: two threads must not read at a time: datasets.images has functions")
        if called and part(module) not in ("emim_nnunet.cli", "emim_nnunet.demo"):
            found.append(f"{module}:{node.lineno}: print")
    for number, line in enumerate(source.splitlines(), 1):
        if MACHINE_PATH.search(line):
            found.append(f"{module}:{number}: path of a machine: {line.strip()}")
    return found


def test_imports_go_one_way() -> None:
    found = [violation for module, source in modules() for violation in import_violations(module, source)]
    assert not found, "\n".join(found)


def test_no_star_imports_prints_or_machine_paths() -> None:
    found = [violation for module, source in modules() for violation in other_violations(module, source)]
    assert not found, "\n".join(found)


def test_no_file_and_no_function_is_too_long() -> None:
    found = structure.measure(*structure.PACKAGE, "benchmarks")
    long = {name: n for name, n in found.files.items() if n > structure.MAX_FILE_LINES}
    long |= {name: n for name, n in found.functions.items() if n > structure.MAX_FUNCTION_LINES}
    assert not long


def test_everything_public_is_documented_and_everything_annotated() -> None:
    found = structure.measure(*structure.PACKAGE)
    assert found.public - found.documented == set()
    assert found.signatures - found.annotated == set()


def test_contributing_shows_the_rooms_of_each_tier() -> None:
    shown = {
        room: int(tier)
        for tier, rooms in re.findall(
            r"^\| (\d) \| `([^`]+)` \|", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.MULTILINE
        )
        for room in rooms.split()
    }
    assert shown == {part.removeprefix("emim_nnunet."): tier for part, tier in TIERS.items() if part != "emim_nnunet"}


def test_every_module_is_looked_at() -> None:
    names = [name for name, _ in modules()]
    assert len(names) == len(set(names))
    assert {PLUGIN, "emim_nnunet", "emim_nnunet.trainers.nnUNetTrainerEMIM", "emim_nnunet.methods.emim"} <= set(names)
    assert set(TIERS) <= {part(name) for name in names}, "a tier is given to something that does not exist"


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        ("emim_nnunet.losses.x", "from emim_nnunet.methods.emim import EMIM", "tier 1 imports"),
        ("emim_nnunet.losses.x", "from emim_nnunet import methods", "tier 1 imports"),
        ("emim_nnunet.losses.x", "from emim_nnunet.networks import ZCA", "imports emim_nnunet.networks of tier 1"),
        ("emim_nnunet.masking.x", "def f():\n    import emim_nnunet.training.stage", "x:2: tier 0 imports"),
        ("emim_nnunet.training.x", "if 0:\n    from nnunetv2.paths import nnUNet_raw", "is imported through"),
        ("emim_nnunet.networks.x", "from emim_nnunet.nnunet.paths import nnUNet_raw", "does without nnU-Net"),
        ("emim_nnunet.training.x", "from emim_nnunet.trainers import nnUNetTrainerEMIM", "nothing else imports"),
        ("emim_nnunet.planners.x", "import emim_nnunet.trainers", "nothing else imports"),
        ("emim_nnunet.nnunet_plugin.x", "from emim_nnunet.cli._run import run", "nothing else imports"),
        ("emim_nnunet.methods.x", "from .emim import EMIM", "relative import"),
        ("emim_nnunet.cli.x", "from trainers import nnUNetTrainerEMIM", "imported as emim_nnunet.trainers"),
        ("emim_nnunet.unheard_of", "", "has no tier"),
    ],
)
def test_the_import_rule_fires(module: str, source: str, message: str) -> None:
    assert any(message in violation for violation in import_violations(module, source))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("emim_nnunet.methods.x", "from emim_nnunet.losses import masked_mse\nimport torch"),
        ("emim_nnunet.losses.x", "from emim_nnunet.losses.barlow import cross_correlation"),
        ("emim_nnunet.checkpoints.x", "from emim_nnunet.nnunet.paths import nnUNet_raw"),
        ("emim_nnunet.nnunet.x", "from nnunetv2.paths import nnUNet_raw"),
        ("emim_nnunet.training.x", "from emim_nnunet import __version__"),
        ("emim_nnunet.cli.x", "def f():\n    from emim_nnunet.trainers import __all__"),
        ("emim_nnunet.trainers.x", "from emim_nnunet.trainers.y import Y"),
    ],
)
def test_the_import_rule_allows(module: str, source: str) -> None:
    assert import_violations(module, source) == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("from numpy import *", "import *"),
        ("def f():\n    print(1)", "x:2: print"),
        ('DATA = "/home/me/data"', "path of a machine"),
        ("# see /mnt/nas/brats", "path of a machine"),
        ("from time import sleep, time", "use monotonic"),
        ("from batchgenerators.utilities.file_and_folder_operations import load_json", "is read with read_json"),
        ('FILE = folder / "splits_final.json"', "has a name in"),
        ("image = sitk.ReadImage(path)", "two threads must not"),
    ],
)
def test_the_other_rules_fire(source: str, message: str) -> None:
    assert any(message in violation for violation in other_violations("emim_nnunet.losses.x", source))


def test_the_lower_tiers_do_not_load_nnunetv2_at_run_time() -> None:
    """Third-party packages could import it behind the back of the rule above."""
    lower = [name for name, _ in modules() if part(name) in WITHOUT_NNUNET]
    code = (
        "import importlib, sys\n"
        f"for name in {lower!r}: importlib.import_module(name)\n"
        "assert not [m for m in sys.modules if m.split('.')[0] == 'nnunetv2']"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("arguments", ["--list", "nowhere folder -d 3", "bids folder -d 3 --channel T1"])
def test_a_list_and_a_mistake_of_emim_convert_need_no_package_that_takes_seconds_to_import(arguments: str) -> None:
    code = (
        "import sys\n"
        "from emim_nnunet.cli import convert\n"
        "from emim_nnunet.cli._run import run\n"
        "try: run(convert.main, sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'nnunetv2', 'SimpleITK', 'scipy', 'nibabel'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, *arguments.split()], check=True, cwd=ROOT, capture_output=True)


def test_help_and_a_typing_mistake_of_any_command_need_no_package_that_takes_seconds_to_import() -> None:
    commands = sorted(path.stem for path in (ROOT / "emim_nnunet" / "cli").glob("[a-z]*.py"))
    code = (
        "import importlib, sys\n"
        f"for name in {commands!r}:\n"
        "    command = importlib.import_module(f'emim_nnunet.cli.{name}')\n"
        "    for option, code in (('--help', 0), ('--x', 2)):\n"
        "        try: command.main([option])\n"
        "        except SystemExit as end: assert end.code == code, name\n"
        "        else: raise AssertionError(name)\n"
        "    heavy = {'torch', 'nnunetv2', 'SimpleITK', 'scipy', 'nibabel', 'numpy', 'matplotlib', 'blosc2'}\n"
        "    assert not heavy & set(sys.modules), (name, heavy & set(sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
