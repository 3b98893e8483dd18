"""Masked reconstruction.

Shapes: B batch, C modalities, ``*P`` spatial axes. Weights are per (modality, voxel): never broadcast over C in the
denominator, so duplicating the modalities leaves the loss unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from emim_nnunet.distributed import all_reduce_sum
from emim_nnunet.masking.grid import cells_to_voxels, voxels_to_cells


def masked_mse(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean squared error over all counted (modality, voxel) pairs of all ranks.

    Args:
        prediction: (B, C, *P) float, the reconstruction.
        target: (B, C, *P) float, what it is compared with.
        weight: (B, C, *P) bool or float, 1 where a voxel counts (masked, and inside the body if asked), otherwise 0.

    Returns:
        () float32; 0 when nothing is counted.
    """
    weight = weight.to(torch.float32)
    error = (prediction.float() - target.float()).square()
    total, count = all_reduce_sum(torch.stack([(error * weight).sum(), weight.sum()])).unbind()
    return total / count.clamp_min(1.0)


def normalise_cells(
    target: Tensor, cell_size: Sequence[int], foreground: Tensor | None = None, *, eps: float = 1e-6, floor: float = 0.0
) -> Tensor:
    """Standardise targets within each cell ("norm_pix" of masked autoencoders, arXiv 2111.06377).

    The loss of a constant prediction is then about 1 in every cell that is not flat, which invites collapse.

    Args:
        target: (B, C, *P) float, the images.
        cell_size: Voxels of a cell per axis.
        foreground: (B, 1, *P) bool, the voxels whose mean and variance are taken; None = all. A loss that counts only the body
            needs the statistics of the body: background in a cell would lower its variance and enlarge the rest.
        eps: A small number > 0 that is added to the variance.
        floor: Least variance of a cell, as a share of the variance of its patch and modality, so that noise in flat cells is
            not enlarged to the size of anatomy; 0 = no limit.

    Returns:
        (B, C, *P) float; 0 outside the foreground, where one is given.
    """
    grid = [p // c for p, c in zip(target.shape[2:], cell_size, strict=True)]
    weight = target.new_ones(()).expand(target.shape) if foreground is None else foreground.to(target.dtype)
    share = voxels_to_cells(weight, grid).clamp_min(torch.finfo(target.dtype).tiny)
    mean = voxels_to_cells(target * weight, grid) / share
    centred = (target - cells_to_voxels(mean, cell_size)) * weight
    variance = voxels_to_cells(centred.square(), grid) / share
    if floor > 0:
        variance = torch.maximum(variance, floor * _patch_variance(target, weight))
    return centred * cells_to_voxels(torch.rsqrt(variance + eps), cell_size)


def _patch_variance(target: Tensor, weight: Tensor) -> Tensor:
    """Variance (B, C, 1, ...) of each patch and modality over the weighted voxels."""
    axes = tuple(range(2, target.ndim))
    count = weight.sum(axes, keepdim=True).clamp_min(1.0)
    mean = (target * weight).sum(axes, keepdim=True) / count
    return ((target - mean).square() * weight).sum(axes, keepdim=True) / count
