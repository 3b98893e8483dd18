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


def normalise_cells(target: Tensor, cell_size: Sequence[int], eps: float = 1e-6, *, floor: float = 0.0) -> Tensor:
    """Per-cell standardised targets ("norm_pix" of masked autoencoders, arXiv 2111.06377).

    Makes the loss of a constant prediction about 1 in every non-flat cell, which invites collapse: off by default.

    Args:
        target: (B, C, *P) float.
        cell_size: Voxels of a cell per axis.
        eps: Added to the variance.
        floor: Least variance of a cell, as a share of the variance of its patch and modality: noise in flat cells is then not
            enlarged to the size of anatomy.

    Returns:
        (B, C, *P) float.
    """
    grid = [p // c for p, c in zip(target.shape[2:], cell_size, strict=True)]
    mean = voxels_to_cells(target, grid)
    variance = (voxels_to_cells(target.square(), grid) - mean.square()).clamp_min(0.0)
    if floor > 0:
        whole = target.flatten(2).var(2, correction=0).view(*target.shape[:2], *[1] * len(grid))
        variance = torch.maximum(variance, floor * whole)
    return (target - cells_to_voxels(mean, cell_size)) * cells_to_voxels(torch.rsqrt(variance + eps), cell_size)
