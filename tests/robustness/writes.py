"""Faults in every write of every command: afterwards nothing is half, and repeating the command gives the whole result.

Python tells an audit hook before each file is opened, renamed, linked, made or removed; the hook raises the error of a full
disk or of missing permission there, or kills the process. What libraries in C write is met by a limit on the size of files.
"""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.robustness.results import broken_files, content, difference
from tests.robustness.world import (
    DATASET_ID,
    RAW,
    command,
    copy_world,
    environment,
    in_child,
    pretrain,
    snapshot,
    stage_folder,
)

KINDS = ("disk full", "not permitted", "killed", "file too large")
EVENTS = ("os.rename", "os.link", "os.symlink", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.truncate")
WRITING = os.O_WRONLY | os.O_RDWR


@dataclass(frozen=True)
class Operation:
    """A command whose writes are faulted.

    Attributes:
        name: For the table.
        command: ``emim_<command>``.
        arguments: Of the command, in a world.
        again: Arguments of the repetition.
        output: What it writes, below the world.
        finished: What it says when the result is there already, which is as good as writing it.
        workers: nnU-Net's data-loading processes (its planner fails with 0).
    """

    name: str
    command: str
    arguments: Callable[[Path], list[str]]
    output: str
    again: Callable[[Path], list[str]] | None = None
    finished: str = "exists"
    workers: int = 0


def _classify(world: Path) -> list[str]:
    table = world / "labels.csv"
    table.write_text("case,kind\n" + "".join(f"case{n:05d},{'ab'[n % 2]}\n" for n in range(6)))
    options = ["--scratch", "--steps", "2", "-device", "cpu", "-o", str(world / "classifier")]
    return ["train", DATASET_ID, "tiny", "all", str(table), *options]


def _pool(world: Path) -> list[str]:
    if not (world / "raw" / "Dataset002_Raw").exists():
        shutil.copytree(world / "raw" / RAW, world / "raw" / "Dataset002_Raw", symlinks=True)
        (world / "raw" / "Dataset002_Raw" / "imagesTr" / "BraTS-GLI-00001-000_0000.nii.gz").rename(world / "T1.nii.gz")
        shutil.copy(
            world / "T1.nii.gz", world / "raw" / "Dataset002_Raw" / "imagesTr" / "BraTS-GLI-00001-000_0000.nii.gz"
        )
    return ["-d", "1", "2", "-o", "9", "--name", "Pool"]


OPERATIONS = (
    Operation(
        "convert",
        "convert",
        lambda w: ["brats2023", str(w / "source"), "-d", "7", "--name", "New", "-np", "1"],
        "raw/Dataset007_New",
        finished="used already",
    ),
    Operation("pool", "pool", _pool, "raw/Dataset009_Pool", finished="used already"),
    Operation(
        "export",
        "export",
        lambda w: [str(stage_folder(w)), "-d", DATASET_ID, "-c", "tiny", "-o", str(w / "weights.pth")],
        "weights.pth",
    ),
    Operation("SSL stage", "pretrain", lambda w: pretrain("MIM"), "mim", again=lambda w: pretrain("MIM", "--c")),
    Operation(
        "diagnose",
        "diagnose",
        lambda w: [str(stage_folder(w)), "-d", DATASET_ID, "-o", str(w / "report"), "--patches", "8", "-device", "cpu"],
        "report",
    ),
    Operation("classify", "classify", _classify, "classifier", again=lambda w: [*_classify(w), "--c"]),
    Operation(
        "plan and preprocess",
        "plan_and_preprocess",
        lambda w: ["-d", "1", "-c", "3d_fullres", "-gpu_memory_target", "0.1", "-np", "1", "-npfp", "1"],
        f"preprocessed/{RAW}",
        workers=1,
    ),
)


def output_of(operation: Operation, world: Path) -> Path:
    """Where an operation writes."""
    return stage_folder(world, "MIM") if operation.output == "mim" else world / operation.output


def count_events(operation: Operation, world: Path, folder: Path) -> tuple[int, dict[str, str]]:
    """How many writes an undisturbed run makes, and its result.

    Raises:
        SystemExit: It does not run.
    """
    copy = copy_world(world, folder)
    try:
        arguments = operation.arguments(copy)
        tally = folder.with_name(f"{folder.name}_events")
        tally.write_text("0")
        work = command(operation.command, arguments)

        def counted() -> int:
            events = _hook(copy, lambda number, event: None)
            code = work()
            tally.write_text(str(events()))
            return code

        outcome = in_child(counted, environment(copy, operation.workers), seconds=300)
        if outcome.code:
            raise SystemExit(f"{operation.name} does not run:\n{outcome.output}")
        return int(tally.read_text()), _result(output_of(operation, copy))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fault(operation: Operation, world: Path, folder: Path, expected: dict[str, str], kind: str, place: int) -> str:
    """One fault.

    Args:
        operation: Of the table.
        world: Built once.
        folder: For a copy; is removed.
        expected: Result of an undisturbed run.
        kind: Of :data:`KINDS`.
        place: Number of the write; for ``file too large``, the limit in bytes.

    Returns:
        What was lost or mishandled; empty = nothing.
    """
    copy = copy_world(world, folder)
    try:
        arguments = operation.arguments(copy)
        before = snapshot(copy)
        work = command(operation.command, arguments)
        env = environment(copy, operation.workers)
        first = in_child(lambda: _faulted(work, copy, kind, place), env, seconds=300)
        if "Traceback" in first.output and kind != "killed":
            return f"traceback: {first.output[-1200:]}"
        if first.code not in (0, 2, -signal.SIGKILL):
            return f"exit code {first.code}: {first.output[-600:]}"
        problem = _harm(copy, before)
        if problem:
            return problem
        again = (operation.again or (lambda _: arguments))(copy)
        second = in_child(command(operation.command, again), env, seconds=300)
        if second.code and operation.finished not in second.output:
            return f"the repetition ended with {second.code}: {second.output[-800:]}"
        problem = _harm(copy, before)
        if problem:
            return f"after the repetition, {problem}"
        return difference(expected, _result(output_of(operation, copy)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def places(events: int, draw: random.Random, count: int | None) -> Sequence[tuple[str, int]]:
    """Which faults to try: kind and place.

    Args:
        events: Writes of an undisturbed run.
        draw: Chooses.
        count: How many; None = every kind at every write, and a limit per write.
    """
    limits = [("file too large", draw.choice((0, 1, 100, 1000, 5000, 20_000, 60_000))) for _ in range(events)]
    every = [(kind, number) for kind in KINDS[:-1] for number in range(events)] + limits
    return every if count is None else draw.sample(every, min(count, len(every)))


def _result(output: Path) -> dict[str, str]:
    if output.is_file():
        return {"": content(output.parent)[output.name]}
    return content(output)


def _harm(copy: Path, before: dict[str, str]) -> str:
    """Files that were there and changed, or that are half."""
    after = snapshot(copy)
    changed = [key for key in before if after.get(key) != before[key]]
    if changed:
        return f"changed or lost: {', '.join(changed[:5])}"
    broken = broken_files(copy)
    return f"half: {'; '.join(broken[:3])}" if broken else ""


def _faulted(work: Callable[[], int], world: Path, kind: str, place: int) -> int:
    from emim_nnunet.training import faults

    faults.RETRY_SECONDS = 0.0  # the fault comes once
    if kind == "file too large":
        resource.setrlimit(resource.RLIMIT_FSIZE, (place, resource.RLIM_INFINITY))
        return work()

    def strike(number: int, event: str) -> None:
        if number != place:
            return
        if kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        code = errno.ENOSPC if kind == "disk full" else errno.EACCES
        raise OSError(code, os.strerror(code), event)

    _hook(world, strike)
    return work()


def _hook(world: Path, strike: Callable[[int, str], None]) -> Callable[[], int]:
    """Call ``strike`` before each write below a folder; returns how many there were."""
    root, count = str(world), 0

    def audit(event: str, arguments: tuple) -> None:
        nonlocal count
        if event == "open":
            path, mode, flags = arguments
            if not (flags & WRITING if mode is None else set(mode) & set("wax+")):
                return
        elif event in EVENTS:
            path = arguments[0]
        else:
            return
        if not str(os.fsdecode(path) if isinstance(path, bytes | str | os.PathLike) else "").startswith(root):
            return
        number, count = count, count + 1
        strike(number, event)

    sys.addaudithook(audit)
    return lambda: count
