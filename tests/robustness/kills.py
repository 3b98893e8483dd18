"""SSL stages that are killed at random moments and continued: the result must be that of an undisturbed one, bit for bit."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.robustness.results import content, difference
from tests.robustness.world import (
    Outcome,
    command,
    copy_world,
    environment,
    in_child,
    pretrain,
    stage_folder,
    start_child,
    wait,
)

SECONDS = 120


def reference(method: str, world: Path, folder: Path) -> tuple[dict[str, str], float]:
    """Result of an undisturbed stage in a copy of the world, and how many seconds it took."""
    copy = copy_world(world, folder)
    begin = time.monotonic()
    outcome = in_child(command("pretrain", pretrain(method)), environment(copy))
    seconds = time.monotonic() - begin
    if outcome.code:
        raise SystemExit(f"{method} does not run:\n{outcome.output}")
    result = content(stage_folder(copy, method))
    shutil.rmtree(folder)
    return result, seconds


def interrupt(
    method: str, world: Path, folder: Path, expected: dict[str, str], *, number: int, after: float, workers: int
) -> str:
    """End a stage with a signal after some time, continue it with --c, compare.

    Args:
        method: Class name.
        world: Built once, without results.
        folder: For a copy; is removed.
        expected: Of :func:`reference`.
        number: Of the signal.
        after: Seconds after the start.
        workers: Data-loading processes.

    Returns:
        What is wrong; empty = nothing.
    """
    copy = copy_world(world, folder)
    env = environment(copy, workers)
    try:
        first = _start_and_signal(command("pretrain", pretrain(method)), env, number, after)
        allowed = (0, -int(number)) if number == signal.SIGKILL else (0, 75, -int(number))
        if first.code not in allowed or "Traceback" in first.output:
            return f"ended with {first.code}: {first.output[-800:]}"
        second = in_child(command("pretrain", pretrain(method, "--c")), env, seconds=SECONDS)
        if second.code:
            return f"did not continue ({second.code}): {second.output[-800:]}"
        return difference(expected, content(stage_folder(copy, method)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start_and_signal(work: Callable[[], int], env: dict[str, str], number: int, after: float) -> Outcome:
    with tempfile.TemporaryFile() as output:
        child = start_child(work, env, output.fileno())
        time.sleep(after)
        with suppress(ProcessLookupError):  # ended already
            os.killpg(child, number)
        code = wait(child, SECONDS)
        output.seek(0)
        return Outcome(code, output.read().decode(errors="replace"))


def moments(seed: str, count: int, seconds: float) -> list[float]:
    """Random seconds after the start of a stage."""
    draw = random.Random(seed)
    return [draw.uniform(0, seconds) for _ in range(count)]
