"""The table of inputs: what an entry is, the decorators that add one, and the judges of how a command ended.

An input is a function that spoils a copy of the world and returns the arguments of a command; the decorator names the command
and a pattern of the message. Inputs that only look bad are expected to work.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.robustness.world import Outcome, command, copy_world, environment, in_child, snapshot

# nnU-Net opens its log first
ALLOWED = re.compile(r"results/.*(training_log_[\d_]+\.txt|fold_\w+|/?Dataset\w+|__\w+)$")
Arrange = Callable[[Path], list[str]]


@dataclass(frozen=True)
class Input:
    """An input of a command.

    Attributes:
        name: Of the function that arranges it.
        command: ``emim_<command>``.
        message: Pattern of the one line; empty = it only looks bad and must work.
        arrange: Spoils a world, returns the arguments.
        env: Added to the environment.
        kind: Under which it is counted.
    """

    name: str
    command: str
    message: str
    arrange: Arrange
    env: dict[str, str]
    kind: str


INPUTS: list[Input] = []


def bad(command: str, message: str, kind: str = "bad inputs", **env: str) -> Callable[[Arrange], Arrange]:
    """Add the decorated function to the table."""

    def add(arrange: Arrange) -> Arrange:
        INPUTS.append(Input(arrange.__name__, command, message, arrange, env, kind))
        return arrange

    return add


def good(command: str, **env: str) -> Callable[[Arrange], Arrange]:
    """As :func:`bad`, for what only looks bad."""
    return bad(command, "", "inputs that only look bad", **env)


def try_input(entry: Input, world: Path, folder: Path) -> str:
    """Run a command on an input.

    Args:
        entry: Of the table.
        world: Built once.
        folder: For a copy; is removed.

    Returns:
        What was wrong with how the command ended; empty = nothing.
    """
    copy = copy_world(world, folder)
    try:
        arguments = entry.arrange(copy)
        before = snapshot(copy)
        env = {key: value.format(folder=copy) for key, value in entry.env.items()}
        outcome = in_child(command(entry.command, arguments), environment(copy) | env)
        if not entry.message:
            return "" if outcome.code == 0 else f"exit code {outcome.code}: {outcome.output[-800:]}"
        problem = judge_refusal(outcome, before, snapshot(copy))
        if not problem and not re.search(entry.message, outcome.output):
            problem = f"no '{entry.message}' in: {outcome.output[-800:]}"
        return problem
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def judge_refusal(outcome: Outcome, before: dict[str, str], after: dict[str, str]) -> str:
    """What is wrong with a refusal; empty = nothing."""
    if "Traceback" in outcome.output:
        return f"traceback: {outcome.output[-1500:]}"
    if outcome.code != 2:
        return f"exit code {outcome.code}: {outcome.output[-800:]}"
    errors = [line for line in outcome.output.splitlines() if re.match(r"\S+: error: ", line)]
    if len(errors) != 1:
        return f"{len(errors)} lines of errors: {outcome.output[-800:]}"
    changed = [key for key in before if after.get(key) != before[key]]
    if changed:
        return f"changed {changed}"
    left = [key for key in after.keys() - before.keys() if not ALLOWED.search(key)]
    return f"left behind {sorted(left)[:5]}" if left else ""
