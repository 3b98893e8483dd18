"""Barlow twins (arXiv 2103.03230) on weighted rows, the term that E-MIM applies at several scales.

The definition used here (three public implementations disagree): columns are standardised with the *biased* variance over all
rows of all ranks, C = z_a^T z_b / N, and the loss is divided by the width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from emim_nnunet.distributed import all_reduce_sum, standardise


def cross_correlation(rows_a: Tensor, rows_b: Tensor, weight: Tensor) -> Tensor:
    """Cross-correlation matrix of two views over the rows of all ranks.

    Args:
        rows_a: (N, D) float, embeddings of view a.
        rows_b: (N, D) float, the same rows in view b.
        weight: (N,) float >= 0; rows of weight 0 do not count.

    Returns:
        (D, D) float32 with entries in [-1, 1].
    """
    with torch.autocast(rows_a.device.type, enabled=False):
        weight = weight.float()
        z_a = standardise(rows_a.float(), weight)
        z_b = standardise(rows_b.float(), weight)
        count = all_reduce_sum(weight.sum()).clamp_min(1.0)
        return all_reduce_sum((z_a * weight[:, None]).T @ z_b) / count


def barlow_twins_loss(rows_a: Tensor, rows_b: Tensor, weight: Tensor, *, kappa: float = 20.0) -> Tensor:
    """(sum_i (1 - C_ii)^2 + lambda sum_{i != j} C_ij^2) / D with lambda = kappa / (D - 1).

    lambda is tied to the width because the published 5e-3 belongs to D = 8192 (lambda * D = 41); at D = 64 it would leave
    the redundancy term without effect.

    Args:
        rows_a: (N, D) float, embeddings of view a, D >= 2.
        rows_b: (N, D) float, the same rows in view b.
        weight: (N,) float >= 0; rows of weight 0 do not count.
        kappa: Weight of the mean squared off-diagonal correlation against the mean squared on-diagonal term.

    Returns:
        () float32 >= 0.
    """
    correlation = cross_correlation(rows_a, rows_b, weight)
    width = correlation.shape[0]
    diagonal = correlation.diagonal()
    on_diagonal = (1.0 - diagonal).square().sum()
    off_diagonal = correlation.square().sum() - diagonal.square().sum()
    return (on_diagonal + kappa / (width - 1) * off_diagonal) / width
