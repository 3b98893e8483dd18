"""Reading what runs leave, whatever version wrote it; and keeping paths and, if asked, ids of cases out of the page."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import isfinite, nan
from pathlib import Path
from typing import Any

from emim_nnunet.checkpoints.io import read_checkpoint
from emim_nnunet.checkpoints.locate import CHECKPOINT_NAMES
from emim_nnunet.errors import UserError
from emim_nnunet.report.content import Page

PATH = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?[/\\](?:[^\s/\\:,;'\"()]+[/\\])+([^\s/\\:,;'\"()]*)")
STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: ")
WEIGHTS = ("network_weights", "optimizer_state", "grad_scaler_state", "init_args")
# what an old, damaged or foreign file may raise when it is read as if it were one of ours
NOT_AS_EXPECTED = (UserError, OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)


class Names:
    """How cases are called in a report.

    Args:
        anonymous: Whether cases are numbered, in the order in which they are first known.
    """

    def __init__(self, *, anonymous: bool) -> None:
        self.anonymous = anonymous
        self._numbers: dict[str, str] = {}
        self._pattern: re.Pattern[str] | None = None

    def know(self, cases: Iterable[str]) -> None:
        """Give numbers to cases, in sorted order."""
        for case in sorted(set(cases) - self._numbers.keys()):
            self._numbers[case] = f"case {len(self._numbers) + 1}"
        longest_first = sorted(map(re.escape, self._numbers), key=len, reverse=True)
        self._pattern = re.compile(rf"(?<![\w.-])(?:{'|'.join(longest_first)})(?![\w-])") if longest_first else None

    def case(self, identifier: str) -> str:
        """The name of a case."""
        if not self.anonymous:
            return identifier
        if identifier not in self._numbers:
            self.know([identifier])
        return self._numbers[identifier]

    def text(self, text: str) -> str:
        """A line of a log or of a report of ours, without paths, and without ids of cases where they are numbered."""
        text = PATH.sub(lambda match: match[1] or "folder", text)
        if not self.anonymous or self._pattern is None:
            return text
        return self._pattern.sub(lambda match: self._numbers[match[0]], text)


@contextmanager
def part_of(page: Page, what: str) -> Iterator[None]:
    """Read a part of a run; where that is not possible, the page says so and goes on without it.

    Args:
        page: The page of the run.
        what: Name of the part.
    """
    try:
        yield
    except UserError as error:
        page.absent.append(f"{what}: {PATH.sub(lambda match: match[1], str(error))}")
    except NOT_AS_EXPECTED as error:
        reason = " ".join(str(error).split())[:200]
        page.absent.append(f"{what}: cannot be read ({type(error).__name__}: {PATH.sub(lambda m: m[1], reason)})")


def read_rows(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a head line."""
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def number(text: Any) -> float:
    """A number of a CSV or JSON file; NaN where there is none."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return nan


def shown(value: Any, form: str = ".3f") -> str:
    """A number for people; ``n/a`` where it is undefined."""
    value = number(value)
    return f"{value:{form}}" if isfinite(value) else "n/a"


def read_log_of(folder: Path) -> dict[str, Any]:
    """The newest checkpoint of a run without its weights; empty where there is none.

    Raises:
        UserError: It cannot be read.
    """
    file = next((folder / name for name in CHECKPOINT_NAMES if (folder / name).is_file()), None)
    return {} if file is None else without_weights(file)


def without_weights(file: Path) -> dict[str, Any]:
    """The content of a checkpoint without its weights, which are not read."""
    return {key: value for key, value in read_checkpoint(file, mapped=True).items() if key not in WEIGHTS}


def log_lines(folder: Path) -> list[str]:
    """The lines of nnU-Net's logs of a run, oldest first, without their times."""
    lines = []
    for file in sorted(folder.glob("training_log_*.txt")):
        lines += [
            STAMP.sub("", line).strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines()
        ]
    return lines


def lines_with(lines: Iterable[str], wanted: Callable[[str], bool]) -> dict[str, int]:
    """The different lines that are wanted, and how often each is there."""
    found: dict[str, int] = {}
    for line in lines:
        if wanted(line):
            found[line] = found.get(line, 0) + 1
    return found


def problems_in(lines: Iterable[str], names: Names) -> list[str]:
    """What a log says went wrong or was interrupted.

    Args:
        lines: Of the log.
        names: How cases are called.
    """
    beginnings = ("WARNING", "Stopped by", "Continuing after", "ERROR", "Unable to write", "--c: there is no")
    found = lines_with(lines, lambda line: line.startswith(beginnings))
    return [names.text(line) + (f" ({count} times)" if count > 1 else "") for line, count in found.items()]
