"""This package against its peer, nnssl's BaseMAETrainer, on the same machine, in one run.

    python benchmarks/peer.py --peer-python ENV/bin/python --json OUT

Both sides get the same encoder (ResEnc-L), patch, batch, precision and number of threads; every figure is measured in a
process of its own, the two sides in turn, several times. Ratios are ours over theirs except the loader's, which says how many
times more channel-voxels a second of one process gives (reading and augmentation of equal kind). Without ``--peer-python`` only
our side is measured and no ratio is given. About 20 minutes on one core with the defaults.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median
from time import time
from typing import Any

import numpy as np
import torch
from measure import data
from measure.common import markdown_table, run_task, show, spread, threads_env, write_results

METHODS = {"mim": "nnUNetTrainerMIMPretrain", "emim": "nnUNetTrainerEMIMPretrain"}
START_PATCH = 160  # the only side of a patch that the peer's trainer has


def main() -> None:
    """Read the options, measure both sides, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="Python of an environment with nnssl")
    parser.add_argument("--json", type=Path, help="file for the figures; a .md is written beside it")
    parser.add_argument("--patch", type=int, default=96, help="side of the patch of the steps (default: 96)")
    parser.add_argument("--batch", type=int, default=2, help="default: 2")
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    parser.add_argument("--rounds", type=int, default=3, help="processes per figure and side (default: 3)")
    parser.add_argument("--steps", type=int, default=2, help="steps per process after one for warming up (default: 2)")
    parser.add_argument("--loader-patches", type=int, nargs="+", default=[96, 160], help="default: 96 160")
    parser.add_argument("--only", nargs="+", choices=["step", "loader", "start"], default=["step", "loader", "start"])
    parser.add_argument("-device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        Sides(arguments, Path(folder)).measure()


class Sides:
    """Measures both sides on the same data set.

    Args:
        arguments: The options of the command.
        folder: An empty folder for the data.
    """

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments = arguments
        self.env = threads_env(arguments.threads, folder)
        patches = sorted({*arguments.loader_patches, START_PATCH} if {"loader", "start"} & {*arguments.only} else set())
        data.prepare(folder, 1, patches, batch_size=arguments.batch)
        name = data.dataset_name(1)
        data.write_plans(folder / "nnUNet" / "preprocessed" / name, 1, [*patches, arguments.patch], arguments.batch)
        self.result: dict[str, Any] = {
            "conditions": {k: v for k, v in vars(arguments).items() if k not in ("json", "peer_python")}
        }
        self.rows: list[list[str]] = []
        if arguments.peer_python:
            source = folder / "volumes"
            source.mkdir()
            for number, (image, _) in enumerate(data.volumes(8, 1, data.BRAIN)):
                np.save(source / f"{number}.npy", image)
            self.peer("data", source=str(source), cases=8)
            self.result["peer_versions"] = self.peer("versions")

    def own(self, task: str, **arguments: Any) -> dict[str, Any]:
        """Run a measurement of this package; ``task`` and ``arguments`` as in ``measure/own.py``."""
        return run_task("own.py", task, arguments, env=self.env | {"BENCHMARK_START": str(time())})

    def peer(self, task: str, **arguments: Any) -> dict[str, Any]:
        """Run a measurement of the peer; ``task`` and ``arguments`` as in ``measure/peer_side.py``."""
        env = self.env | {"BENCHMARK_START": str(time())}
        return run_task("peer_side.py", task, arguments, python=self.arguments.peer_python, env=env)

    def measure(self) -> None:
        """Measure everything that was asked for, and write the figures."""
        for name in self.arguments.only:
            getattr(self, name)()
        header = ["figure", "ours", "nnssl BaseMAETrainer", "ratio"]
        a = self.arguments
        title = f"Against the peer: ResEnc-L, batch {a.batch}, {a.threads} thread(s), {a.device}"
        write_results(a.json, self.result, title, markdown_table(header, self.rows))

    def step(self) -> None:
        """Measure the time of training steps and their peak memory."""
        a = self.arguments
        common = {"device": a.device, "steps": a.steps, "warmup": 1, "threads": a.threads}
        runs: dict[str, list[dict[str, Any]]] = {"mim": [], "emim": [], "peer": []}
        for _ in range(a.rounds):
            if a.peer_python:
                runs["peer"].append(self.peer("step", patch=a.patch, batch_size=a.batch, channels=1, **common))
            for name, trainer in METHODS.items():
                runs[name].append(
                    self.own("step", dataset="901", configuration=f"p{a.patch}", trainer=trainer, **common)
                )
        clock = "wall" if a.device == "cuda" else "cpu"  # CPU seconds depend less on other work on the machine
        seconds = {n: [t for run in r for t in run[clock]] for n, r in runs.items() if r}
        peaks = {n: [run["peak_bytes"] / 1e9 for run in r] for n, r in runs.items() if r}
        self.result["step_seconds"] = {n: spread(v) for n, v in seconds.items()}
        self.result["peak_gigabytes"] = {n: spread(v) for n, v in peaks.items()}
        for name in METHODS:
            self.add(f"{name}_step_ratio", f"step of {name}, patch {a.patch}^3, s", seconds[name], seconds.get("peer"))
        for name in METHODS:
            self.add(
                f"{name}_memory_ratio", f"peak memory of {name}, patch {a.patch}^3, GB", peaks[name], peaks.get("peer")
            )
        if a.peer_python:
            self.result["memory_ratio"] = max(self.result[f"{name}_memory_ratio"] for name in METHODS)

    def loader(self) -> None:
        """Measure reading and augmentation in one process, in patches of one channel per second."""
        a = self.arguments
        for patch in a.loader_patches:
            ours, theirs = [], []
            for _ in range(a.rounds):
                count = max(40, 200 * 96 // patch)
                own = self.own("loader", dataset="901", configuration=f"p{patch}", patches=count, threads=a.threads)
                ours.append(np.mean(own["read"]) + np.mean(own["augment"]))
                if a.peer_python:
                    peer = self.peer("loader", patch=patch, batch_size=a.batch, patches=count // 4, threads=a.threads)
                    theirs.append(np.mean(peer["read"]))
            rates = [[1 / s for s in side] for side in (ours, theirs)]
            self.add(f"loader_ratio_{patch}", f"loader, {patch}^3, patches/s", rates[0], rates[1] or None)
        if a.peer_python:
            self.result["loader_ratio"] = min(self.result[f"loader_ratio_{p}"] for p in a.loader_patches)

    def start(self) -> None:
        """Measure the time from the command to the first step."""
        a = self.arguments
        common = ["-device", a.device]
        ours, theirs = [], []
        for _ in range(a.rounds):
            command = ["901", f"p{START_PATCH}", "all", "-tr", METHODS["emim"], "-p", data.PLANS, *common]
            ours.append(self.own("start", arguments=command)["seconds"])
            data.remove(Path(self.env["nnUNet_results"]) / data.dataset_name(1))
            if a.peer_python:
                command = ["901", "onemmiso", "-tr", "BaseMAETrainer", "-p", "nnsslPlans", *common]
                theirs.append(self.peer("start", arguments=command)["seconds"])
        self.add("start_ratio", f"command to first step, {START_PATCH}^3, s", ours, theirs or None)

    def add(self, key: str, label: str, ours: list[float], theirs: list[float] | None) -> None:
        """Add a row to the table, and the ratio of medians, ours over theirs, to the figures."""
        row = [label, show(spread(ours)), "not measured", ""]
        if theirs:
            self.result[key] = median(ours) / median(theirs)
            row[2:] = [show(spread(theirs)), f"{self.result[key]:.2f}"]
        self.result[key.replace("_ratio", "_figures")] = {"ours": spread(ours)} | (
            {"peer": spread(theirs)} if theirs else {}
        )
        self.rows.append(row)
        print(" | ".join(row), flush=True)


if __name__ == "__main__":
    main()
