"""Two processes that write the same thing at the same time: afterwards it is what one of them alone would have written."""

from __future__ import annotations

import json
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO

from measure.data import PLANS, TINY

from tests.robustness.results import content, difference
from tests.robustness.world import (
    BLOCK,
    DATASET_ID,
    RAW,
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

SECONDS = 600
TOGETHER_SECONDS = 2.0  # the second may have started so late that it found the first one's work done
PLANNING = ["-d", "1", "-c", "3d_fullres", "-gpu_memory_target", "0.1", "-np", "1", "-npfp", "1"]
Arrange = Callable[[Path], tuple[str, list[str]]]


@dataclass(frozen=True)
class Collision:
    """Two commands.

    Attributes:
        name: For the table.
        first: Arranges a world and gives a command and its arguments.
        second: Likewise, for the other process.
        long: Whether it takes too long for a test.
    """

    name: str
    first: Arrange
    second: Arrange
    long: bool = False


def _convert(source: str, name: str) -> Arrange:
    return lambda w: ("convert", ["brats2023", str(w / source), "-d", "7", "--name", name, "-np", "1"])


def _plan(world: Path) -> tuple[str, list[str]]:
    return "plan_and_preprocess", PLANNING


def _stage(world: Path) -> tuple[str, list[str]]:
    return "pretrain", pretrain("MIM")


def _continued_stage(world: Path) -> tuple[str, list[str]]:
    folder = stage_folder(world)
    if (folder / "checkpoint_final.pth").exists():
        (folder / "checkpoint_final.pth").unlink()
        (folder / "checkpoint_previous.pth").rename(folder / "checkpoint_latest.pth")
    return "pretrain", pretrain("EMIM", "--c")


def _fold(world: Path) -> tuple[str, list[str]]:
    return "train", ["1", "tiny", "0", "-tr", "nnUNetTrainerEMIMFinetune", "-p", PLANS, "-device", "cpu"]


def _compare(*more: str) -> Arrange:
    few = ["--arms", "scratch", "--seeds", "0", "--labelled", "1", "--num_test", "1", "-device", "cpu", *more]
    return lambda w: ("compare", ["1", "tiny", "-o", str(w / "comparison"), *few])


def _diagnose(world: Path) -> tuple[str, list[str]]:
    folder = str(stage_folder(world))
    return "diagnose", [folder, "-d", DATASET_ID, "-o", str(world / "report"), "--patches", "4", "-device", "cpu"]


_new, _compared, _evaluated = _convert("source", "New"), _compare(), _compare("--evaluate")
COLLISIONS = (
    Collision("the same conversion", _new, _new),
    Collision("conversions of other data", _new, _convert("other", "New")),
    Collision("conversions of other names", _convert("source", "One"), _convert("source", "Two")),
    Collision("preparations", _plan, _plan),
    Collision("SSL stages", _stage, _stage),
    Collision("continued SSL stages", _continued_stage, _continued_stage),
    Collision("folds", _fold, _fold),
    Collision("comparisons", _evaluated, _evaluated),
    Collision("comparisons that train", _compared, _compared, long=True),
    Collision("reports", _diagnose, _diagnose),
)


def prepare_world(world: Path) -> None:
    """Add to a world: a second source of other images under the same names, and plans of the raw data set.

    Raises:
        SystemExit: A command failed.
    """

    def prepare() -> int:
        from emim_nnunet.phantom import write_brats2023

        write_brats2023(world / "other", 1, 1, seed=1, shape=(16, 16, 16))
        code = _work("plan_and_preprocess", PLANNING)()
        file = world / "preprocessed" / RAW / f"{PLANS}.json"
        plans = json.loads(file.read_text())
        full = plans["configurations"]["3d_fullres"]
        plans["configurations"]["tiny"] = {
            "inherits_from": "3d_fullres",
            "patch_size": [16, 16, 16],
            "architecture": full["architecture"] | {"arch_kwargs": full["architecture"]["arch_kwargs"] | TINY},
            "emim": BLOCK
            | {"pyramid_levels": [1, 2], "projector_widths": [16, 16], "cell_size": [4, 4, 4]}
            | {"finetune_init": "scratch", "finetune_seed": 0},
        }
        file.write_text(json.dumps(plans))
        return code

    outcome = in_child(prepare, environment(world, 1), seconds=SECONDS)
    if outcome.code:
        raise SystemExit(f"the world of the collisions cannot be built:\n{outcome.output}")


def _work(name: str, arguments: list[str]) -> Callable[[], int]:
    """A command; a planner without what only takes long: nnU-Net's many intensities, and the memory of a step."""

    def work() -> int:
        from emim_nnunet.planners import fingerprint

        planner = import_module("emim_nnunet.planners.nnUNetPlannerEMIM")
        fingerprint.NUM_INTENSITY_SAMPLES = 1000
        planner.segmentation_gigabytes = planner.ssl_gigabytes = lambda *_: 0.05
        return command(name, arguments)()

    return work


def alone(collision: Collision, world: Path, folder: Path) -> tuple[list[dict[str, str]], float]:
    """What each of the two commands leaves when it runs alone, and how many seconds the first one takes."""
    results, seconds = [], 0.0
    for arrange in dict.fromkeys((collision.second, collision.first)):
        copy = copy_world(world, folder)
        name, arguments = arrange(copy)
        begin = time.monotonic()
        outcome = in_child(_work(name, arguments), _environment(name, copy), seconds=SECONDS)
        seconds = time.monotonic() - begin
        if outcome.code:
            raise SystemExit(f"{collision.name}: {name} does not run:\n{outcome.output}")
        results.insert(0, content(copy))
        shutil.rmtree(folder)
    return results * (2 // len(results)), seconds


def collide(collision: Collision, world: Path, folder: Path, expected: list[dict[str, str]], after: float) -> str:
    """Start the first command, after some time the second, and look at what they say and leave.

    Args:
        collision: Of the table.
        world: Built once, with :func:`prepare_world`.
        folder: For a copy; is removed.
        expected: Of :func:`alone`.
        after: Seconds between the two starts.

    Returns:
        What is wrong; empty = nothing.
    """
    copy = copy_world(world, folder)
    try:
        commands = [arrange(copy) for arrange in (collision.first, collision.second)]
        with tempfile.TemporaryFile() as first, tempfile.TemporaryFile() as second:
            children = []
            for (name, arguments), output in zip(commands, (first, second), strict=True):
                children.append(start_child(_work(name, arguments), _environment(name, copy), output.fileno()))
                time.sleep(after if output is first else 0.0)
            begin = time.monotonic()
            codes = [wait(children[0], SECONDS)]
            together = time.monotonic() - begin
            codes.append(wait(children[1], SECONDS))
            texts = [_text(output) for output in (first, second)]
        outcomes = [Outcome(code, text) for code, text in zip(codes, texts, strict=True)]
        return judge(outcomes, expected, content(copy), together)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def judge(
    outcomes: list[Outcome], expected: list[dict[str, str]], result: dict[str, str], together: float = 0.0
) -> str:
    """What is wrong with how two commands ended; empty = nothing.

    Args:
        outcomes: Of the two.
        expected: What each would have left alone.
        result: What they have left.
        together: Seconds in which both ran.
    """
    for outcome in outcomes:
        if outcome.code not in (0, 2) or "Traceback" in outcome.output:
            return f"exit code {outcome.code}: {outcome.output[-800:]}"
        errors = [line for line in outcome.output.splitlines() if re.match(r"\S+: error: ", line)]
        if outcome.code == 2 and len(errors) != 1:
            return f"{len(errors)} lines of errors: {outcome.output[-800:]}"
    done = [number for number, outcome in enumerate(outcomes) if outcome.code == 0]
    if not done:
        return f"neither did it: {' / '.join(outcome.output[-300:] for outcome in outcomes)}"
    if len(done) == 2 and together > TOGETHER_SECONDS:
        return f"both did it, {together:.1f} s at the same time"
    return min((difference(expected[number], result) for number in done), key=len)


def moments(seed: str, count: int, seconds: float) -> list[float]:
    """Random seconds between the two starts: half of them before the first has got far, where most collisions are."""
    draw = random.Random(seed)
    return [draw.uniform(0, seconds) * draw.choice((0.1, 1.0)) for _ in range(count)]


def _environment(name: str, folder: Path) -> dict[str, str]:
    return environment(folder, workers=int(name == "plan_and_preprocess"))  # nnU-Net's planner fails with 0


def _text(output: IO[bytes]) -> str:
    output.seek(0)
    return output.read().decode(errors="replace")
