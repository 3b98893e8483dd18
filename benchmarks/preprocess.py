"""How fast cases are preprocessed, how soon a repeated preparation goes on, and what many cases take on the disk.

    python benchmarks/preprocess.py [--quick] [--only speed case resume size] --json OUT

speed: phantoms of 128^3 with four channels (four that differ, the others are copies), planned once. Ours with 1, 2 and 4
processes, and by two shards at once that are finished then, in turn with ``nnUNetv2_preprocess`` on the same plans. Whole
commands with all that they import; seconds, and seconds of CPU, which other work on the machine changes less. The output of
both is compared: voxels and properties of every case.

case: the same cases one by one in one process that has imported everything, by nnU-Net's code and by ours in turn, seconds of
CPU: what remains of start-up and processes with many cases. Compared likewise.

resume: cases of 8^3 voxels. 100 are prepared; they become 1,000 and 10,000 by hard links under further ids, with records that
say so. Two more cases lie in the raw data set, and all are planned: seconds until the first of them is done, by the whole
command and by ``--shard 1/1``, and the peak memory of the process.

size: bytes and inodes of a phantom of 128^3 with four channels, labelled and not, times 100,000.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import preparation
from measure.common import REPOSITORY, markdown_table, show, spread, threads_env, write_results
from measure.preparation import CONFIGURATION, PLANS, Ended, ours, run, started

PROCESSES = (1, 2, 4)
MANY = 100_000
PARTS = ("speed", "case", "resume", "size")


def main() -> None:
    """Read the options, measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the figures; a .md is written beside it")
    parser.add_argument("--quick", action="store_true", help="1 round, 4 cases of 64^3; 200 and 1,000 tiny cases")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="of speed and resume (default: 3)")
    parser.add_argument("--cases", type=int, default=16, help="of speed (default: 16)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.cases = 1, 4
    side = 64 if arguments.quick else 128
    counts = (200, 1000) if arguments.quick else (1000, 10_000)
    measures: dict[str, Callable[[dict[str, str], Path], tuple[Any, str]]] = {
        "speed": lambda env, folder: speed(env, folder, arguments.cases, side, arguments.rounds),
        "case": lambda env, folder: case_by_case(env, folder, arguments.cases, side),
        "resume": lambda env, folder: resume(env, folder, counts, arguments.rounds),
        "size": lambda env, folder: size(env, folder, side),
    }
    result, tables = {}, []
    for part in PARTS:
        if part in arguments.only:
            with tempfile.TemporaryDirectory() as name:
                result[part], table = measures[part](environment(Path(name)), Path(name))
                tables.append(table)
    write_results(arguments.json, result, "Preprocessing", "\n".join(tables))


def environment(folder: Path) -> dict[str, str]:
    """Variables for commands whose data sets lie below a folder, which gets nnU-Net's three folders."""
    for part in ("raw", "preprocessed", "results"):
        (folder / "nnUNet" / part).mkdir(parents=True)
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    return os.environ | threads_env(1, folder) | {"PYTHONPATH": path, "nnUNet_n_proc_DA": "1"}


def planned(env: dict[str, str], folder: Path, num_labelled: int, num_unlabelled: int, side: int) -> Path:
    """Write phantoms, convert and plan them; returns the preprocessed folder, with plans and without cases."""
    preparation.write_phantoms(folder / "source", num_labelled, num_unlabelled, side)
    run(ours("convert", "brats2023", str(folder / "source"), "-d", "1", "--name", "Bench"), env)
    run(ours("plan_and_preprocess", "-d", "1", "-c", CONFIGURATION, "--no_pp", "-gpu_memory_target", "1"), env)
    return folder / "nnUNet" / "preprocessed" / "Dataset001_Bench"


def speed(env: dict[str, str], folder: Path, cases: int, side: int, rounds: int) -> tuple[dict[str, Any], str]:
    """Our preprocessing and nnU-Net's in turn; figures and a table."""
    preprocessed = planned(env, folder, cases, 0, side)
    target, stock = preprocessed / f"{PLANS}_{CONFIGURATION}", folder / "stock"
    took: dict[str, list[tuple[Ended, Ended]]] = {}
    unequal: set[str] = set()
    for _ in range(rounds):
        theirs = {}
        for number in PROCESSES:
            options = ["-d", "1", "-plans_name", PLANS, "-c", CONFIGURATION, "-np", str(number)]
            program = Path(sys.executable).with_name("nnUNetv2_preprocess")
            theirs[number] = run([str(program), *options], env)
            shutil.rmtree(stock, ignore_errors=True)
            target.rename(stock)
            script = preparation.__file__
            own = run([sys.executable, str(script), preprocessed.name, str(number)], env)
            took.setdefault(f"{number}", []).append((own, theirs[number]))
            unequal |= set(preparation.differences(target, stock))
            remove_prepared(preprocessed)
        took.setdefault("2 shards, finished", []).append((shards(env), theirs[2]))
        unequal |= set(preparation.differences(target, stock))
        remove_prepared(preprocessed)
    rows, figures = [], {}
    for name, pairs in took.items():
        about = {
            "ours": spread([cases / own.seconds for own, _ in pairs]),
            "nnunet": spread([cases / stock.seconds for _, stock in pairs]),
            "ratio": spread([stock.seconds / own.seconds for own, stock in pairs]),
            "cpu_ratio": spread([stock.cpu / own.cpu for own, stock in pairs]),
        }
        figures[name] = about
        rows.append([name, *(show(about[key]) for key in ("ours", "nnunet", "ratio", "cpu_ratio"))])
    head = ["processes", "cases/s, ours", "cases/s, nnU-Net's", "speed, ours / nnU-Net's", "the same by CPU time"]
    said = f"Files of {cases} cases that differ from nnU-Net's: {', '.join(sorted(unequal)) or 'none'}.\n"
    return {"cases": cases, "side": side, "unequal": sorted(unequal), "speed": figures}, (
        f"{markdown_table(head, rows)}\n{said}"
    )


def case_by_case(env: dict[str, str], folder: Path, cases: int, side: int) -> tuple[dict[str, Any], str]:
    """What a case costs beside start-up and processes; figures and a table."""
    preprocessed = planned(env, folder, cases, 0, side)
    command = [sys.executable, str(preparation.__file__), preprocessed.name, "per_case"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    took = json.loads(done.stdout.splitlines()[-1])[1:]  # the first warms up
    figures = {
        "nnunet": spread([stock for stock, _ in took]),
        "ours": spread([own for _, own in took]),
        "ratio": spread([stock / own for stock, own in took]),
    }
    row = ["one case", *(show(figures[key]) for key in ("ours", "nnunet", "ratio"))]
    head = ["", "s of CPU, ours", "s of CPU, nnU-Net's", "speed, ours / nnU-Net's"]
    said = f"Over {len(took)} cases of {side}^3; all files are equal, voxels and properties."
    return figures, f"{markdown_table(head, [row])}\n{said}\n"


def shards(env: dict[str, str]) -> Ended:
    """Two shards at once, then ``--finish``: seconds in all, seconds of CPU, and the largest peak."""
    command = ours("plan_and_preprocess", "-d", "1", "-c", CONFIGURATION, "-np", "1")
    ended: list[Ended] = []
    with started([*command, "--shard", "1/2"], env, ended), started([*command, "--shard", "2/2"], env, ended):
        pass
    last = run([*command, "--finish"], env)
    ended_all = [*ended, last]
    seconds = max(one.seconds for one in ended) + last.seconds
    return Ended(seconds, sum(one.cpu for one in ended_all), max(one.peak for one in ended_all))


def remove_prepared(preprocessed: Path) -> None:
    """Remove prepared cases; plans stay."""
    for entry in preprocessed.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.suffix in (".records", ".checksums"):
            entry.unlink()


def resume(env: dict[str, str], folder: Path, counts: tuple[int, ...], rounds: int) -> tuple[dict[str, Any], str]:
    """How soon a repeated preparation goes on; figures and a table."""
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = env[f"nnUNet_{name}"]
    raw, preprocessed = (folder / "nnUNet" / part / "Dataset001_Tiny" for part in ("raw", "preprocessed"))
    preparation.write_tiny(raw, min(100, counts[0]))
    command = ours("plan_and_preprocess", "-d", "1", "-c", CONFIGURATION, "-np", "1", "-npfp", "1")
    run([*command, "-gpu_memory_target", "1"], env)
    imports = [sys.executable, "-c", "import emim_nnunet.planners.plan_and_preprocess"]
    records = preprocessed / f".{PLANS}_{CONFIGURATION}.preparing" / "records"
    figures: dict[str, Any] = {"imports": spread([run(imports, env).seconds for _ in range(rounds)])}
    rows = []
    for count in counts:
        preparation.multiply(raw, preprocessed, count, 2)
        run([*command, "-gpu_memory_target", "1", "--no_pp"], env)  # it was planned before it was interrupted
        for name, options in (("whole command", ["-gpu_memory_target", "1"]), ("shard", ["--shard", "1/1"])):
            runs = []
            for _ in range(rounds):
                keep = preprocessed.with_name("kept")
                shutil.copytree(preprocessed, keep, copy_function=os.link)
                runs.append(preparation.first_record([*command, *options], env, records))
                shutil.rmtree(preprocessed)
                keep.rename(preprocessed)
            about = {key: spread([one[key] for one in runs]) for key in runs[0]}
            figures[f"{count}, {name}"] = about
            rows.append([f"{count:,}", name, *(show(about[key]) for key in ("first", "seconds", "cpu", "peak"))])
    slopes = {}
    for name in ("whole command", "shard"):
        low, high = (figures[f"{count}, {name}"]["peak"]["median"] for count in counts)
        slopes[name] = 1000 * (high - low) / (counts[1] - counts[0])
    head = ["cases", "", "s to the first new case", "s in all", "s of CPU", "peak memory, MB"]
    said = ", ".join(f"{name} {value:.3g} kB" for name, value in slopes.items())
    return figures | {"kB_per_case": slopes}, (
        f"{markdown_table(head, rows)}\nOf these seconds, imports: {show(figures['imports'])}. "
        f"Growth of the peak per case: {said}.\n"
    )


def size(env: dict[str, str], folder: Path, side: int) -> tuple[dict[str, Any], str]:
    """What labelled and unlabelled cases take on the disk; figures and a table."""
    from emim_nnunet.datasets.preprocessed import NUM_SUBFOLDERS

    preprocessed = planned(env, folder, 1, 1, side)
    run(ours("plan_and_preprocess", "-d", "1", "-c", CONFIGURATION, "--shard", "1/1"), env)
    run(ours("plan_and_preprocess", "-d", "1", "-c", CONFIGURATION, "--finish"), env)
    target = preprocessed / f"{PLANS}_{CONFIGURATION}"
    figures: dict[str, Any] = {}
    rows = []
    for name, place in (("labelled", target), ("unlabelled", target.with_name(f"{target.name}_unlabelled"))):
        beside = [place.with_name(f"{place.name}.{ending}") for ending in ("records", "checksums")]
        files = list(place.iterdir())
        about = {"files": len(files), "bytes": sum(file.stat().st_size for file in files)}
        about["bytes_beside"] = sum(file.stat().st_size for file in beside)
        figures[name] = about
        inodes, folders = MANY * about["files"], NUM_SUBFOLDERS if name == "unlabelled" else 1
        rows.append(
            [
                name,
                f"{about['files']}",
                f"{about['bytes'] / 1e6:.1f}",
                f"{MANY * about['bytes'] / 1e12:.2f}",
                f"{inodes + folders:,}",
                f"{inodes // folders:,}",
                f"{MANY * about['bytes_beside'] / 1e6:.0f}",
            ]
        )
    head = ["cases", "files of one", "MB of one", f"TB of {MANY:,}", f"inodes of {MANY:,}", "files in a folder"]
    return figures, markdown_table([*head, "MB of records and checksums"], rows)


if __name__ == "__main__":
    main()
