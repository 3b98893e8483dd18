"""The experiment behind the claims about collapse: one command, one table, one figure.

    python benchmarks/collapse/run.py --json OUT            all arms, 5 seeds, phantoms, CPU
    python benchmarks/collapse/run.py --quick --json OUT    minutes on 2 cores: shows that it runs, decides nothing

OUT is a JSON file; the table (OUT.md) and the figures (OUT_curves.png, OUT_dice.png) lie beside it. Every finished job is kept
in the folder OUT_jobs, so an interrupted run goes on where it was.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")  # one thread per job; set before torch is imported

import argparse
import json
import platform
import re
import shlex
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from time import time
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from arms import ARMS, PLATEAU_ARMS
from experiment import Budget, run_job
from report import summarise, write_figures, write_table
from tqdm import tqdm

from emim_nnunet.storage.files import atomic_write, plain_json
from emim_nnunet.storage.versions import versions

QUICK = Budget(
    unlabelled=12,
    probe=8,
    test=8,
    ssl_steps=60,
    evaluations=6,
    plateau_steps=60,
    plateau_evaluations=12,
    labelled=(2,),
    finetune_steps=60,
)


def main() -> None:
    """Read the options, run the jobs that are missing, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, metavar="OUT", help="where to write the results")
    parser.add_argument("--quick", action="store_true", help="two seeds and short runs")
    parser.add_argument("--seeds", default=None, help="for example 0-4 (default) or 5,6,7")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help=f"default: all of {', '.join([*ARMS, *PLATEAU_ARMS])}")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="jobs at a time (default: cores)")
    arguments = parser.parse_args()
    names = arguments.arms or [*ARMS, *PLATEAU_ARMS]
    unknown = sorted(set(names) - set(ARMS) - set(PLATEAU_ARMS))
    if unknown:
        parser.error(f"--arms: unknown {', '.join(unknown)}")
    seeds = parse_seeds(arguments.seeds or ("0-1" if arguments.quick else "0-4"), parser)
    budget = QUICK if arguments.quick else Budget()
    results, seconds = run_all(names, seeds, budget, beside(arguments.json, "_jobs"), arguments.workers)
    report = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {arguments.workers} jobs at a time",
        "versions": versions(),
        "seconds_of_last_call": seconds,
        "seeds": seeds,
        "budget": asdict(budget),
        "arms": summarise(results, budget),
    }
    text = json.dumps(plain_json(report), indent=1, allow_nan=False)
    atomic_write(arguments.json, lambda file: file.write(text.encode()))
    table = write_table(report, arguments.json.with_suffix(".md"))
    write_figures(results, beside(arguments.json, "_curves.png"), beside(arguments.json, "_dice.png"))
    print(table)


def beside(file: Path, ending: str) -> Path:
    """Path of a file or folder beside ``OUT.json``: ``OUT`` and an ending."""
    return file.with_name(file.stem + ending)


def parse_seeds(text: str, parser: argparse.ArgumentParser) -> list[int]:
    """Read the seeds from a text such as ``0-4`` or ``5,6,7``."""
    match = re.fullmatch(r"(\d+)-(\d+)", text)
    if match:
        return list(range(int(match[1]), int(match[2]) + 1))
    if not re.fullmatch(r"\d+(,\d+)*", text):
        parser.error(f"--seeds {text}: expected for example 0-4 or 5,6,7")
    return [int(part) for part in text.split(",")]


def run_all(
    names: list[str], seeds: list[int], budget: Budget, folder: Path, workers: int
) -> tuple[list[dict[str, Any]], float]:
    """Run the jobs whose results (with the same budget) are not in the folder; returns all results in order, and seconds."""
    start = time()
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(name, seed) for seed in seeds for name in names]
    files = {job: folder / f"{re.sub(r'[^a-z0-9]+', '_', job[0].lower())}_{job[1]}.json" for job in jobs}
    missing = [job for job in jobs if not _is_done(files[job], budget)]
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        running = {pool.submit(run_job, *job, budget): job for job in missing}
        for future in tqdm(as_completed(running), total=len(running), desc="jobs", mininterval=5):
            text = json.dumps({"budget": asdict(budget), "result": future.result()})
            atomic_write(files[running[future]], lambda file, text=text: file.write(text.encode()))
    return [json.loads(files[job].read_text())["result"] for job in jobs], time() - start


def _is_done(file: Path, budget: Budget) -> bool:
    return file.is_file() and json.loads(file.read_text())["budget"] == json.loads(json.dumps(asdict(budget)))


if __name__ == "__main__":
    main()
