"""The planner's promise: peak memory of both stages against the target and against what the planner counted.

    python benchmarks/memory.py --targets 8 16 24 --json OUT

Plans an isotropic and an anisotropic data set for every target. What nnU-Net plans for the same target stands beside it. On a
GPU, steps of both stages are taken and their peaks stand beside the counts; the CPU uses other types and is no check of that.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from measure.common import markdown_table, run_task, threads_env, write_results

from emim_nnunet.storage.files import read_json, write_json

# number of channels, voxels and spacing in mm of the median case
DATA_SETS = {
    "brain, 4 channels, 1 mm": (4, [150, 182, 150], [1.0, 1.0, 1.0]),
    "thick slices, 1 channel, 5 x 0.6 x 0.6 mm": (1, [24, 448, 448], [5.0, 0.6, 0.6]),
}
TARGETS = (8.0, 16.0, 24.0)  # GB
CASES, STEPS = 500, 3
SSL_METHOD = "EMIM"


def main() -> None:
    """Read the options, plan, measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--targets", type=float, nargs="+", choices=TARGETS, default=TARGETS, help="GB (default: 8 16 24)"
    )
    parser.add_argument("--configurations", nargs="+", default=["2d", "3d_fullres"], choices=["2d", "3d_fullres"])
    parser.add_argument("--json", type=Path, help="file for the figures; a .md is written beside it")
    parser.add_argument("--work", type=Path, help="folder for plans, which are made once (default: a temporary one)")
    parser.add_argument("-device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])
    arguments = parser.parse_args()
    figures = []
    with tempfile.TemporaryDirectory() as name:
        work = arguments.work or Path(name)
        env = threads_env(1, work)
        for about, (channels, shape, spacing) in DATA_SETS.items():
            for target in arguments.targets:
                dataset_id = 800 + 10 * list(DATA_SETS).index(about) + TARGETS.index(target)
                task = {"dataset_id": dataset_id, "channels": channels, "shape": shape, "spacing": spacing}
                planned = plan_once(task | {"cases": CASES, "target": target}, work, env)
                for configuration in arguments.configurations:
                    figure = {"data": about, "target": target, "configuration": configuration}
                    figure |= planned["configurations"][configuration]
                    if arguments.device == "cuda":
                        figure |= measure(str(dataset_id), configuration, env)
                    figures.append(figure)
    result = {"figures": figures, "largest_share_of_target": max(max(counts(f)) / f["target"] for f in figures)}
    if arguments.device == "cuda":
        result |= promise_kept(figures)
    title = f"Memory of both stages as planned, {arguments.device}"
    write_results(arguments.json, result, title, table(figures, measured=arguments.device == "cuda"))


def plan_once(task: dict[str, Any], work: Path, env: dict[str, str]) -> dict[str, Any]:
    """What ``measure/planned.py`` plans, and how much memory it counts."""
    file = work / f"planned_{task['dataset_id']}.json"
    if not file.is_file():
        write_json(file, run_task("planned.py", "plan", task, env=env))
    return read_json(file)


def measure(dataset: str, configuration: str, env: dict[str, str]) -> dict[str, float]:
    """Peak memory in GB (1e9 bytes) that torch allocated on the GPU in steps of each stage."""
    task = {"dataset": dataset, "configuration": configuration, "device": "cuda", "steps": STEPS}
    ssl = task | {"trainer": f"nnUNetTrainer{SSL_METHOD}Pretrain", "warmup": 0, "threads": 1}
    return {
        "measured_segmentation": run_task("planned.py", "segmentation", task, env=env)["peak_bytes"] / 1e9,
        "measured_ssl": run_task("own.py", "step", ssl, env=env)["peak_bytes"] / 1e9,
    }


def counts(figure: dict[str, Any]) -> tuple[float, ...]:
    """Memory in GB that the planner counts for our plan: of the segmentation, and of the SSL stage with each method."""
    return figure["ours"]["segmentation"], *figure["ssl"].values()


def promise_kept(figures: list[dict[str, Any]]) -> dict[str, float]:
    """Largest ratio of measured peak to target, and smallest and largest ratio of measured peak to count."""
    pairs = [
        (f["target"], counted, f[f"measured_{stage}"])
        for f in figures
        for stage, counted in (("segmentation", f["ours"]["segmentation"]), ("ssl", f["ssl"][SSL_METHOD]))
    ]
    return {
        "measured_to_target_max": max(m / target for target, _, m in pairs),
        "measured_to_counted_min": min(m / counted for _, counted, m in pairs),
        "measured_to_counted_max": max(m / counted for _, counted, m in pairs),
    }


def table(figures: list[dict[str, Any]], *, measured: bool) -> str:
    """A Markdown table with a row per plan; ``measured`` adds the columns of the measured peaks."""
    methods = list(figures[0]["ssl"])
    header = ["data", "target, GB", "configuration", "nnU-Net's plan", "counted", "our plan", "counted", "SSL batch"]
    header += [f"counted, {name}" for name in methods]
    header += ["measured, segmentation", f"measured, {SSL_METHOD}"] if measured else []
    rows = []
    for f in figures:
        row = [f["data"], f"{f['target']:g}", f["configuration"]]
        for plan in (f["stock"], f["ours"]):
            size = "x".join(str(p) for p in plan["patch_size"])
            row += [f"{size}, batch {plan['batch_size']}", f"{plan['segmentation']:.2f}"]
        row += [str(f["ssl_batch_size"]), *(f"{f['ssl'][name]:.2f}" for name in methods)]
        row += [f"{f[f'measured_{stage}']:.2f}" for stage in ("segmentation", "ssl")] if measured else []
        rows.append(row)
    return markdown_table(header, rows)


if __name__ == "__main__":
    main()
