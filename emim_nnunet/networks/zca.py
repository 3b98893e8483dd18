"""ZCA whitening of rows of features (med-moco, arXiv 2402.14611; Kessy et al., arXiv 1512.00809), in groups of channels.

In training the rows are whitened with their own statistics, through which the gradient flows, as in W-MSE (arXiv 2007.06346)
and decorrelated batch normalisation (arXiv 1804.08450). Statistics without a gradient would be a fixed linear map, which the
next linear layer can undo: no constraint at all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from emim_nnunet.distributed import all_reduce_sum

LEAST_VARIANCE = 1e-8  # of a channel, on average over its group: constant rows stay finite


def group_size(width: int, largest: int) -> int:
    """The largest divisor of ``width`` that is at most ``largest``."""
    return max(size for size in range(1, min(width, largest) + 1) if width % size == 0)


class _InverseRoot(torch.autograd.Function):
    """S^(-1/2) of symmetric positive definite matrices (..., d, d).

    The gradient of :func:`torch.linalg.eigh` divides by differences of eigenvalues. This one solves the Sylvester equation
    S^(1/2) X + X S^(1/2) = -S^(-1/2) dS S^(-1/2) for X = dS^(-1/2) instead, which in the basis of the eigenvectors reads
    X_ij = -dS_ij / (r_i r_j (r_i + r_j)), r the roots of the eigenvalues (Higham, Functions of matrices, section 6.1): finite
    for equal eigenvalues too.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, least: float) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        roots = values.clamp_min(least).sqrt()  # rounding alone makes an eigenvalue smaller
        ctx.save_for_backward(roots, vectors)
        return (vectors / roots[..., None, :]) @ vectors.mT

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        roots, vectors = ctx.saved_tensors
        rows, columns = roots[..., :, None], roots[..., None, :]
        symmetric = 0.5 * (gradient + gradient.mT)
        inner = -(vectors.mT @ symmetric @ vectors) / (rows * columns * (rows + columns))
        return vectors @ inner @ vectors.mT, None


def zca_matrix(covariance: Tensor, eps: float | Tensor) -> Tensor:
    """Inverse square root of the shrunk covariance (1 - eps) S + eps tr(S)/d I, with a gradient.

    Args:
        covariance: (..., d, d) float, symmetric; of 64 bits, they are kept.
        eps: Strength of the shrinkage, in (0, 1]; 1 leaves a multiple of I only.

    Returns:
        (..., d, d) float32 or float64, symmetric. Where the covariance is 0, a finite multiple of I.
    """
    with torch.autocast(covariance.device.type, enabled=False):
        covariance = _precise(covariance)
        scale = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None].clamp_min(LEAST_VARIANCE)
        identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
        # divided by its scale first: eigenvalues of tiny covariances would drown in rounding
        shrunk = (1 - eps) * covariance / scale + eps * identity
        least = torch.finfo(covariance.dtype).eps
        return _InverseRoot.apply(shrunk, least) * scale.rsqrt()


class ZCA(nn.Module):
    """Whitens weighted rows group by group.

    In training with the mean and covariance of the present rows of all ranks, through which the gradient flows. In evaluation
    with running ones, which change with :meth:`update` only and are part of the state dict; before the first update they change
    nothing.

    Args:
        width: Number of columns of a row.
        group: Largest number of channels that are whitened together; the largest divisor of ``width`` up to it is taken.
        eps: Strength of the shrinkage, see :func:`zca_matrix`. It grows where the weights sum to less than two rows per channel
            of a group, the fewest that have a covariance, up to 1 without any.
        num_rows: About as many rows make up the running statistics.
    """

    mean: Tensor
    covariance: Tensor

    def __init__(self, width: int, *, group: int, eps: float, num_rows: int) -> None:
        super().__init__()
        self.eps = eps
        self.num_rows = num_rows
        size = group_size(width, group)
        self.least_rows = 2 * size
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("covariance", torch.eye(size).repeat(width // size, 1, 1))

    def forward(self, rows: Tensor, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Whiten rows.

        Args:
            rows: (N, width) float, of this rank; N may differ between ranks.
            weight: (N,) float in [0, 1]; rows of weight 0 are whitened, but do not count.

        Returns:
            Whitened rows (N, width) float32 (float64 if the rows are), and the detached statistics of the present rows of all
            ranks, for :meth:`update`.
        """
        with torch.autocast(rows.device.type, enabled=False):
            rows = _precise(rows)
            weight = weight.to(rows.dtype)[:, None]
            count = all_reduce_sum(weight.sum())
            mean = all_reduce_sum((rows * weight).sum(0)) / count.clamp_min(1e-6)
            shape = self.covariance.shape[:2]
            centred = (rows - mean).unflatten(1, shape)
            covariance = torch.einsum("ngi,ngj->gij", centred * weight[:, :, None], centred)
            covariance = all_reduce_sum(covariance) / count.clamp_min(1e-6)
            found = {"mean": mean.detach(), "covariance": covariance.detach(), "count": count.detach()}
            eps: float | Tensor = self.eps
            if self.training:
                eps = (1 - count / self.least_rows).clamp_min(self.eps)
            else:
                centred, covariance = (rows - self.mean).unflatten(1, shape), self.covariance
            matrix = zca_matrix(covariance, eps).to(rows.dtype)
            return torch.einsum("ngi,gij->ngj", centred, matrix).flatten(1), found

    @torch.no_grad()
    def update(self, found: dict[str, Tensor]) -> None:
        """Let the running statistics follow.

        Args:
            found: What :meth:`forward` found in the rows of a step, the same on all ranks.
        """
        share = (found["count"] / self.num_rows).clamp_max(1.0).to(self.mean.dtype)
        for name in ("mean", "covariance"):
            buffer = getattr(self, name)
            buffer.lerp_(found[name].to(buffer.dtype), share)


def _precise(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
