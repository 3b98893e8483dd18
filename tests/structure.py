"""Measures of the code: ``python -m tests.structure`` prints a table of them; tests hold the package to the limits below."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ("emim_nnunet", "planners", "trainers", "dataset_conversion")
MAX_FILE_LINES, MAX_FUNCTION_LINES = 350, 60
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Measures:
    """Of some files.

    Attributes:
        files: Lines of each file.
        functions: Lines of each function and method, decorators left out.
        public: Public modules, classes, functions and methods.
        documented: Those of them that have a docstring.
        signatures: Functions and methods.
        annotated: Those of them whose arguments (but self and cls) and result all have a type.
        raised: How often each exception is raised; ``assert`` counts as AssertionError.
    """

    files: dict[str, int] = field(default_factory=dict)
    functions: dict[str, int] = field(default_factory=dict)
    public: set[str] = field(default_factory=set)
    documented: set[str] = field(default_factory=set)
    signatures: set[str] = field(default_factory=set)
    annotated: set[str] = field(default_factory=set)
    raised: dict[str, int] = field(default_factory=dict)


def python_files(folder: str) -> Iterator[Path]:
    """Files of a folder of the repository, those behind links left out."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        if not any(parent.is_symlink() for parent in path.parents):
            yield path


def measure(*folders: str) -> Measures:
    """Measure all Python files in folders of the repository."""
    found = Measures()
    for folder in folders:
        for path in python_files(folder):
            name, source = str(path.relative_to(ROOT)), path.read_text("utf-8")
            found.files[name] = len(source.splitlines())
            _look_at(ast.parse(source), name, found, is_public=True)
    return found


def _look_at(node: ast.AST, name: str, found: Measures, *, is_public: bool) -> None:
    """A module, class or function, and what is in it."""
    if is_public and isinstance(node, ast.Module | ast.ClassDef | Function):
        found.public.add(name)
        if ast.get_docstring(node) is not None:
            found.documented.add(name)
    if isinstance(node, Function):
        assert node.end_lineno is not None
        found.functions[name] = node.end_lineno - node.lineno + 1
        found.signatures.add(name)
        if _is_annotated(node):
            found.annotated.add(name)
    if isinstance(node, ast.Raise | ast.Assert):
        kind = _raised(node)
        found.raised[kind] = found.raised.get(kind, 0) + 1
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | Function):
            inner = is_public and not child.name.startswith("_") and not isinstance(node, Function)
            _look_at(
                child, f"{name}:{child.name}" if ":" not in name else f"{name}.{child.name}", found, is_public=inner
            )
        else:
            _look_at(child, name, found, is_public=False)


def _is_annotated(node: Function) -> bool:
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    arguments += [a for a in (node.args.vararg, node.args.kwarg) if a is not None]
    typed = all(a.annotation is not None for a in arguments if a.arg not in ("self", "cls"))
    return typed and (node.returns is not None or node.name == "__init__")


def _raised(node: ast.Raise | ast.Assert) -> str:
    if isinstance(node, ast.Assert):
        return "AssertionError"
    error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
    return error.id if isinstance(error, ast.Name) else "again"


def row(name: str, found: Measures) -> str:
    """A line of the table."""

    def spread(lines: dict[str, int]) -> str:
        values = list(lines.values()) or [0]
        return f"{np.median(values):.0f}/{np.percentile(values, 90):.0f}/{max(values)}"

    documented = len(found.documented) / max(1, len(found.public))
    annotated = len(found.annotated) / max(1, len(found.signatures))
    raised = " / ".join(str(found.raised.get(kind, 0)) for kind in ("UserError", "ValueError", "AssertionError"))
    cells = [name, len(found.files), sum(found.files.values()), spread(found.files), spread(found.functions)]
    return " | ".join(map(str, ["", *cells, f"{documented:.1%}", f"{annotated:.1%}", raised, ""])).strip()


def main() -> None:
    """Print the table, and what is over the limits."""
    print("| | files | lines | file median/p90/max | function median/p90/max | public docs | annotated | raised |")
    print("|---|---|---|---|---|---|---|---|")
    print(row("**package**", measure(*PACKAGE)))
    for folder in (*PACKAGE, "benchmarks", "tests"):
        print(row(f"{folder}/", measure(folder)))
    everything = measure(*PACKAGE, "benchmarks", "tests")
    for lines, limit in ((everything.files, MAX_FILE_LINES), (everything.functions, MAX_FUNCTION_LINES)):
        for name, number in sorted(lines.items(), key=lambda item: -item[1]):
            if number > limit:
                print(f"over {limit} lines: {name} {number}")


if __name__ == "__main__":
    main()
