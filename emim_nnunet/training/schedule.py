"""Schedules of the learning rate: linear warm-up, then a cosine (SSL stage) or nnU-Net's polynomial decay (segmentation)."""

from __future__ import annotations

from math import cos, pi

from torch.optim import Optimizer

from emim_nnunet.nnunet.training import PolyLRScheduler


def warmup_length(warmup: int, total: int) -> int:
    """Length of the warm-up in the unit of ``total``: as asked for, but at most a tenth, so that short runs learn as well."""
    return min(warmup, total // 10)


def warmup_cosine_lr(step: int, *, peak: float, warmup: int, total: int) -> float:
    """Linear warm-up to ``peak``, then half a cosine down to 0.

    Args:
        step: Number of the step, from 0.
        peak: The highest rate.
        warmup: Number of steps of the warm-up.
        total: Number of steps of the whole schedule.

    Returns:
        The learning rate of this step, > 0 for step < total.
    """
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * 0.5 * (1.0 + cos(pi * (step - warmup) / max(1, total - warmup)))


class WarmupPolyLRScheduler(PolyLRScheduler):
    """Linear warm-up, then nnU-Net's polynomial decay over the remaining epochs.

    Args:
        optimizer: The optimiser; all its parameter groups get the same rate.
        initial_lr: The highest rate, reached at the end of the warm-up.
        max_steps: Number of epochs of the whole schedule.
        warmup: Number of epochs of the warm-up.
    """

    def __init__(self, optimizer: Optimizer, initial_lr: float, max_steps: int, warmup: int) -> None:
        self.peak, self.warmup = initial_lr, warmup
        super().__init__(optimizer, initial_lr, max_steps - warmup)

    def step(self, current_step: int | None = None) -> None:
        """Set the rate of epoch ``current_step``; None or -1 = the epoch after that of the last such call."""
        if current_step is None or current_step == -1:
            current_step = self.ctr
            self.ctr += 1
        if current_step >= self.warmup:
            super().step(current_step - self.warmup)
            return
        for group in self.optimizer.param_groups:
            group["lr"] = self.peak * (current_step + 1) / (self.warmup + 1)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]
