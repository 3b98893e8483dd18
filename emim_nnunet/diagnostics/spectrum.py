"""Dimensional collapse: the spectrum of the covariance of feature rows, accumulated without storing rows.

A row is the feature vector of one cell of one patch (see :func:`foreground_rows`). All statistics are float64 and centred. NaN
in a row makes everything that is computed from it NaN.

One definition of *effective rank* is used throughout: exp of the entropy of p = s / sum(s), where s are the **singular
values** of the centred rows, i.e. square roots of the eigenvalues of the covariance (Roy and Vetterli, EUSIPCO 2007).
Computing p from the eigenvalues gives another, smaller number; the *participation ratio* is reported for that view.
Rank is a diagnostic, not a quality: an untrained network has a high one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emim_nnunet.diagnostics.reconstruction import to_float64
from emim_nnunet.masking import foreground_cells, voxels_to_cells

ROWS_PER_CHANNEL = 10  # with fewer rows per channel, even isotropic data look collapsed
DEAD = 1e-4  # relative to the median standard deviation of the channels
ROUNDING = 1e-7  # relative precision of float32
NULL_SEED = 0


def cell_grid(stage_grid: Sequence[int], mask_grid: Sequence[int]) -> tuple[int, ...]:
    """Grid on which a stage is sampled, per axis: the mask's if it divides the stage's grid, otherwise the stage's own."""
    return tuple(m if s % m == 0 else s for s, m in zip(stage_grid, mask_grid, strict=True))


def foreground_rows(features: Tensor, foreground: Tensor, mask_grid: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Average features over cells, and take the cells that lie in the body.

    Args:
        features: (B, C, *S) float, output of a stage.
        foreground: (B, 1, *P) bool, True inside the body.
        mask_grid: Cells of the mask per axis.

    Returns:
        The rows (N, C) float64, one per cell, and ``present`` (B, cells) bool, True for the cells (row-major) that they belong
        to.
    """
    grid = cell_grid(features.shape[2:], mask_grid)
    present = foreground_cells(foreground, grid).flatten(1)
    cells = to_float64(voxels_to_cells(features.float(), grid)).flatten(2).transpose(1, 2)
    return cells[present.to(cells.device)], present


@dataclass
class CovarianceSums:
    """Count, mean and scatter of rows. Parts merge exactly (Chan et al. 1983), so neither batches nor ranks matter.

    Attributes:
        count: Number N of rows.
        mean: (C,) float64, the mean of the rows.
        scatter: (C, C) float64, the sum over rows of the outer products of deviations from the mean.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> CovarianceSums:
        """Compute the sums of rows (N, C), on the CPU."""
        rows = to_float64(rows).cpu()
        mean = rows.mean(0) if len(rows) else torch.zeros(rows.shape[1], dtype=torch.float64)
        centred = rows - mean
        return cls(len(rows), mean, centred.T @ centred)

    def merged(self, other: CovarianceSums) -> CovarianceSums:
        """The sums of the rows of both."""
        count = self.count + other.count
        if count == 0:
            return self
        step = other.mean - self.mean
        mean = self.mean + step * (other.count / count)
        between = torch.outer(step, step) * (self.count * other.count / count)
        return CovarianceSums(count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance (C, C) float64; NaN with fewer than two rows."""
        return self.scatter / (self.count - 1) if self.count > 1 else torch.full_like(self.scatter, torch.nan)


def eigenvalues(covariance: Tensor) -> Tensor:
    """Compute eigenvalues in descending order; rounding errors below 0 are set to 0.

    Args:
        covariance: (C, C) float64, symmetric.

    Returns:
        (C,) float64; all NaN when an entry is not finite.
    """
    if not torch.isfinite(covariance).all():
        return torch.full(covariance.shape[:1], torch.nan, dtype=torch.float64)
    return torch.linalg.eigvalsh(covariance).flip(0).clamp_min(0.0)


def correlation(covariance: Tensor) -> Tensor:
    """Compute the correlation matrix; rows and columns of channels without variance are 0.

    Args:
        covariance: (C, C) float64, symmetric.

    Returns:
        (C, C) float64 with entries in [-1, 1].
    """
    std = covariance.diagonal().clamp_min(0.0).sqrt()
    scale = torch.where(std > 0, 1.0 / std, torch.where(std == 0, 0.0, torch.nan))
    return covariance * torch.outer(scale, scale)


def _shares(values: Tensor) -> Tensor:
    total = values.sum()
    return values / total if total > 0 or torch.isnan(total) else torch.full_like(values, torch.nan)


def effective_rank(values: Tensor) -> float:
    """Effective rank: exp of the entropy of the singular values, a number in 1..C.

    Args:
        values: (C,) float64, eigenvalues of a covariance.

    Returns:
        The effective rank; NaN when all eigenvalues are 0 or one is NaN.
    """
    p = _shares(values.sqrt())
    return float(torch.exp(-torch.special.xlogy(p, p).sum()))


def participation_ratio(values: Tensor) -> float:
    """Participation ratio (sum l)^2 / sum l^2 of the eigenvalues l, a number in 1..C; NaN when undefined.

    It is far more sensitive to one dominant direction than the effective rank.

    Args:
        values: (C,) float64, eigenvalues of a covariance.
    """
    return float(1.0 / _shares(values).square().sum())


def top_share(values: Tensor) -> float:
    """Share of the variance that lies in the first direction, in [1/C, 1]; NaN when undefined.

    Args:
        values: (C,) float64, eigenvalues of a covariance, descending.
    """
    return float(_shares(values)[0])


def directions_for(values: Tensor, share: float = 0.99) -> float:
    """Least number of directions that hold this share of the variance ("k99" for 99 %), in 1..C; NaN when undefined.

    Args:
        values: (C,) float64, eigenvalues of a covariance, descending.
        share: Share of the variance, in (0, 1).
    """
    cumulative = _shares(values).cumsum(0)
    if torch.isnan(cumulative).any():
        return float("nan")
    return float((cumulative < share - 1e-12).sum() + 1)


def dead_channels(sums: CovarianceSums) -> int:
    """Count constant channels.

    Their standard deviation is at most 1e-4 of the median one, or at most the rounding error of their mean in float32.

    Args:
        sums: The sums of the rows.
    """
    std = sums.covariance.diagonal().clamp_min(0.0).sqrt()
    return int(((std <= DEAD * std.median()) | (std <= ROUNDING * sums.mean.abs())).sum())


def isotropic_eigenvalues(num_rows: int, num_channels: int) -> Tensor:
    """Spectrum of *uncorrelated* channels with a number of rows: it falls too, and more steeply with fewer rows.

    Drawn once from the Wishart distribution by Bartlett's decomposition with a fixed seed.

    Args:
        num_rows: Number N of rows, at least 2.
        num_channels: Number C of channels.

    Returns:
        (C,) float64, eigenvalues of a covariance, descending; about 1 on average.
    """
    rng = np.random.default_rng([NULL_SEED, num_rows, num_channels])
    degrees = num_rows - 1
    if degrees < num_channels:  # Bartlett needs at least as many degrees as channels
        rows = torch.from_numpy(rng.standard_normal((degrees, num_channels)))
        return eigenvalues(rows.T @ rows / degrees)
    factor = np.tril(rng.standard_normal((num_channels, num_channels)), -1)
    factor[np.diag_indices(num_channels)] = np.sqrt(rng.chisquare(degrees - np.arange(num_channels)))
    root = torch.from_numpy(factor)
    return eigenvalues(root @ root.T / degrees)


def stage_scores(sums: CovarianceSums) -> dict[str, Any]:
    """Compute all scores of the spectrum of one stage.

    Args:
        sums: The sums of the rows of the stage.

    Returns:
        ``count`` and ``channels``; ``status`` ``ok``, or ``insufficient`` with fewer than 10 rows per channel, where no
        verdict is given; ``effective_rank``, ``participation_ratio``, ``top_share``, ``k99``, ``dead_channels``; ``trace``
        (total variance) and ``variation`` (its share of the mean squared norm: 0 = constant features);
        ``correlation_rank`` and ``correlation_ratio``, effective rank and participation ratio of the correlation matrix,
        which no single loud channel dominates; ``spectrum``, shares of the variance in descending order.
    """
    covariance = sums.covariance
    values, standardised = eigenvalues(covariance), eigenvalues(correlation(covariance))
    trace = float(covariance.trace())
    energy = trace + float(sums.mean.square().sum())
    channels = len(values)
    return {
        "count": sums.count,
        "channels": channels,
        "status": "ok" if sums.count >= ROWS_PER_CHANNEL * channels else "insufficient",
        "effective_rank": effective_rank(values),
        "participation_ratio": participation_ratio(values),
        "top_share": top_share(values),
        "k99": directions_for(values),
        "dead_channels": dead_channels(sums),
        "trace": trace,
        "variation": 0.0 if energy == 0 else trace / energy,
        "correlation_rank": effective_rank(standardised),
        "correlation_ratio": participation_ratio(standardised),
        "spectrum": _shares(values).tolist(),
    }
