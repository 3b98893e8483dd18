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
        prediction: (B, C, *P) float.
        target: (B, C, *P) float.
        weight: (B, C, *P), 1 where a voxel counts (masked, and foreground if asked), else 0; bool or float.

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
    """Per-cell standardised targets ("norm_pix" of masked autoencoders, arXiv 2111.06377).

    Makes the loss of a constant prediction about 1 in every non-flat cell, which invites collapse: off by default.

    Args:
        target: (B, C, *P) float.
        cell_size: Voxels of a cell per axis.
        foreground: (B, 1, *P) bool, the voxels that mean and variance are taken of; None = all. A loss that counts the body
            only needs those of the body: background in a cell would shrink its variance and blow up the rest.
        eps: Added to the variance.
        floor: Least variance of a cell, as a share of the variance of its patch and modality: noise in flat cells is then not
            enlarged to the size of anatomy.

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
    """(B, C, 1, ...) variance of each patch and modality over the weighted voxels."""
    axes = tuple(range(2, target.ndim))
    count = weight.sum(axes, keepdim=True).clamp_min(1.0)
    mean = (target * weight).sum(axes, keepdim=True) / count
    return ((target - mean).square() * weight).sum(axes, keepdim=True) / count
