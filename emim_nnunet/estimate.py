"""An estimate of what a planned run costs on this machine, from a few measured steps with the real data."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import nn

from emim_nnunet.datasets.preprocessed import without_code
from emim_nnunet.errors import UserError
from emim_nnunet.nnunet.training import nnUNetTrainer
from emim_nnunet.planners.memory import segmentation_gigabytes, ssl_gigabytes
from emim_nnunet.training.finetune_trainer import FinetuneTrainer
from emim_nnunet.training.ssl_trainer import SSLTrainer

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

WARMUP_STEPS = 2
DRAINED_BATCHES = 32  # more batches than any loader keeps ready
# checkpoints that exist at once: the two newest and the next one while it is written; nnU-Net: latest, best, final
SSL_CHECKPOINTS, NNUNET_CHECKPOINTS = 3, 3


@dataclass(frozen=True)
class StageEstimate:
    """The cost of one stage.

    Attributes:
        stage: ``SSL stage`` or ``segmentation``.
        trainer: Class name of the trainer.
        device: Kind of the device that it was measured on.
        batch_size: Number of samples per step.
        num_epochs: Number of planned epochs.
        num_iterations_per_epoch: Number of planned steps per epoch.
        first_step_seconds: Time of the first step in s, with compilation where there is one.
        step_seconds: Median time of a step in s, without waiting for data.
        loading_seconds: Mean time in s in which the workers make a batch when nothing else happens.
        validation_seconds: Time of the validation of an epoch in s.
        patches_per_second: Samples per second in training, limited by the slower one of step and loading.
        hours: Time of the whole stage in h.
        peak_memory_gigabytes: Peak memory in 1e9 bytes: on a GPU what torch allocated, otherwise that of the process, which
            includes an earlier stage; None where the system does not tell (Windows without a GPU).
        counted_memory_gigabytes: Memory in 1e9 bytes that the planner counts with for a GPU, see
            :mod:`emim_nnunet.planners.memory`.
        checkpoint_gigabytes: Size of one checkpoint in 1e9 bytes.
        disk_gigabytes: Size in 1e9 bytes of all checkpoints that are kept at the same time.
    """

    stage: str
    trainer: str
    device: str
    batch_size: int
    num_epochs: int
    num_iterations_per_epoch: int
    first_step_seconds: float
    step_seconds: float
    loading_seconds: float
    validation_seconds: float
    patches_per_second: float
    hours: float
    peak_memory_gigabytes: float | None
    counted_memory_gigabytes: float
    checkpoint_gigabytes: float
    disk_gigabytes: float

    def lines(self) -> list[str]:
        """Lines of text that show the estimate to people."""
        slow = self.loading_seconds > self.step_seconds
        loading = (
            f"{self.loading_seconds:.2f} s a batch: the device will WAIT for data; more workers (nnUNet_n_proc_DA) or a faster "
            f"disk help"
            if slow
            else f"{self.loading_seconds:.2f} s a batch, hidden behind the step"
        )
        peak = "not measured" if self.peak_memory_gigabytes is None else f"{self.peak_memory_gigabytes:.1f} GB"
        return [
            f"{self.stage} ({self.trainer}, {self.device}): {self.hours:.1f} h = {self.num_epochs} epochs of "
            f"{self.num_iterations_per_epoch} steps of {self.batch_size} patches",
            f"  step {self.step_seconds:.2f} s (the first {self.first_step_seconds:.1f} s), "
            f"{self.patches_per_second:.2f} patches/s; validation {self.validation_seconds:.0f} s an epoch",
            f"  loading {loading}",
            f"  peak memory {peak} (counted for a GPU by the planner: "
            f"{self.counted_memory_gigabytes:.1f} GB); checkpoint {self.checkpoint_gigabytes:.2f} GB, at most "
            f"{self.disk_gigabytes:.2f} GB at once",
        ]

    def to_dict(self) -> dict[str, Any]:
        """The estimate as plain values, for JSON."""
        return asdict(self)


def estimate(trainer: nnUNetTrainer, steps: int) -> Iterator[StageEstimate]:
    """Measure the stages of a trainer: the SSL stage, the segmentation, or both.

    Args:
        trainer: The trainer as nnU-Net makes it, not initialised; its output folder should be a temporary one.
        steps: Number of training steps to measure in each stage, after two steps of warming up.

    Yields:
        One estimate per stage, in the order in which they run.

    Raises:
        UserError: The memory of the device does not suffice; the message says what to change.
    """
    if isinstance(trainer, FinetuneTrainer) and trainer.runs_ssl_stage:
        first = trainer.ssl_trainer_class(
            plans=trainer.plans_manager.plans | {"continue_training": False},
            configuration=trainer.configuration_name,
            fold=trainer.fold,
            dataset_json=trainer.dataset_json,
            device=trainer.device,
        )
        yield _measure(first, steps)
        del first.network, first.optimizer
        if trainer.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    yield _measure(trainer, steps)


def _measure(trainer: nnUNetTrainer, steps: int) -> StageEstimate:
    try:
        trainer.initialize()
        if trainer.dataset_class is not None:
            trainer.dataset_class = without_code(trainer.dataset_class)
        with _loaders(trainer) as (training, validation):
            return _measure_steps(trainer, training, validation, steps)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the memory of the device does not suffice for {type(trainer).__name__} ({str(error).splitlines()[0]}): lower "
            f"batch_size in the emim block (SSL stage) or the configuration (segmentation) of the plans, or plan with a "
            f"smaller -gpu_memory_target"
        ) from error


@contextmanager
def _loaders(trainer: nnUNetTrainer) -> Iterator[tuple[Iterator, Iterator]]:
    """Give the training and validation batches, and end their workers after the ``with`` block."""
    loaders = trainer.get_dataloaders()
    try:
        yield loaders
    finally:
        for loader in loaders:
            end = getattr(loader, "close", None) or getattr(loader, "_finish", None)  # ours; nnU-Net's with workers
            if end is not None:
                end()


def _measure_steps(trainer: nnUNetTrainer, training: Iterator, validation: Iterator, steps: int) -> StageEstimate:
    is_ssl = isinstance(trainer, SSLTrainer)
    if is_ssl:
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
    trainer.network.train()
    taken = []
    for _ in range(WARMUP_STEPS + steps):
        batch = next(training)
        taken.append(_seconds(trainer, partial(trainer.train_step, batch)))
    # first take the batches that the workers have made already, then measure how fast they make new ones
    loading = [_seconds(trainer, partial(next, training)) for _ in range(2 * DRAINED_BATCHES)][DRAINED_BATCHES:]
    trainer.network.eval()
    if is_ssl:
        trainer.monitor.start()
    with torch.no_grad():
        checked = [_seconds(trainer, partial(trainer.validation_step, next(validation))) for _ in range(2)]
    step, load = median(taken[WARMUP_STEPS:]), sum(loading) / len(loading)
    validate = min(checked) * trainer.num_val_iterations_per_epoch
    paced = max(step, load)
    batch_size = trainer.config.batch_size if is_ssl else trainer.configuration_manager.batch_size
    checkpoint = _checkpoint_bytes(trainer)
    return StageEstimate(
        stage="SSL stage" if is_ssl else "segmentation",
        trainer=type(trainer).__name__,
        device=trainer.device.type,
        batch_size=batch_size,
        num_epochs=trainer.num_epochs,
        num_iterations_per_epoch=trainer.num_iterations_per_epoch,
        first_step_seconds=taken[0],
        step_seconds=step,
        loading_seconds=load,
        validation_seconds=validate,
        patches_per_second=batch_size / paced,
        hours=trainer.num_epochs * (trainer.num_iterations_per_epoch * paced + validate) / 3600,
        peak_memory_gigabytes=_peak_gigabytes(trainer.device),
        counted_memory_gigabytes=_counted_gigabytes(trainer),
        checkpoint_gigabytes=checkpoint / 1e9,
        disk_gigabytes=checkpoint * (SSL_CHECKPOINTS if is_ssl else NNUNET_CHECKPOINTS) / 1e9,
    )


def _seconds(trainer: nnUNetTrainer, call: Any) -> float:
    """Wall time of a call in s, with the work of the device."""
    start = perf_counter()
    call()
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - start


def _counted_gigabytes(trainer: nnUNetTrainer) -> float:
    plan, channels = trainer.configuration_manager.configuration, trainer.num_input_channels
    if isinstance(trainer, SSLTrainer):
        return ssl_gigabytes(trainer.method_class, plan, trainer.block, channels)
    return segmentation_gigabytes(plan, channels, trainer.label_manager)


def _peak_gigabytes(device: torch.device) -> float | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # macOS reports bytes, other systems KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _checkpoint_bytes(trainer: nnUNetTrainer) -> int:
    """Number of bytes of the weights, each stored once, and of the state of the optimiser."""
    network: nn.Module = trainer.network
    states = (v for state in trainer.optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor))
    return sum(t.numel() * t.element_size() for t in chain(network.parameters(), network.buffers(), states))
