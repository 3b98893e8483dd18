"""What the collapse monitor costs, as a share of an epoch of 250 iterations.

    python benchmarks/collapse/cost.py DATASET_ID CONFIGURATION [-p PLANS] [-tr TRAINER] [-device cpu]

Runs some training steps and some evaluations of a planned SSL stage on a preprocessed data set, in a temporary results folder,
and prints medians: a step; the pass over the probe set, which an SSL stage makes anyway to report its loss; and what the
monitor adds: features of the unmasked patches, sums, eigenvalues, files, and a picture every ``reconstruction_every`` epochs.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

ITERATIONS = 250


def main() -> None:
    """Read the options, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset_id")
    parser.add_argument("configuration")
    parser.add_argument("-p", dest="plans", default="nnUNetEMIMPlans")
    parser.add_argument("-tr", dest="trainer", default="nnUNetTrainerEMIMPretrain")
    parser.add_argument("-device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=12, help="training steps (default: 12)")
    parser.add_argument("--repeats", type=int, default=3, help="evaluations (default: 3)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as results:
        os.environ["nnUNet_results"] = results
        measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    """Build the trainer, measure its times, and print them."""
    from nnunetv2.run.run_training import get_trainer_from_args

    from emim_nnunet.trainer_search import enable_search

    enable_search()
    device = torch.device(arguments.device)
    trainer = get_trainer_from_args(
        arguments.dataset_id, arguments.configuration, "all", arguments.trainer, arguments.plans, device=device
    )
    trainer.config = type(trainer.config)(**vars(trainer.config) | {"warmup_epochs": 0})
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    step = [seconds(lambda: trainer.train_step(next(trainer.dataloader_train)), device) for _ in range(arguments.steps)]
    parts: dict[str, list[float]] = {"probe": [], "monitor": []}
    for epoch in range(1, arguments.repeats + 1):
        probe, monitor = evaluation(trainer, device, epoch)
        parts["probe"].append(probe)
        parts["monitor"].append(monitor)
    folder = Path(trainer.output_folder)
    trainer.monitor.history[-2]["level"] = trainer.monitor.history[-1]["level"]  # a new level would draw the picture
    trainer.monitor.write(folder, {}, picture=True)  # the first picture builds font caches
    files = seconds(lambda: trainer.monitor.write(folder, {}, picture=False), device)
    picture = seconds(lambda: trainer.monitor.write(folder, {}, picture=True), device) - files
    monitor = median(parts["monitor"]) + files + picture / trainer.config.reconstruction_every
    epoch = ITERATIONS * median(step[1:])
    batches, samples = trainer.num_val_iterations_per_epoch, trainer.config.batch_size
    print(f"{arguments.trainer}, {arguments.configuration}, {arguments.device}, torch {torch.__version__}")
    print(f"training step: {median(step[1:]):.3f} s; epoch of {ITERATIONS}: {epoch:.1f} s")
    print(
        f"probe set: {batches} batches of {samples}, {median(parts['probe']):.2f} s = {median(parts['probe']) / epoch:.2%}"
    )
    print(
        f"the monitor in addition: {monitor:.2f} s = {monitor / epoch:.2%} (files {files:.2f} s, a picture {picture:.2f} s)"
    )


def evaluation(trainer: Any, device: torch.device, epoch: int) -> tuple[float, float]:
    """Time of a pass over the probe set without the monitor, and time of the monitor, in s."""
    update, spent = trainer.monitor.update, [0.0]

    def timed(*args: Any) -> None:
        spent[0] += seconds(lambda: update(*args), device)

    trainer.monitor.update = timed
    trainer.on_validation_epoch_start()
    with torch.no_grad():
        batches = range(trainer.num_val_iterations_per_epoch)
        probe = (trainer.network, trainer.method.encoder)
        total = seconds(
            lambda: [trainer.evaluation.measure(next(trainer.dataloader_val), *probe) for _ in batches], device
        )
    trainer.monitor.update = update
    finish = seconds(lambda: trainer.monitor.finish(epoch, epoch), device)
    return total - spent[0], spent[0] + finish


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Wall time of a call in s, with the work of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - start


if __name__ == "__main__":
    main()
