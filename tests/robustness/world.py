"""A small world of data, and commands run in it in processes of their own."""

from __future__ import annotations

import faulthandler
import hashlib
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from measure import data

DATASET = data.dataset_name(2)  # preprocessed only
DATASET_ID = "902"
TRAINER = "nnUNetTrainerEMIMPretrain"
RAW = "Dataset001_Raw"  # converted, not planned
SHAPE, PATCH, CASES = (40, 40, 40), 32, 6
FOLDERS = ("raw", "preprocessed", "results")
BLOCK = {
    "num_epochs": 3,
    "num_iterations_per_epoch": 3,
    "num_val_iterations_per_epoch": 1,
    "checkpoint_minutes": 0,
    "reconstruction_every": 2,
    "finetune_num_epochs": 1,
    "finetune_num_iterations_per_epoch": 1,
    "finetune_num_val_iterations_per_epoch": 1,
}


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        code: Exit code; negative = number of the signal.
        output: What it printed, errors included.
    """

    code: int
    output: str


def environment(folder: Path, workers: int = 0) -> dict[str, str]:
    """nnU-Net's variables of a world."""
    return {f"nnUNet_{name}": str(folder / name) for name in FOLDERS} | {"nnUNet_n_proc_DA": str(workers)}


def import_everything() -> None:
    """Import what the commands import, once: processes are forked from this one. No torch operation runs here."""
    os.environ.update(
        OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", nnUNet_compile="0", MPLBACKEND="Agg", nnUNet_def_n_proc="1"
    )
    import torch

    torch.set_num_threads(1)
    for name in (
        "compare",
        "dataset_conversion.converter",
        "planners.plan_and_preprocess",
        "trainers",
        "diagnosis.diagnose",
    ):
        import_module(f"emim_nnunet.{name}")
    import_module("nnunetv2.run.run_training")


def in_child(
    work: Callable[[], int], env: Mapping[str, str], *, seconds: float = 120, memory: int | None = None
) -> Outcome:
    """Run a function in a fork.

    Args:
        work: Returns the exit code.
        env: Added to the environment.
        seconds: After these it is killed.
        memory: Bytes of address space that it may use.
    """
    reader, writer = os.pipe()  # a file would fall under limits on the size of files
    child = start_child(work, env, writer, memory)
    os.close(writer)
    os.set_blocking(reader, False)
    output: list[bytes] = []

    def collect() -> None:
        with suppress(BlockingIOError):
            while chunk := os.read(reader, 1 << 16):
                output.append(chunk)

    code = wait(child, seconds, collect)
    collect()
    os.close(reader)
    return Outcome(code, b"".join(output).decode(errors="replace"))


def start_child(work: Callable[[], int], env: Mapping[str, str], output: int, memory: int | None = None) -> int:
    """Fork, and run a function there in a session of its own.

    Args:
        work: Returns the exit code.
        env: Added to the environment.
        output: Descriptor that gets stdout and stderr.
        memory: Bytes of address space that it may use.

    Returns:
        The process id.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", closefd=False) for descriptor in (1, 2))
        faulthandler.enable(2)  # a crash of a library says in which call
        os.environ.update(env)
        if memory is not None:
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        code = work()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child: int, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> int:
    """Exit code of a child, which is killed with all of its own children after some time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        meanwhile()
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def command(name: str, arguments: Sequence[str]) -> Callable[[], int]:
    """A console script as a function: ``emim_<name>``."""

    def work() -> int:
        from emim_nnunet.cli._run import run

        sys.argv = [f"emim_{name}", *arguments]
        return run(import_module(f"emim_nnunet.cli.{name}").main, arguments)

    return work


def pretrain(method: str = "EMIM", *options: str) -> list[str]:
    """Arguments of ``emim_pretrain`` in the world."""
    return [DATASET_ID, "tiny", "0", "-tr", f"nnUNetTrainer{method}Pretrain", "-device", "cpu", *options]


def stage_folder(folder: Path, method: str = "EMIM") -> Path:
    """Where that writes."""
    return folder / "results" / DATASET / f"nnUNetTrainer{method}Pretrain__{data.PLANS}__tiny" / "fold_0"


def build_world(folder: Path, *, trained: bool = True) -> None:
    """Sources of a conversion, a raw data set, a preprocessed one, and a finished SSL stage.

    Args:
        folder: Empty or missing.
        trained: Train the stage.

    Raises:
        SystemExit: A command failed.
    """
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)

    def write() -> int:
        from emim_nnunet.datasets.checksums import checksums_of, write_record
        from emim_nnunet.datasets.splits import ensure_splits
        from emim_nnunet.phantom import write_brats2023

        write_brats2023(folder / "source", 2, 1, seed=0, shape=(16, 16, 16))
        preprocessed = folder / "preprocessed" / DATASET
        data.write_plans(preprocessed, 2, [], batch_size=2, **BLOCK)
        cases = [f"case{number:05d}" for number in range(CASES)]
        data.write_cases(preprocessed / "tiny", CASES, 2, SHAPE, PATCH)
        write_record(preprocessed / "tiny", [checksums_of(preprocessed / "tiny", case) for case in cases])
        ensure_splits(preprocessed, cases)
        return 0

    steps = [write, command("convert", ["brats2023", str(folder / "source"), "-d", "1", "--name", "Raw"])]
    steps += [command("pretrain", pretrain())] if trained else []
    for step in steps:
        outcome = in_child(step, environment(folder))
        if outcome.code:
            raise SystemExit(f"the world of the benchmark cannot be built:\n{outcome.output}")


def copy_world(world: Path, folder: Path) -> Path:
    """A copy to be spoilt."""
    return Path(shutil.copytree(world, folder, symlinks=True))


def snapshot(folder: Path) -> dict[str, str]:
    """Checksums of all files and the targets of all links below a folder; folders are listed too."""
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(parent) / name
            key = str(path.relative_to(folder))
            if path.is_symlink():
                found[key] = f"-> {os.readlink(path)}"
            else:
                found[key] = "folder" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
    return found
