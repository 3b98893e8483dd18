"""ZCA whitening of feature vectors (med-moco, arXiv 2402.14611; Kessy et al. 2018), in groups of channels.

A 3D batch of two has no covariance, so the statistics are those of the newest vectors of many steps. Whitening changes with
:meth:`ZCA.update` only: between two updates, and in evaluation, it is a fixed affine map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def group_size(width: int, largest: int) -> int:
    """The largest divisor of ``width`` that is at most ``largest``."""
    return max(size for size in range(1, min(width, largest) + 1) if width % size == 0)


def zca_matrix(covariance: Tensor, eps: float) -> Tensor:
    """Inverse square root of the shrunk covariance (1 - eps) S + eps tr(S)/d I.

    Args:
        covariance: (..., d, d) float, symmetric.
        eps: Strength of the shrinkage, in (0, 1]; 1 leaves a multiple of I only.

    Returns:
        (..., d, d) float32, symmetric. Where the covariance is 0, a finite multiple of I.
    """
    with torch.autocast(covariance.device.type, enabled=False):
        covariance = covariance.float()
        size = covariance.shape[-1]
        scale = (
            covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None].clamp_min(torch.finfo(torch.float32).tiny)
        )
        # divided by its scale first: eigenvalues of tiny covariances would drown in rounding
        shrunk = (1 - eps) * covariance / scale + eps * torch.eye(size, device=covariance.device)
        values, vectors = torch.linalg.eigh(shrunk)
        root = values.clamp_min(eps).rsqrt()
        return (vectors * root[..., None, :]) @ vectors.mT * scale.rsqrt()


class ZCA(nn.Module):
    """Whitens rows group by group, with the covariance of the newest rows that it was given.

    Until it was given twice as many rows as a group has channels, it changes nothing. No gradient reaches the statistics. The
    rows and the statistics are part of the state dict.

    Args:
        width: Number of columns of a row.
        group: Largest number of channels that are whitened together; the largest divisor of ``width`` up to it is taken.
        eps: Strength of the shrinkage, see :func:`zca_matrix`.
        num_rows: Number of rows that are remembered.
    """

    rows: Tensor
    count: Tensor
    mean: Tensor
    matrix: Tensor

    def __init__(self, width: int, *, group: int, eps: float, num_rows: int) -> None:
        super().__init__()
        self.eps = eps
        size = group_size(width, group)
        self.least_rows = 2 * size
        self.register_buffer("rows", torch.zeros(num_rows, width))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("matrix", torch.eye(size).repeat(width // size, 1, 1))

    def forward(self, rows: Tensor) -> Tensor:
        """Whitened rows (N, width) float32, from rows (N, width)."""
        with torch.autocast(rows.device.type, enabled=False):
            groups = (rows.float() - self.mean).unflatten(1, self.matrix.shape[:2])
            return torch.einsum("ngi,gij->ngj", groups, self.matrix).flatten(1)

    @torch.no_grad()
    def update(self, rows: Tensor) -> None:
        """Remember rows and whiten with the new statistics from now on.

        Args:
            rows: (N, width) float, the rows of all ranks; of more than ``num_rows`` the last ones are remembered.
        """
        capacity = len(self.rows)
        rows = rows[-capacity:].float()
        places = (self.count + torch.arange(len(rows), device=rows.device)) % capacity
        self.rows.index_copy_(0, places, rows)
        self.count += len(rows)
        present = (torch.arange(capacity, device=rows.device) < self.count).float()[:, None]
        total = present.sum()
        mean = (self.rows * present).sum(0) / total
        centred = ((self.rows - mean) * present).unflatten(1, self.matrix.shape[:2])
        matrix = zca_matrix(torch.einsum("ngi,ngj->gij", centred, centred) / total, self.eps)
        ready = self.count >= self.least_rows
        self.mean.copy_(torch.where(ready, mean, self.mean))
        self.matrix.copy_(torch.where(ready, matrix, self.matrix))
