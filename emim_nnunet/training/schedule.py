"""Learning rates."""

from __future__ import annotations

from math import cos, pi

from torch.optim import Optimizer

from emim_nnunet.nnunet.training import PolyLRScheduler


def warmup_length(warmup: int, total: int) -> int:
    """Length of the warm-up: as asked for, but at most a tenth of the schedule, so that short runs learn as well."""
    return min(warmup, total // 10)


def warmup_cosine_lr(step: int, *, peak: float, warmup: int, total: int) -> float:
    """Linear warm-up to ``peak``, then half a cosine down to 0.

    Args:
        step: From 0.
        peak: Highest rate.
        warmup: Steps of warm-up.
        total: Steps of the whole schedule.

    Returns:
        The rate of this step, > 0 for step < total.
    """
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * 0.5 * (1.0 + cos(pi * (step - warmup) / max(1, total - warmup)))


class WarmupPolyLRScheduler(PolyLRScheduler):
    """Linear warm-up, then nnU-Net's polynomial decay over the remaining epochs.

    Args:
        optimizer: Its groups get the rate.
        initial_lr: Peak rate.
        max_steps: Epochs of the whole schedule.
        warmup: Epochs of warm-up.
    """

    def __init__(self, optimizer: Optimizer, initial_lr: float, max_steps: int, warmup: int) -> None:
        self.peak, self.warmup = initial_lr, warmup
        super().__init__(optimizer, initial_lr, max_steps - warmup)

    def step(self, current_step: int | None = None) -> None:
        """Set the rate of epoch ``current_step``."""
        if current_step is None or current_step == -1:
            current_step = self.ctr
            self.ctr += 1
        if current_step >= self.warmup:
            super().step(current_step - self.warmup)
            return
        for group in self.optimizer.param_groups:
            group["lr"] = self.peak * (current_step + 1) / (self.warmup + 1)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]
