"""Measurements of this package, each in a process of its own: ``own.py TASK JSON_ARGUMENTS``."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from time import perf_counter, process_time, time
from typing import Any

import torch

PLANS = "nnUNetEMIMPlans"


def make_trainer(dataset: str, configuration: str, trainer: str, device: str) -> Any:
    """Make the real trainer for a data set in ``nnUNet_preprocessed``, initialised and ready for steps."""
    from nnunetv2.run.run_training import get_trainer_from_args

    from emim_nnunet.trainer_search import enable_search

    enable_search()
    made = get_trainer_from_args(dataset, configuration, "all", trainer, PLANS, device=torch.device(device))
    made.initialize()
    made.on_epoch_start()
    made.on_train_epoch_start()
    return made


def synthetic_batches(trainer: Any) -> Iterator[dict[str, Any]]:
    """Endless batches of noise, with the keys and the numbering of the loader's batches."""
    batch, channels = trainer.config.batch_size, trainer.num_input_channels
    shape = trainer.method.crop_size(trainer.method_config, trainer.configuration_manager.patch_size)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn((batch, channels, *shape), generator=generator)
    foreground = torch.ones((batch, 1, *shape), dtype=torch.bool)
    first = 0
    while True:
        numbers = torch.arange(first, first + batch)
        present = torch.ones((batch, channels), dtype=torch.bool)
        about = {"index": numbers, "subject": numbers, "present": present, "case": ["noise"] * batch}
        yield {"image": image.clone(), "foreground": foreground.clone()} | about
        first += batch


def peak_bytes(device: str) -> int:
    """Peak memory of this process so far in bytes: on the GPU what torch allocated, on the CPU the resident set."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def step(
    dataset: str,
    configuration: str,
    trainer: str,
    device: str,
    steps: int,
    warmup: int,
    threads: int,
    variant: str = "default",
) -> dict[str, Any]:
    """Measure whole training steps: wall and CPU seconds of each, and the peak memory.

    ``variant`` is ``default``, or some of channels_last, bfloat16 and compile, joined by ``+``.
    """
    torch.set_num_threads(threads)
    made = make_trainer(dataset, configuration, trainer, device)
    if "channels_last" in variant:
        made.network.to(memory_format=torch.channels_last_3d)
    if "bfloat16" in variant:
        made.guarded_step.autocast = lambda: torch.autocast(device, dtype=torch.bfloat16)
    if "compile" in variant:
        made.network = torch.compile(made.network)
    batches = synthetic_batches(made)
    wall, cpu = [], []
    for number in range(warmup + steps):
        batch = next(batches)
        synchronise(device)
        start, start_cpu = perf_counter(), process_time()
        made.train_step(batch)
        synchronise(device)
        if number >= warmup:
            wall.append(perf_counter() - start)
            cpu.append(process_time() - start_cpu)
    parameters = sum(p.numel() for p in made.method.encoder.parameters())
    return {
        "wall": wall,
        "cpu": cpu,
        "peak_bytes": peak_bytes(device),
        "estimated_gigabytes": planned_gigabytes(made),
        "encoder_parameters": parameters,
        "flops": step_flops(made),
    }


def step_flops(trainer: Any) -> int:
    """Number of floating point operations of a step of a trainer's stage."""
    from emim_nnunet.compare.compute import step_flops as count

    plans, method = trainer.plans_manager.plans, type(trainer.method).__name__
    return count(plans, trainer.dataset_json, trainer.configuration_name, method)


def planned_gigabytes(trainer: Any) -> float:
    """Memory in GB that the planner counts for a trainer's stage on a GPU in mixed precision."""
    from emim_nnunet.planners.memory import ssl_gigabytes

    plan = trainer.configuration_manager.configuration
    return ssl_gigabytes(type(trainer.method), plan, trainer.block, trainer.num_input_channels)


def convolutions(dataset: str, configuration: str, device: str, threads: int) -> dict[str, Any]:
    """Measure the operations per second of a 3x3x3 convolution of each encoder stage, in the forward pass.

    The precision is that of training: bfloat16 on a GPU, float32 on the CPU. The fastest of five runs counts.
    """
    from emim_nnunet.networks import stage_grids

    torch.set_num_threads(threads)
    made = make_trainer(dataset, configuration, "nnUNetTrainerMIMPretrain", device)
    encoder, dtype = made.method.encoder, torch.bfloat16 if device == "cuda" else torch.float32
    rates = []
    for grid, width in zip(
        stage_grids(encoder.strides, made.configuration_manager.patch_size), encoder.output_channels, strict=True
    ):
        image = torch.randn((made.config.batch_size, width, *grid), device=device, dtype=dtype)
        layer = torch.nn.Conv3d(width, width, 3, padding=1, device=device, dtype=dtype)
        seconds = []
        with torch.no_grad():
            for _ in range(6):
                synchronise(device)
                start = perf_counter()
                layer(image)
                synchronise(device)
                seconds.append(perf_counter() - start)
        rates.append(2 * layer.weight.numel() * image.shape[0] * image[0, 0].numel() / min(seconds[1:]))
    return {"flops_per_second": rates}


def parts(dataset: str, configuration: str, trainer: str, device: str, steps: int, threads: int) -> dict[str, Any]:
    """Measure the seconds of each part of a step, in each step after one for warming up.

    Each part waits for the device, so the sum is larger than the time of an undisturbed step.
    """
    torch.set_num_threads(threads)
    made = make_trainer(dataset, configuration, trainer, device)
    spent: dict[str, float] = {}
    rows = []
    wrap_parts(made, spent, device)
    batches = synthetic_batches(made)
    for _ in range(steps + 1):
        spent.clear()
        batch = next(batches)
        with clocked(spent, "whole step", device):
            made.train_step(batch)
        rows.append(dict(spent))
    return {"parts": rows[1:]}


def wrap_parts(trainer: Any, spent: dict[str, float], device: str) -> None:
    """Wrap the parts of a trainer's step so that each adds its time in s to ``spent``."""
    method = trainer.method
    targets = [
        (trainer, "_inputs", "augmentation and masks"),
        (trainer.guarded_step, "_backward", "backward"),
        (trainer.guarded_step, "_optimise", "clipping and optimiser"),
        (method, "forward", "forward"),
        (getattr(method, "modelling", None), "encode", "forward: masking and encoder"),
        (method, "_encode_original", "forward: original view"),
        (getattr(method, "decoder", None), "decode", "forward: decoder"),
        (getattr(method, "pyramid", None), "losses", "forward: PBT"),
        (method, "_run_network", "forward: encoder and decoder of all levels"),
        (method, "_alignment", "forward: alignment"),
        (method, "_view", "forward: views"),
        (method, "_local", "forward: regions"),
        (method, "after_step", "momentum, queue, whitening"),
    ]
    for owner, name, label in targets:
        if hasattr(owner, name):
            setattr(owner, name, clocked_call(getattr(owner, name), spent, label, device))


def clocked_call(call: Callable[..., Any], spent: dict[str, float], label: str, device: str) -> Callable[..., Any]:
    """A function that does the same as ``call`` and adds its time in s to ``spent[label]``."""

    def timed(*args: Any, **kwargs: Any) -> Any:
        with clocked(spent, label, device):
            return call(*args, **kwargs)

    return timed


@contextmanager
def clocked(spent: dict[str, float], label: str, device: str) -> Iterator[None]:
    """Add the wall time of a ``with`` block in s to ``spent[label]``."""
    synchronise(device)
    start = perf_counter()
    yield
    synchronise(device)
    spent[label] = spent.get(label, 0.0) + perf_counter() - start


def synchronise(device: str) -> None:
    """Wait until the GPU has done its work; does nothing on other devices."""
    if device == "cuda":
        torch.cuda.synchronize()


def loader(dataset: str, configuration: str, patches: int, threads: int) -> dict[str, Any]:
    """Measure in one process the seconds per crop of reading, and of what the device then does in training (here the CPU)."""
    torch.set_num_threads(threads)
    os.environ["nnUNet_n_proc_DA"] = "0"
    made = make_trainer(dataset, configuration, "nnUNetTrainerMIMPretrain", "cpu")
    batches, _ = made.get_dataloaders()
    read, augment = [], []
    size = made.config.batch_size
    next(batches)
    for _ in range(-(-patches // size)):
        start = perf_counter()
        batch = next(batches)
        middle = perf_counter()
        made._training_inputs(batch)
        read.append((middle - start) / size)
        augment.append((perf_counter() - middle) / size)
    return {"read": read, "augment": augment}


def start(arguments: list[str]) -> dict[str, Any]:
    """Measure the seconds from the command to the first training step, whose batch is loaded by then.

    Args:
        arguments: The arguments of ``emim_train``.
    """
    begun = float(os.environ["BENCHMARK_START"])
    from emim_nnunet.cli.train import main
    from emim_nnunet.training.ssl_trainer import SSLTrainer

    def first_step(self: Any, batch: dict) -> None:
        report({"seconds": time() - begun})
        os.killpg(os.getpgrp(), signal.SIGKILL)  # the workers of the loader too, which keep our output open

    SSLTrainer.train_step = first_step
    main(arguments)
    raise RuntimeError("no training step was made")


def epoch(dataset: str, configuration: str, trainer: str, device: str, steps: int, workers: int) -> dict[str, Any]:
    """Measure ``steps`` with the real loader: seconds, patches per second, and the share of time without work on the device."""
    os.environ["nnUNet_n_proc_DA"] = str(workers)
    made = make_trainer(dataset, configuration, trainer, device)
    batches, _ = made.get_dataloaders()
    for batch in islice(batches, 3):
        made.train_step(batch)
    synchronise(device)
    waited, busy = 0.0, []
    begin = perf_counter()
    for _ in range(steps):
        before = perf_counter()
        batch = next(batches)
        waited += perf_counter() - before
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device == "cuda" else None
        if events:
            events[0].record()
        made.train_step(batch)
        if events:
            events[1].record()
            busy.append(events)
    synchronise(device)
    total = perf_counter() - begin
    batches.close()
    worked = sum(a.elapsed_time(b) for a, b in busy) / 1000 if busy else total - waited
    return {"seconds": total, "patches_per_second": steps * made.config.batch_size / total, "idle": 1 - worked / total}


def growth(dataset: str, configuration: str, trainer: str, steps: int, threads: int) -> dict[str, Any]:
    """Measure a stage with many cases: seconds from building the trainer to the end of the first step, per step, and memory."""
    torch.set_num_threads(threads)
    begin = perf_counter()
    made = make_trainer(dataset, configuration, trainer, "cpu")
    made.on_train_start()
    batches = made.dataloader_train
    made.train_step(next(batches))
    started = perf_counter() - begin
    seconds = []
    for _ in range(steps):
        before = perf_counter()
        made.train_step(next(batches))
        seconds.append(perf_counter() - before)
    made.dataloader_train.close()
    made.dataloader_val.close()
    return {"start": started, "steps": seconds, "peak_bytes": peak_bytes("cpu"), "cases": len(made.cases.training)}


def scaling(
    dataset: str, configuration: str, trainer: str, steps: int, threads: int, ranks: int, batch_size: int
) -> dict[str, Any]:
    """Measure steps of ``ranks`` gloo processes with ``batch_size`` samples over all of them: seconds of the first rank."""
    with tempfile.TemporaryDirectory() as folder:
        store, out = Path(folder) / "store", Path(folder) / "out.json"
        arguments = (ranks, str(store), str(out), dataset, configuration, trainer, steps, threads, batch_size)
        torch.multiprocessing.spawn(_rank, arguments, nprocs=ranks)
        return {"seconds": json.loads(out.read_text())}


def _rank(
    rank: int,
    ranks: int,
    store: str,
    out: str,
    dataset: str,
    configuration: str,
    trainer: str,
    steps: int,
    threads: int,
    batch_size: int,
) -> None:
    torch.set_num_threads(threads)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    made = make_trainer(dataset, configuration, trainer, "cpu")
    made.config = replace(made.config, batch_size=batch_size // ranks)  # the share of this rank
    batches = synthetic_batches(made)
    seconds = []
    for batch in islice(batches, steps + 1):
        torch.distributed.barrier()
        start = perf_counter()
        made.train_step(batch)
        seconds.append(perf_counter() - start)
    if rank == 0:
        Path(out).write_text(json.dumps(seconds[1:]))
    torch.distributed.destroy_process_group()


def report(result: dict[str, Any]) -> None:
    """Print a result in the form in which the parent process reads it."""
    print("RESULT " + json.dumps(result), flush=True)


TASKS = {t.__name__: t for t in (step, convolutions, parts, loader, start, epoch, growth, scaling)}
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    report(TASKS[sys.argv[1]](**json.loads(sys.argv[2])))
