"""Does preprocessing get slower with more workers? Eight small phantoms, planned and preprocessed with 1, 2 and 8.

    python benchmarks/preprocess.py --json OUT

Seconds of the whole command ``emim_plan_and_preprocess -d 1 -c 3d_fullres -np N -npfp N`` in a new process. About 5 minutes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from measure.common import REPOSITORY, markdown_table, show, spread, threads_env, write_results

WORKERS = (1, 2, 8)


def main() -> None:
    """Read the options, measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the figures; a .md is written beside it")
    parser.add_argument("--rounds", type=int, default=3, help="runs per number of workers (default: 3)")
    parser.add_argument("--cases", type=int, default=8, help="default: 8")
    arguments = parser.parse_args()
    seconds: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        env = os.environ | threads_env(1, folder) | {"PYTHONPATH": str(REPOSITORY), "nnUNet_n_proc_DA": "1"}
        for part in ("raw", "preprocessed", "results"):
            (folder / "nnUNet" / part).mkdir(parents=True)
        from emim_nnunet.phantom import write_brats2023

        write_brats2023(folder / "source", arguments.cases, 0, seed=0, shape=(64, 64, 64))
        command("convert", ["brats2023", str(folder / "source"), "-d", "1", "--name", "Bench"], env)
        for _ in range(arguments.rounds):
            for workers in WORKERS:
                shutil.rmtree(folder / "nnUNet" / "preprocessed")
                (folder / "nnUNet" / "preprocessed").mkdir()
                begin = perf_counter()
                options = ["-d", "1", "-c", "3d_fullres", "-np", str(workers), "-npfp", str(workers)]
                command("plan_and_preprocess", options, env)
                seconds[workers].append(perf_counter() - begin)
    result = {"seconds": {str(k): spread(v) for k, v in seconds.items()}}
    table = markdown_table(["workers", "seconds"], [[str(k), show(spread(v))] for k, v in seconds.items()])
    write_results(arguments.json, result, f"Planning and preprocessing {arguments.cases} small cases", table)


def command(name: str, options: list[str], env: dict[str, str]) -> None:
    """Run a command of this package; its output is shown only if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", f"emim_nnunet.cli.{name}", *options],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)


if __name__ == "__main__":
    main()
