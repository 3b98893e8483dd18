"""Fine-tuning of a classifier on random crops, each with the class of its case."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from emim_nnunet.checkpoints.io import FORMAT_VERSION, load_checkpoint, save_checkpoint
from emim_nnunet.classification.model import CaseClassifier
from emim_nnunet.classification.regression import squared_error
from emim_nnunet.classification.settings import Settings
from emim_nnunet.dataloading.batch import Augmentation, prepare
from emim_nnunet.dataloading.crops import CropDataset
from emim_nnunet.dataloading.loader import BatchNumbers, CropBatches
from emim_nnunet.datasets.dataset import PreprocessedDataset
from emim_nnunet.distributed import all_reduce_sum, is_distributed, rank, world_size
from emim_nnunet.errors import EXIT_INTERRUPTED, UserError
from emim_nnunet.nnunet.training import get_allowed_n_proc_DA
from emim_nnunet.training.faults import when_there_is_space
from emim_nnunet.training.interruption import Interruption, outlive_signals
from emim_nnunet.training.schedule import warmup_cosine_lr
from emim_nnunet.training.step import GuardedStep, SkippedSteps

logger = logging.getLogger(__name__)
UNFINISHED, UNFINISHED_FORMAT = "unfinished.pth", "emim_nnunet.classifier_training"
GRADIENT_CLIP = 1.0
MAX_SKIPPED_STEPS = 5
LOOK_EVERY = 50  # steps between two checks for gradients that were not finite; each check waits for the device


@dataclass(frozen=True)
class _Output:
    loss: Tensor


class Finetuning:
    """Trains with AdamW on random crops; saves a state every few minutes and when it is asked to stop.

    In a process group each process takes a share of each batch, and the result does not depend on the number of processes.

    Args:
        model: The classifier, on ``device``.
        data: The data set that the cases belong to.
        cases: Ids of the N cases to learn from.
        numbers: (N, targets) float, the class numbers of the cases, -1 = unknown, or standardised numbers, NaN = unknown.
        settings: Learning rate, number of steps, batch size, seed and so on.
        device: The device to train on.
        output: The folder in which the state is saved; it must exist.
        about: Plain values that describe the training; a state of a training with other values (``versions`` aside) is refused.
    """

    def __init__(
        self,
        model: CaseClassifier,
        data: PreprocessedDataset,
        cases: Sequence[str],
        numbers: np.ndarray,
        settings: Settings,
        device: torch.device,
        output: Path,
        about: dict[str, Any],
    ) -> None:
        if settings.batch_size < world_size():
            raise UserError(f"--batch_size {settings.batch_size}: {world_size()} processes need at least one crop each")
        self.model, self.data, self.settings, self.device = model, data, settings, device
        self.cases, self.output, self.about = list(cases), output, about
        groups = [
            {"params": list(model.encoder.parameters()), "factor": 1.0},
            {"params": list(model.heads.parameters()), "factor": 10.0},
        ]
        fused = device.type == "cuda"  # only on CUDA may the check of the gradient wait until later
        self.optimizer = torch.optim.AdamW(
            groups, lr=settings.initial_lr, weight_decay=settings.weight_decay, fused=fused
        )
        self.network: nn.Module = model
        if is_distributed():
            self.network = DistributedDataParallel(model, [device.index] if device.type == "cuda" else None)
        self.skipped = SkippedSteps(output / "non_finite", MAX_SKIPPED_STEPS, lambda about: {})
        self.step = GuardedStep(self.optimizer, self.network, device, gradient_clip=GRADIENT_CLIP, skipped=self.skipped)
        self._classes = {case: torch.from_numpy(row).float() for case, row in zip(cases, numbers, strict=True)}
        self._weights = [
            class_weights(column, number, settings).to(device)
            for column, number in zip(numbers.T, model.num_classes, strict=True)
        ]
        self._interruption = Interruption()

    def run(self, *, resume: bool, checkpoint_minutes: float) -> None:
        """Train until all steps are done.

        Args:
            resume: Whether to go on from the state in the folder.
            checkpoint_minutes: Least time between two saved states, in minutes.

        Raises:
            UserError: The state belongs to another training, or loss or gradient was not finite in too many steps.
            SystemExit: SIGTERM or SIGINT came; the code is :data:`EXIT_INTERRUPTED`, and a state has been written.
        """
        first = self._load_state() if resume else 0
        last, total = monotonic(), self.settings.steps
        bar = tqdm(
            range(first, total),
            desc="Fine-tuning",
            initial=first,
            total=total,
            disable=None if rank() == 0 else True,
        )
        self.model.train()
        batches = self._batches(first)
        with self._interruption:
            try:
                for step, batch in zip(bar, batches, strict=False):
                    self._take_step(step, batch)
                    if (step + 1) % LOOK_EVERY == 0 or step + 1 == total:
                        self.skipped.read_gradients()
                        self._stop_if_too_many_were_skipped(step + 1)
                    if self._interruption.asked():
                        self._stop(step + 1)
                    if monotonic() - last >= 60 * checkpoint_minutes:
                        self._save_state(step + 1)
                        last = monotonic()
            finally:
                batches.close()
        self.model.eval()

    def _batches(self, first: int) -> CropBatches:
        cases = [self.data.cases[case] for case in self.cases]
        return CropBatches(
            CropDataset(cases, self.data.manager.patch_size, self.settings.seed),
            BatchNumbers(self.settings.batch_size, first_step=first, rank=rank(), world_size=world_size()),
            num_workers=get_allowed_n_proc_DA(),
            pin_memory=self.device.type == "cuda",
            start_worker=outlive_signals,
        )

    def _take_step(self, step: int, batch: dict[str, Any]) -> None:
        settings = self.settings
        rate = warmup_cosine_lr(step, peak=settings.initial_lr, warmup=settings.steps // 20, total=settings.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        zero_outside = self.data.manager.use_mask_for_norm
        image, foreground = prepare(batch, self.device, zero_outside, Augmentation(settings.seed))
        targets = torch.stack([self._classes[case] for case in batch["case"]]).to(self.device)

        def forward() -> _Output:
            logits = self.network(image, foreground)
            losses = [
                squared_error(output, target) if output.shape[1] == 1 else cross_entropy(output, target.long(), weight)
                for output, target, weight in zip(logits, targets.T, self._weights, strict=True)
            ]
            return _Output(torch.stack(losses).mean())

        about = {"epoch": 0, "step": step, "rank": rank(), "cases": list(batch["case"])}
        about |= {"index": batch["index"].tolist(), "seed": settings.seed}
        if self.step.take(forward, about) is None:
            logger.warning("WARNING: %s", self.skipped.describe(0))
            self._stop_if_too_many_were_skipped(step + 1)

    def _stop_if_too_many_were_skipped(self, done: int) -> None:
        if self.skipped.too_many():
            self._save_state(done)
            raise UserError(
                f"loss or gradient not finite in {self.skipped.count} of {done} steps, more than {MAX_SKIPPED_STEPS} (cases "
                f"{', '.join(self.skipped.cases)}): the weights are those from before them. Look at these cases, or "
                f"train with a lower --lr into another folder"
            )

    def _stop(self, done: int) -> NoReturn:
        """Save a state and exit, in all processes."""
        self._save_state(done)
        self._interruption.wait_for_all()
        cause = self._interruption.signal or "a signal to another process"
        logger.info("Stopped by %s after step %d: --c continues (exit code %d)", cause, done, EXIT_INTERRUPTED)
        raise SystemExit(EXIT_INTERRUPTED)

    def _save_state(self, done: int) -> None:
        """Save the state after ``done`` steps, in the first process only; waits while the disk is full."""
        if rank() != 0:
            return
        content = {
            "format": UNFINISHED_FORMAT,
            "format_version": FORMAT_VERSION,
            "step": done,
            "network_weights": self.model.state_dict(),
            "optimizer_state": self.optimizer.state_dict(),
            "grad_scaler_state": self.step.scaler.state_dict() if self.step.scaler else None,
            "about": self.about,
        }
        path, interruption = self.output / UNFINISHED, self._interruption
        when_there_is_space(
            lambda: save_checkpoint(content, path), self.output, logger.warning, lambda: interruption.signal is not None
        )

    def _load_state(self) -> int:
        """Load the state and return the number of the step to go on with."""
        path, about = self.output / UNFINISHED, self.about
        state = load_checkpoint(path, formats=(UNFINISHED_FORMAT,))
        different = sorted(key for key in about if key != "versions" and state["about"].get(key) != about[key])
        if different:
            raise UserError(f"{path} is of a training with another value of {', '.join(different)}")
        self.model.load_state_dict(state["network_weights"])
        self.model.to(self.device)
        self.optimizer.load_state_dict(state["optimizer_state"])
        if self.step.scaler and state.get("grad_scaler_state"):
            self.step.scaler.load_state_dict(state["grad_scaler_state"])
        return state["step"]


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Cross entropy weighted by class and divided by the number of known targets, over all processes.

    torch would divide by the sum of the weights, which undoes them in batches of a single class.

    Args:
        logits: (B, classes) float.
        target: (B,) int64 class numbers, -1 = unknown.
        weight: (classes,) float, the weight of each class.

    Returns:
        () float; 0 where no target is known.
    """
    total = all_reduce_sum(F.cross_entropy(logits, target, weight, ignore_index=-1, reduction="sum"))
    return total / all_reduce_sum((target >= 0).sum().to(total.dtype)).clamp_min(1)


def class_weights(column: np.ndarray, num_classes: int, settings: Settings) -> Tensor:
    """Weight n / (classes x n_k) for each class k, which is 1 on average over the cases; 1 for classes without a case.

    Args:
        column: (N,) class numbers of a target, -1 = unknown.
        num_classes: Number of classes of the target; 1 = it is a number.
        settings: Settings; without ``class_weights`` all weights are 1.

    Returns:
        (num_classes,) float32.
    """
    if not settings.class_weights or num_classes == 1:
        return torch.ones(num_classes)
    counts = np.bincount(column[column >= 0].astype(np.int64), minlength=num_classes)
    present = (counts > 0).sum()
    return torch.from_numpy(np.where(counts > 0, counts.sum() / (present * np.maximum(counts, 1)), 1.0)).float()
