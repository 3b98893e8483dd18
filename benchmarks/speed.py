"""Where the time of an SSL stage goes on this machine, on synthetic data of the size of a brain, with ResEnc-L.

    python benchmarks/speed.py step   --json OUT     # parts of a step, for every method; peak memory against the plan
    python benchmarks/speed.py loader --json OUT     # patches and channel-voxels a second of one process
    python benchmarks/speed.py start  --json OUT     # from the command to the first step
    python benchmarks/speed.py epoch  --json OUT     # steps with the real loader: share of time that waits for data
    python benchmarks/speed.py variants --json OUT   # steps with channels_last, bfloat16, torch.compile: what pays here
    python benchmarks/speed.py ranks  --json OUT     # weak scaling: patches a second of 1 and 2 processes (gloo on the CPU)

Every figure is the median (smallest-largest) of several runs, each in a process of its own.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from statistics import mean, median
from time import time
from typing import Any

import torch
from measure import data
from measure.common import markdown_table, run_task, show, spread, threads_env, write_results

TRAINERS = ("nnUNetTrainerMIMPretrain", "nnUNetTrainerEMIMPretrain")
OTHERS = ("nnUNetTrainerMoCoZCAPretrain", "nnUNetTrainerMaskInMaskPretrain", "nnUNetTrainerVICRegPretrain")
VARIANTS = ("default", "channels_last", "bfloat16", "channels_last+bfloat16", "compile", "compile+bfloat16")
TITLES = {
    "step": "Parts of a training step",
    "loader": "The data loader, one process",
    "start": "From the command to the first step",
    "epoch": "Steps with the real loader",
    "variants": "Variants of a training step",
    "ranks": "Weak scaling",
}


def main() -> None:
    """Read the options, measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=TITLES)
    parser.add_argument("--json", type=Path, help="file for the figures; a .md is written beside it")
    parser.add_argument("--patch", type=int, default=96, help="side of the patch (default: 96)")
    parser.add_argument("--channels", type=int, default=4, help="default: 4")
    parser.add_argument("--batch", type=int, default=2, help="default: 2")
    parser.add_argument("--threads", type=int, default=1, help="of each process (default: 1)")
    parser.add_argument("--workers", type=int, default=1, help="of the loader in an epoch (default: 1)")
    parser.add_argument("--rounds", type=int, default=3, help="processes per figure (default: 3)")
    parser.add_argument("--steps", type=int, default=2, help="steps per process (default: 2)")
    parser.add_argument("-device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data.prepare(folder, arguments.channels, [arguments.patch], batch_size=arguments.batch)
        result, table = globals()[f"measure_{arguments.what}"](arguments, threads_env(arguments.threads, folder))
    conditions = {k: v for k, v in vars(arguments).items() if k not in ("json", "what")}
    title = f"{TITLES[arguments.what]}: ResEnc-L, {arguments.channels} channels, {arguments.patch}^3, batch {arguments.batch}"
    write_results(arguments.json, {"conditions": conditions} | result, f"{title}, {arguments.device}", table)


def task_of(a: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """Arguments of a measurement: data set and configuration, and ``more``."""
    return {"dataset": str(900 + a.channels), "configuration": f"p{a.patch}"} | more


def measure_step(a: argparse.Namespace, env: dict[str, str]) -> tuple[dict[str, Any], str]:
    """Measure the parts of a step, its speed relative to the fastest convolution, and its peak memory, for every method."""
    peaks = run_task("own.py", "convolutions", task_of(a, device=a.device, threads=a.threads), env=env)
    fastest = max(peaks["flops_per_second"])
    result: dict[str, Any] = {"convolution_flops_per_second": peaks["flops_per_second"]}
    rows = []
    for trainer in (*TRAINERS, *OTHERS):
        common = task_of(a, trainer=trainer, device=a.device, steps=a.steps, threads=a.threads)
        runs = [run_task("own.py", "parts", common, env=env)["parts"] for _ in range(a.rounds)]
        whole = [run_task("own.py", "step", common | {"warmup": 1}, env=env) for _ in range(a.rounds)]
        steps = [part for run in runs for part in run]
        parts = {label: spread([step[label] for step in steps]) for label in steps[0]}
        undisturbed = spread([t for run in whole for t in run["wall"]])
        peak = spread([run["peak_bytes"] / 1e9 for run in whole])
        estimate = whole[0]["estimated_gigabytes"]
        achieved = whole[0]["flops"] / undisturbed["median"]
        result[trainer] = {
            "parts": parts,
            "step": undisturbed,
            "peak_gigabytes": peak,
            "estimated_gigabytes": estimate,
            "flops": whole[0]["flops"],
            "share_of_fastest_convolution": achieved / fastest,
        }
        for label, values in parts.items():
            share = values["median"] / parts["whole step"]["median"]
            rows.append([trainer, label, show(values), f"{share:.1%}"])
        rows.append([trainer, "step without clocks inside", show(undisturbed), ""])
        label = f"useful TFLOP/s (fastest convolution of the network: {fastest / 1e12:.3g})"
        rows.append([trainer, label, f"{achieved / 1e12:.3g}", f"{achieved / fastest:.1%}"])
        rows.append([trainer, "peak memory, GB", show(peak), ""])
        rows.append([trainer, "planner's count for a GPU in mixed precision, GB", f"{estimate:.2f}", ""])
    return result, markdown_table(["trainer", "part", "seconds", "share"], rows)


def measure_loader(a: argparse.Namespace, env: dict[str, str]) -> tuple[dict[str, Any], str]:
    """Measure patches per second of reading alone, and of reading with the augmentation (here on the CPU)."""
    runs = [run_task("own.py", "loader", task_of(a, patches=60, threads=a.threads), env=env) for _ in range(a.rounds)]
    rates = {
        "reading": [1 / mean(run["read"]) for run in runs],
        "reading and augmentation": [1 / (mean(run["read"]) + mean(run["augment"])) for run in runs],
    }
    voxels = a.channels * a.patch**3 / 1e6
    rows = [[k, show(spread(v)), show(spread([x * voxels for x in v]))] for k, v in rates.items()]
    table = markdown_table(["what", "patches/s", "million channel-voxels/s"], rows)
    return {"patches_per_second": {k: spread(v) for k, v in rates.items()}}, table


def measure_start(a: argparse.Namespace, env: dict[str, str]) -> tuple[dict[str, Any], str]:
    """Measure the time from ``emim_train`` to the first step."""
    result, rows = {}, []
    for trainer in TRAINERS:
        command = [str(900 + a.channels), f"p{a.patch}", "all", "-tr", trainer, "-p", data.PLANS, "-device", a.device]
        seconds = []
        for _ in range(a.rounds):
            begun = {"BENCHMARK_START": str(time())}
            seconds.append(run_task("own.py", "start", {"arguments": command}, env=env | begun)["seconds"])
            shutil.rmtree(Path(env["nnUNet_results"]) / data.dataset_name(a.channels))
        result[trainer] = spread(seconds)
        rows.append([trainer, show(result[trainer])])
    return result, markdown_table(["trainer", "seconds"], rows)


def measure_epoch(a: argparse.Namespace, env: dict[str, str]) -> tuple[dict[str, Any], str]:
    """Measure steps with the real loader: patches per second, and the share of time that waits for data."""
    result, rows = {}, []
    for trainer in TRAINERS:
        task = task_of(a, trainer=trainer, device=a.device, steps=max(a.steps, 3), workers=a.workers)
        runs = [run_task("own.py", "epoch", task, env=env) for _ in range(a.rounds)]
        result[trainer] = {key: spread([run[key] for run in runs]) for key in ("patches_per_second", "idle")}
        rows.append([trainer, show(result[trainer]["patches_per_second"]), f"{result[trainer]['idle']['median']:.1%}"])
    return result, markdown_table(["trainer", "patches/s", "idle"], rows)


def measure_variants(a: argparse.Namespace, env: dict[str, str]) -> tuple[dict[str, Any], str]:
    """Measure steps of plain MIM in other memory formats and precisions and compiled, against the default of the device."""
    common = task_of(a, trainer=TRAINERS[0], device=a.device, steps=a.steps, threads=a.threads, warmup=1)
    steps: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for _ in range(a.rounds):
        for variant, seconds in steps.items():
            task = common | {"variant": variant}
            seconds += run_task("own.py", "step", task, env=env | {"nnUNet_compile": "false"})["wall"]
    first = median(steps[VARIANTS[0]])
    rows = [[variant, show(spread(s)), f"{median(s) / first:.2f}"] for variant, s in steps.items()]
    return {"step_seconds": {k: spread(v) for k, v in steps.items()}}, markdown_table(["variant", "s", "ratio"], rows)


def measure_ranks(a: argparse.Namespace, env: dict[str, str]) -> tuple[dict[str, Any], str]:
    """Measure patches per second of 1 and 2 processes with the same batch per process."""
    rates = {}
    for ranks in (1, 2):
        task = task_of(
            a, trainer=TRAINERS[1], steps=a.steps, threads=a.threads, ranks=ranks, batch_size=a.batch * ranks
        )
        seconds = [median(run_task("own.py", "scaling", task, env=env)["seconds"]) for _ in range(a.rounds)]
        rates[ranks] = spread([a.batch * ranks / s for s in seconds])
    efficiency = rates[2]["median"] / rates[1]["median"] / 2
    rows = [[str(ranks), show(rate)] for ranks, rate in rates.items()]
    table = markdown_table(["processes", "patches/s"], rows) + f"\nEfficiency of the second process: {efficiency:.1%}\n"
    return {"patches_per_second": {str(k): v for k, v in rates.items()}, "efficiency": efficiency}, table


if __name__ == "__main__":
    main()
