"""Uniformity and alignment of unit vectors (Wang and Isola, arXiv 2005.10242).

Low alignment alone says nothing (constant features are perfectly aligned), and uniformity hardly changes with *dimensional*
collapse: both are reported beside the spectrum and do not replace it. Features of LeakyReLU networks share a large mean, so
that all of them point the same way; they must be centred before.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def uniformity(rows: Tensor, t: float = 2.0) -> float:
    """Logarithm of the mean over pairs of exp(-t |z - z'|^2) for unit vectors z.

    Args:
        rows: (N, D) float; the function normalises them.
        t: The temperature, > 0; 2 in the paper.

    Returns:
        A number <= 0: 0 = all rows point the same way, about -2 t = -4 = uniform directions in many dimensions. NaN with fewer
        than 2 rows.
    """
    if len(rows) < 2:
        return float("nan")
    unit = F.normalize(rows.double(), dim=1)
    return float(torch.pdist(unit).square().mul(-t).exp().mean().log())


def alignment(rows_a: Tensor, rows_b: Tensor) -> float:
    """Mean squared distance between unit vectors of the same cells in two views.

    Args:
        rows_a: (N, D) float, cells in view a; the function normalises them.
        rows_b: (N, D) float, the same cells in view b.

    Returns:
        A number in [0, 4]: 0 = equal directions, 2 = unrelated ones, 4 = opposite ones. NaN without rows.
    """
    if len(rows_a) == 0:
        return float("nan")
    difference = F.normalize(rows_a.double(), dim=1) - F.normalize(rows_b.double(), dim=1)
    return float(difference.square().sum(1).mean())
