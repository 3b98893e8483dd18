"""What this package uses of nnU-Net, and of the parts of torch that are not promised to stay: ``nnunet_contract.txt`` lists it.

The table is compared with what is installed, so that a new release fails here, in plain words, and not in the middle of a
training. And the package is searched for uses that the table does not list: every symbol that passes the door
``emim_nnunet/nnunet``, every method that a class of ours overrides, every attribute of an object of nnU-Net's that is read.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from tests.test_architecture import DOOR, modules, part

TABLE = Path(__file__).with_name("nnunet_contract.txt")
ROW = re.compile(r"([\w.]+) (?:= (.+)|~ (.+) @ (\S+))")
MODULES = list(modules())
WORDS = {module: set(re.findall(r"\w+", source)) for module, source in MODULES}
NNUNET = "nnunetv2"
LEADS_TO = {  # objects that come with others, whose class a module need not import to read them
    "PlansManager": ("ConfigurationManager", "LabelManager"),
    "nnUNetTrainer": ("ConfigurationManager", "LabelManager", "PlansManager"),
}
PATHS = ("batchgenerators", "torch")  # names of the table that begin with these are paths
NOT_PRIVATE = ("_asdict", "_replace")  # of named tuples


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        name: Of a symbol of the door, ``Symbol.member``, or a path.
        looks: How it must look, as :func:`described`; None where the source must hold a text.
        holds: The text.
        user: The file of ours that relies on the text.
    """

    name: str
    looks: str | None
    holds: str | None = None
    user: str | None = None


def read_table() -> list[Row]:
    """All rows."""
    lines = [line for line in TABLE.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    rows = [ROW.fullmatch(line) for line in lines]
    assert all(rows), [line for line, row in zip(lines, rows, strict=True) if row is None]
    return [Row(*row.groups()) for row in rows if row]


def door() -> dict[str, Any]:
    """What the door imports from nnU-Net, by the name it has there."""
    found = {}
    for module, source in MODULES:
        for node in ast.walk(ast.parse(source)) if part(module) == DOOR else ():
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == NNUNET:
                found |= {alias.name: getattr(import_module(node.module), alias.name) for alias in node.names}
    return found


def resolve(name: str, symbols: dict[str, Any]) -> tuple[Any, str]:
    """What a name of the table means.

    Args:
        name: ``Symbol`` or ``Symbol.member`` of the door, or a path.
        symbols: Of the door.

    Returns:
        The owner and the name of the member; a symbol of the door is a member of all of them.
    """
    first, *rest = name.split(".")
    owner: Any = import_module(first) if first in PATHS else symbols
    for step in rest[:-1] if first in PATHS else [first] * bool(rest):
        if isinstance(owner, ModuleType) and not hasattr(owner, step):
            import_module(f"{owner.__name__}.{step}")
        owner = owner[step] if isinstance(owner, dict) else getattr(owner, step)
    return owner, rest[-1] if rest else first


def described(name: str, symbols: dict[str, Any]) -> str:
    """How a name of the table looks in what is installed."""
    try:
        owner, member = resolve(name, symbols)
    except (AttributeError, ImportError, KeyError):
        return "missing"
    kind = owner if isinstance(owner, type | dict | ModuleType) else type(owner)
    value = owner.get(member, inspect) if isinstance(owner, dict) else inspect.getattr_static(kind, member, inspect)
    if value is inspect:
        set_somewhere = isinstance(kind, type) and member in attributes_set(kind)
        return ("there" if name.split(".")[0] in PATHS else "attribute") if set_somewhere else "missing"
    if name.split(".")[0] in PATHS:
        return "there"
    if isinstance(value, property):
        return "property"
    value = value.__func__ if isinstance(value, staticmethod | classmethod) else value
    value = inspect.unwrap(value) if callable(value) else value
    if isinstance(value, type):
        return f"class {signature(value.__init__)}"
    return signature(value) if inspect.isroutine(value) else shown(value)


def shown(value: Any) -> str:
    """A constant, or the class of an object."""
    return repr(value) if isinstance(value, int | float | str | list) else f"object of {type(value).__name__}"


def signature(function: Any) -> str:
    """Names, kinds and defaults of the arguments; annotations do not count."""
    parameters = inspect.signature(function).parameters.values()
    return str(inspect.Signature([p.replace(annotation=p.empty) for p in parameters]))


@cache
def attributes_set(kind: type) -> set[str]:
    """Names that the source of a class, or of those it inherits from, gives values on ``self``."""
    found: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.split(".")[0] in (NNUNET, *PATHS):
            found |= set(re.findall(r"\bself\.(\w+)\b[^=\n(]*=[^=]", inspect.getsource(base)))
    return found


def members(value: Any) -> set[str]:
    """Names that a class of nnU-Net's, or that of an object of nnU-Net's, defines or sets itself."""
    kind = value if isinstance(value, type) else type(value)
    bases = [base for base in kind.__mro__ if base.__module__.split(".")[0] == NNUNET]
    names = {name for base in bases for name in vars(base)}
    return {n for n in names | (attributes_set(kind) if bases else set()) if not n.startswith("__")}


def mismatches(rows: list[Row], symbols: dict[str, Any]) -> list[str]:
    """A sentence for each row that does not hold."""
    found = []
    for name, looks, text, user in rows:
        now = described(name, symbols) if looks else source_of(name, symbols)
        if looks and now != looks:
            users = ", ".join(users_of(name))
            found.append(f"{name} was {looks}, and is {now} in {installed(name)}: it is used by {users}")
        elif text and text not in now:
            found.append(f"{name} does not hold '{text}' in {installed(name)}: {user} relies on it")
    return found


def installed(name: str) -> str:
    """What the version is of that a name is compared with."""
    package = name.split(".")[0]
    package = package if package in PATHS else NNUNET
    return f"{package} {version(package)}"


def source_of(name: str, symbols: dict[str, Any]) -> str:
    """Source code of what a name means, empty where there is none."""
    try:
        owner, member = resolve(name, symbols)
        return inspect.getsource(owner[member] if isinstance(owner, dict) else getattr(owner, member))
    except (AttributeError, ImportError, KeyError, TypeError):
        return ""


def users_of(name: str) -> list[str]:
    """Files that name the last part of a name; for one of the door, those that import from there."""
    first, last = name.split(".")[0], name.split(".")[-1]
    return [
        f"{module.replace('.', '/')}.py"
        for module, source in MODULES
        if last in WORDS[module] and (first in PATHS or DOOR in source or part(module) == DOOR)
    ]


# ------------------------------------------------------------------------------------------------- uses, found in our code


def own_classes() -> Iterator[type]:
    """All classes of the package that inherit from one of nnU-Net's."""
    for module, _ in MODULES:
        if module.startswith("emim_nnunet.nnunet_plugin"):
            continue
        for value in vars(import_module(module)).values():
            if isinstance(value, type) and value.__module__ == module and nnunet_base(value):
                yield value


def nnunet_base(kind: type) -> type | None:
    """The class of nnU-Net's that a class of ours inherits from."""
    return next((base for base in kind.__mro__ if base.__module__.split(".")[0] == NNUNET), None)


def used_by_class(kind: type) -> set[str]:
    """What a class of ours overrides, calls and reads of its base: ``Base.member``."""
    base = nnunet_base(kind)
    assert base is not None
    ours = [own for own in kind.__mro__ if own.__module__.split(".")[0] not in (NNUNET, *PATHS, "builtins")]
    names = {name for own in ours for name, value in vars(own).items() if inspect.isroutine(value)}
    for own in ours:
        for node in ast.walk(ast.parse(dedent(inspect.getsource(own)))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "super()", "named"):
                names.add(node.attr)
    return {f"{base.__name__}.{name}" for name in names & members(base)}


def used_by_module(source: str, symbols: dict[str, Any]) -> set[str]:
    """What a module reads of the symbols that it takes from the door, by the names of the members: ``Symbol.member``."""
    tree = ast.parse(source)
    taken: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(DOOR):
            taken |= {alias.name for alias in node.names} & symbols.keys()
    taken |= {name for first in taken for name in LEADS_TO.get(first, ())}
    read = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} - set(dir(dict))
    return {f"{name}.{member}" for name in taken for member in members(symbols[name]) & read}


def used_by_door(symbols: dict[str, Any]) -> set[str]:
    """What the door itself takes, and changes in modules of nnU-Net's."""
    found = {name for name, value in symbols.items() if not isinstance(value, ModuleType)}
    for module, source in MODULES:
        for node in ast.walk(ast.parse(source)) if part(module) == DOOR else ():
            if isinstance(node, ast.Attribute) and isinstance(symbols.get(ast.unparse(node.value)), ModuleType):
                found.add(f"{ast.unparse(node.value)}.{node.attr}")
    return found


def used_of_torch() -> set[str]:
    """Last parts of the private names of torch, and of other objects that are not ours, that our code uses."""
    sources = [source for module, source in MODULES]
    own = {name for source in sources for name in re.findall(r"(?:def |class |self\.|^)(_\w+)", source, re.MULTILINE)}
    found = {name for source in sources for name in private_names(ast.parse(source))}
    return found - own - set(NOT_PRIVATE)


def private_names(tree: ast.AST) -> Iterator[str]:
    """Names with a leading underscore that are imported, read of an object or asked for with getattr."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and re.search(r"\._", node.module or "")
            and node.module != "emim_nnunet.cli._run"
        ):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute) and re.match(r"_[^_]", node.attr):
            yield node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
            yield from (a.value for a in node.args if isinstance(a, ast.Constant) and re.match("_[^_]", str(a.value)))


def unlisted(used: set[str], listed: set[str]) -> list[str]:
    """A sentence, with the line to add, for each use that the table does not list."""
    symbols = door()
    return [
        f"{TABLE.name} lacks a row: {name} = {described(name, symbols)}" for name in sorted(used) if name not in listed
    ]


LISTED = {row.name for row in read_table()}


def test_nnunet_is_as_the_table_says() -> None:
    found = mismatches(read_table(), door())
    assert not found, "\n".join(found)


def test_every_use_is_in_the_table() -> None:
    symbols = door()
    used = used_by_door(symbols)
    for kind in own_classes():
        used |= used_by_class(kind)
    for module, source in MODULES:
        if part(module) != DOOR:
            used |= used_by_module(source, symbols)
    found = unlisted(used, LISTED)
    last_parts = {name.split(".")[-1] for name in LISTED}
    found += [f"{TABLE.name} lacks a row that ends in .{name}" for name in sorted(used_of_torch() - last_parts)]
    assert not found, "\n".join(found)


def test_a_changed_signature_is_reported_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    symbols = door()
    rows = [row for row in read_table() if row.name.startswith("PlansManager.")]
    monkeypatch.setattr(symbols["PlansManager"], "get_configuration", lambda self, name, fold: None)
    (sentence,) = mismatches(rows, symbols)
    assert sentence.startswith(
        "PlansManager.get_configuration was (self, configuration_name), and is (self, name, fold) in nnunetv2 2."
    )
    assert "emim_nnunet/training/stage_trainer.py" in sentence
    monkeypatch.undo()
    monkeypatch.delattr(symbols["PlansManager"], "plans_name")
    (sentence,) = mismatches(rows, symbols)
    assert sentence.startswith("PlansManager.plans_name was property, and is missing in nnunetv2 2.")
    monkeypatch.undo()
    rows = [
        Row("nnUNetTrainer.do_split", None, "of another version", "emim_nnunet/x.py"),
        Row("gone", "(x)"),
        Row("torch.gone._x", "there"),
    ]
    assert [sentence.split(" in ")[0] for sentence in mismatches(rows, symbols)] == [
        "nnUNetTrainer.do_split does not hold 'of another version'",
        "gone was (x), and is missing",
        "torch.gone._x was there, and is missing",
    ]


def test_a_use_that_is_not_in_the_table_is_found() -> None:
    symbols = door()
    trainer: Any = symbols["nnUNetTrainer"]

    class Own(trainer):
        def plot_network_architecture(self) -> None:
            self.on_train_start()
            self.own = self.oversample_foreground_percent

    used = used_by_class(Own)
    assert unlisted(used, LISTED) == [
        f"{TABLE.name} lacks a row: nnUNetTrainer.oversample_foreground_percent = attribute",
        f"{TABLE.name} lacks a row: nnUNetTrainer.plot_network_architecture = (self)",
    ]
    code = f"from {DOOR}.plans import PlansManager as P\nP({{}}).dataset_name.x\nP({{}}).experiment_planner_name"
    assert used_by_module(code, symbols) == {"PlansManager.dataset_name", "PlansManager.experiment_planner_name"}
    code = "from torch._inductor import x\nloader._new_private\ngetattr(loader, '_other')\nnamed.__len__"
    assert list(private_names(ast.parse(code))) == ["x", "_new_private", "_other"]


def test_every_row_is_of_something_that_is_used() -> None:
    files = {f"{module.replace('.', '/')}.py" for module, _ in MODULES}
    for row in read_table():
        assert row.user in files if row.user else users_of(row.name), row
    found = {kind.__name__ for kind in own_classes()}
    assert {"SSLTrainer", "FinetuneTrainer", "WarmupPolyLRScheduler", "nnUNetPlannerEMIM", "Blosc2WithoutCode"} < found
