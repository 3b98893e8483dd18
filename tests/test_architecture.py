"""Imports go one way, and the library keeps its manners."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TIERS = {
    "errors": 0,
    "config": 0,
    "randomness": 0,
    "distributed": 0,
    "masking": 0,
    "losses": 0,
    "diagnostics": 0,
    "networks": 1,
    "methods": 2,
    "dataloading": 2,
    "checkpoints": 2,
    "imageio": 2,
    "phantom": 2,
    "training": 3,
    "planners": 3,
    "trainers": 3,
    "dataset_conversion": 3,
    "registration": 0,
    "demo": 4,
    "cli": 4,
    "nnunet_plugin": 4,
}
HEAVY = "nnunetv2"


def modules() -> Iterator[tuple[str, Path]]:
    """(room, file) of all modules of the library."""
    for folder in ("emim_nnunet", "trainers", "planners", "dataset_conversion"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            inside = file.relative_to(ROOT).with_suffix("").parts
            room = inside[1] if folder == "emim_nnunet" else folder
            if room != "__init__":
                yield room, file


def imported(tree: ast.AST) -> set[str]:
    """Dotted names of everything imported anywhere in a module, also inside functions."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def violations(room: str, tree: ast.AST) -> list[str]:
    """Imports that a module of that room may not have."""
    found = []
    for name in imported(tree):
        parts = name.split(".")
        if parts[0] == HEAVY and TIERS[room] < 2:
            found.append(f"tier {TIERS[room]} imports {name}")
        if parts[0] != "emim_nnunet" or len(parts) < 2 or parts[1] not in TIERS:
            continue
        if TIERS[parts[1]] > TIERS[room]:
            found.append(f"{room} imports {name}, which is above it")
        if parts[1] in ("trainers", "cli") and parts[1] != room and room not in ("cli", "nnunet_plugin"):
            found.append(f"{room} imports {name}")
    return found


def test_every_room_has_a_tier() -> None:
    assert {room for room, _ in modules()} == set(TIERS)


def test_imports_go_one_way() -> None:
    assert {str(f): v for room, f in modules() if (v := violations(room, ast.parse(f.read_text())))} == {}


@pytest.mark.parametrize(
    ("room", "code"),
    [
        ("masking", "from emim_nnunet.networks import Projector"),
        ("losses", "import nnunetv2.paths"),
        ("networks", "def f():\n    from nnunetv2 import paths"),
        ("training", "import emim_nnunet.trainers"),
        ("methods", "from emim_nnunet.training.log import SSLLog"),
        ("planners", "from emim_nnunet.cli import convert"),
    ],
)
def test_the_rule_fires(room: str, code: str) -> None:
    assert violations(room, ast.parse(code))


def test_no_print_and_no_star_import_in_the_library() -> None:
    for room, file in modules():
        tree = ast.parse(file.read_text())
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
        assert room in ("cli", "demo") or not [c for c in calls if c.func.id == "print"], file
        stars = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.names[0].name == "*"]
        assert room == "nnunet_plugin" or not stars, file


def test_public_functions_have_docstrings_and_annotations() -> None:
    for _, file in modules():
        tree = ast.parse(file.read_text())
        assert ast.get_docstring(tree), file
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                nested = any(node in ast.walk(other) for other in ast.walk(tree) if is_other_function(other, node))
                assert nested or ast.get_docstring(node), f"{file}: {node.name}"
                assert node.returns is not None, f"{file}: {node.name}"


def is_other_function(other: ast.AST, node: ast.FunctionDef) -> bool:
    return isinstance(other, ast.FunctionDef) and other is not node
