"""Is anything lost, is anything let in? Runs that are killed or collide, writes that fail, inputs that are bad.

    python benchmarks/reliability.py --json OUT            # some minutes on 2 cores
    python benchmarks/reliability.py --json OUT --full     # every write, 20 kill points and collisions each, more chance

Writes how often each was tried and went wrong: ``kill_points`` and ``kill_lost`` (SSL stages ended at random moments
and continued, whose result was not that of an undisturbed stage, bit for bit), ``collisions`` and ``collisions_lost`` (two
processes that wrote the same thing, after which the result was not that of one of them), ``writes_faulted`` and ``writes_lost``
(faults in writes, after which something was half, lost, or not made whole by repeating the command), ``inputs_tried`` and
``inputs_mishandled`` (bad inputs that did not end in one line with exit code 2 and leave nothing behind). Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from time import monotonic
from typing import Any

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from measure.common import markdown_table, write_results

from tests.robustness import collisions, inputs, kills, writes
from tests.robustness.inputs import fuzzing
from tests.robustness.world import build_world, import_everything

Job = tuple[str, Callable[[Path], str]]
PARTS = ("kills", "collisions", "writes", "inputs")


def main() -> None:
    """Read the options, try everything, and write the figures; exit code 1 if something was lost or mishandled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the figures; a .md is written beside it")
    parser.add_argument("--full", action="store_true", help="the large counts (about an hour)")
    parser.add_argument("--only", choices=PARTS, help="one of the parts; the others stay in the file as they are")
    parser.add_argument("--points", type=int, help="kill points for each method (default: 4, with --full 20)")
    parser.add_argument("--methods", nargs="+", help="methods to kill (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of moments, places and fuzzing (default: 0)")
    parser.add_argument("--jobs", type=int, default=2, help="commands at a time (default: 2)")
    arguments = parser.parse_args()
    import_everything()
    with tempfile.TemporaryDirectory(prefix="reliability_") as name:
        folder = Path(name)
        build_world(folder / "world")
        build_world(folder / "untrained", trained=False)
        parts = {"kills": kill_jobs, "collisions": collision_jobs, "writes": write_jobs, "inputs": input_jobs}
        found = earlier_parts(arguments.json) if arguments.only else {}
        for part in PARTS if arguments.only is None else [arguments.only]:
            begin = monotonic()
            problems = run(part, list(parts[part](arguments, folder)), folder, arguments.jobs)
            found[part] = figures_of(problems) | {
                "seconds": round(monotonic() - begin),
                "date": date.today().isoformat(),
                "full": arguments.full,
                "seed": arguments.seed,
            }
            for job, problem in found[part]["problems"].items():
                print(f"{job}: {problem}")
            rows = [[part, *row] for part in PARTS if part in found for row in found[part]["groups"]]
            table = markdown_table(["part", "what", "tried", "lost or mishandled"], rows)
            # written after each part, so that an interrupted run keeps its results
            write_results(arguments.json, summary(found), "Reliability", table)
    sys.exit(1 if any(part["problems"] for part in found.values()) else 0)


def earlier_parts(path: Path | None) -> dict[str, Any]:
    """Read the parts that an earlier run wrote, which ``--only`` leaves as they are."""
    return json.loads(path.read_text()).get("parts", {}) if path is not None and path.is_file() else {}


def figures_of(problems: dict[str, str]) -> dict[str, Any]:
    """Count the jobs of a part and of its groups (the name of a job up to the colon), and collect those with a problem."""
    groups: dict[str, list[str]] = {}
    for job, problem in problems.items():
        groups.setdefault(job.split(":")[0], []).append(problem)
    return {
        "tried": len(problems),
        "problems": {job: problem for job, problem in problems.items() if problem},
        "groups": [[group, str(len(p)), str(sum(map(bool, p)))] for group, p in groups.items()],
    }


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """The figures under the names that the head of this file explains, and ``parts`` with all details."""
    names = {
        "kills": ("kill_points", "kill_lost"),
        "collisions": ("collisions", "collisions_lost"),
        "writes": ("writes_faulted", "writes_lost"),
        "inputs": ("inputs_tried", "inputs_mishandled"),
    }
    result: dict[str, Any] = {}
    for part, (tried, lost) in names.items():
        if part in found:
            result |= {tried: found[part]["tried"], lost: len(found[part]["problems"])}
    return result | {"parts": found}


def run(part: str, jobs: list[Job], folder: Path, num_jobs: int) -> dict[str, str]:
    """Run all jobs and return the problem of each, empty = none.

    ``num_jobs`` processes are forked with the jobs in memory; each forks again for every command.
    """
    global run_job

    def run_job(number: int) -> str:
        return jobs[number][1](folder / f"{part}_{number}")

    with ProcessPoolExecutor(num_jobs, mp_context=get_context("fork")) as pool:
        problems = tqdm(pool.map(_run_job, range(len(jobs))), part, len(jobs), disable=None)
        return {name: problem for (name, _), problem in zip(jobs, problems, strict=True)}


def _run_job(number: int) -> str:
    return run_job(number)


def kill_jobs(arguments: argparse.Namespace, folder: Path) -> Iterator[Job]:
    """Jobs that end SSL stages with SIGKILL or SIGTERM at random moments, for every method."""
    from emim_nnunet.methods import method_classes

    points = arguments.points or (20 if arguments.full else 4)
    world = folder / "untrained"
    for method in arguments.methods or sorted(method.__name__ for method in method_classes()):
        expected, seconds = kills.reference(method, world, folder / "reference")
        for number, points_of in ((signal.SIGKILL, points), (signal.SIGTERM, -(-points // 4))):
            for index, after in enumerate(kills.moments(f"{arguments.seed} {method} {number}", points_of, seconds)):
                options = {"number": number, "after": after, "workers": index % 2}
                yield (
                    f"{signal.Signals(number).name}, {method}: {index}",
                    bind(kills.interrupt, method, world, expected=expected, options=options),
                )


def bind(
    interrupt: Callable[..., str], method: str, world: Path, *, expected: dict, options: dict
) -> Callable[[Path], str]:
    """Make the job of a kill point."""
    return lambda copy: interrupt(method, world, copy, expected, **options)


def collision_jobs(arguments: argparse.Namespace, folder: Path) -> Iterator[Job]:
    """Jobs that start two commands on the same thing, the second at random moments after the first."""
    world = folder / "planned"
    build_world(world)
    collisions.prepare_world(world)
    for collision in collisions.COLLISIONS:
        expected, seconds = collisions.alone(collision, world, folder / "reference")
        name = f"{arguments.seed} {collision.name}"
        for index, after in enumerate(collisions.moments(name, 20 if arguments.full else 2, seconds)):
            yield (
                f"{collision.name}: {index}",
                lambda copy, c=collision, e=expected, a=after: collisions.collide(c, world, copy, e, a),
            )


def write_jobs(arguments: argparse.Namespace, folder: Path) -> Iterator[Job]:
    """Jobs that make writes of every operation fail; only a few writes of planning, because it takes long."""
    draw = random.Random(arguments.seed)
    world = folder / "world"
    for operation in writes.OPERATIONS:
        slow = operation.command == "plan_and_preprocess"
        if slow and not arguments.full:
            continue
        events, expected = writes.count_events(operation, world, folder / "reference")
        wanted = (12 if slow else None) if arguments.full else 16
        for index, (kind, place) in enumerate(writes.places(events, draw, wanted)):
            yield (
                f"{operation.name}, {kind}: {place} ({index})",
                lambda copy, o=operation, e=expected, k=kind, p=place: writes.fault(o, world, copy, e, k, p),
            )


def input_jobs(arguments: argparse.Namespace, folder: Path) -> Iterable[Job]:
    """Jobs that try bad inputs: all of the table, and random ones."""
    world = folder / "world"
    for entry in inputs.INPUTS:
        yield f"{entry.kind}: {entry.command} {entry.name}", lambda copy, e=entry: inputs.try_input(e, world, copy)
    headers, plans = (400, 200) if arguments.full else (60, 30)
    for name, fuzz, number in (("NIfTI headers", fuzzing.fuzz_header, headers), ("plans", fuzzing.fuzz_plans, plans)):
        for index in range(number):
            seed = arguments.seed * 100_000 + index
            yield f"random {name}: seed {seed}", lambda copy, f=fuzz, s=seed: f(s, world, copy)


if __name__ == "__main__":
    main()
