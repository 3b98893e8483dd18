"""Skill of a reconstruction over the best constant prediction.

Complete collapse (arXiv 2407.10377) means that the output ignores the input. The best constant under squared error is the
mean of the masked targets, so the *collapsed loss* is their variance, and skill = 1 - loss / collapsed loss: 0 = collapsed,
1 = perfect, below 0 = worse than a constant.
"""

from __future__ import annotations

import torch
from torch import Tensor


def collapsed_loss(sums: Tensor) -> Tensor:
    """Loss of the best constant prediction, from sums over the masked targets.

    Args:
        sums: (..., 4): count, squared error, target, squared target (see :func:`emim_nnunet.losses.masked_sums`).

    Returns:
        (...) float64; NaN where nothing was counted.
    """
    count, _, total, squares = sums.double().unbind(-1)
    return (squares / count - (total / count).square()).clamp_min(0.0)


def skill(sums: Tensor) -> Tensor:
    """1 - loss / collapsed loss.

    Args:
        sums: (..., 4) as in :func:`collapsed_loss`.

    Returns:
        (...) float64 in (-inf, 1]; NaN where nothing was counted or the targets are constant.
    """
    reference = collapsed_loss(sums)
    loss = sums[..., 1].double() / sums[..., 0].double()
    return torch.where(reference > 0, 1.0 - loss / reference, torch.nan)


def skill_per_modality(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Skill over one constant per modality, for each modality and pooled.

    Args:
        sums: (C, 4) as in :func:`collapsed_loss`.

    Returns:
        (C,) and () float64. The pooled value compares the summed loss with the summed loss of C constants.
    """
    sums = sums.double()
    count = sums[:, 0]
    reference = torch.where(count > 0, collapsed_loss(sums) * count, 0.0).sum()
    pooled = torch.where(reference > 0, 1.0 - sums[:, 1].sum() / reference, torch.nan)
    return skill(sums), pooled
