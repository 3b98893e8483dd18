"""Boxes inside patches, at positions that differ between the samples of a batch.

Positions stay tensors on the device: nothing here waits for it. B batch, C channels, ``*P`` two or three spatial axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def centre_box(image: Tensor, size: Sequence[int]) -> Tensor:
    """The box of that size in the middle.

    Args:
        image: (B, C, *P), at least ``size`` on every axis.
        size: Voxels per axis.

    Returns:
        (B, C, *size), a view.
    """
    for axis, length in enumerate(size, start=2):
        image = image.narrow(axis, (image.shape[axis] - length) // 2, length)
    return image


def take_boxes(image: Tensor, lower: Tensor, size: Sequence[int]) -> Tensor:
    """One box of each sample.

    Args:
        image: (B, C, *P), any dtype.
        lower: (B, axes) int64, first voxel of each box; boxes must lie inside.
        size: Voxels per axis.

    Returns:
        (B, C, *size).
    """
    for axis, length in enumerate(size):
        index = lower[:, axis, None] + torch.arange(length, device=lower.device)
        ones = [1] * (image.ndim - 2)
        ones[axis] = length
        shape = list(image.shape)
        shape[axis + 2] = length
        image = image.gather(axis + 2, index.view(-1, 1, *ones).expand(shape))
    return image


def take_blocks(image: Tensor, grid: Sequence[int], numbers: Tensor) -> Tensor:
    """Some blocks of each sample, where the image is divided into a grid of equal blocks.

    Args:
        image: (B, C, *P); every axis of P is a multiple of the grid's.
        grid: Blocks per axis.
        numbers: (B, N) int64, row-major numbers of blocks.

    Returns:
        (B * N, C, *P / grid), the blocks of the first sample first.
    """
    axes = range(len(grid))
    sizes = [p // g for p, g in zip(image.shape[2:], grid, strict=True)]
    split = image.reshape(*image.shape[:2], *(n for pair in zip(grid, sizes, strict=True) for n in pair))
    split = split.permute(0, *(2 + 2 * a for a in axes), 1, *(3 + 2 * a for a in axes))
    sample = torch.arange(len(image), device=image.device)[:, None]
    return split[(sample, *unravel(numbers, grid).unbind(-1))].flatten(0, 1)


def unravel(numbers: Tensor, grid: Sequence[int]) -> Tensor:
    """Places on a grid of row-major numbers.

    Args:
        numbers: (...) int64.
        grid: Blocks per axis.

    Returns:
        (..., axes) int64.
    """
    places = []
    for length in reversed(grid):
        places.append(numbers % length)
        numbers = numbers // length
    return torch.stack(places[::-1], dim=-1)


def pool_boxes(image: Tensor, lower: Tensor, upper: Tensor, regions: int) -> Tensor:
    """Averages over the ``regions`` per axis into which a box of each sample is divided; shares of voxels count as such.

    Args:
        image: (B, C, *P) float.
        lower: (B, axes), where the box begins, in voxels.
        upper: (B, axes), where the box ends, in voxels.
        regions: Number of parts per axis, r.

    Returns:
        (B, C, r, ..., r) float32.
    """
    image = image.float()
    for axis in reversed(range(lower.shape[1])):
        length = image.shape[-1]
        weights = _interval_weights(lower[:, axis], upper[:, axis], length, regions)
        pooled = image.flatten(1, -2) @ weights
        image = pooled.view(*image.shape[:-1], regions).movedim(-1, 2)
    return image


def _interval_weights(lower: Tensor, upper: Tensor, length: int, regions: int) -> Tensor:
    """(B, length, regions) float32: what each voxel of a line contributes to the mean over each part of an interval."""
    step = (upper - lower).float()[:, None] / regions
    start = lower.float()[:, None] + step * torch.arange(regions, device=lower.device)
    voxel = torch.arange(length, device=lower.device)[None, :, None]
    inside = torch.minimum(voxel + 1, (start + step)[:, None]) - torch.maximum(voxel, start[:, None])
    return inside.clamp_min(0.0) / step[:, None]


def resize(image: Tensor, size: Sequence[int]) -> Tensor:
    """Linear interpolation to another size.

    Args:
        image: (B, C, *P) float.
        size: Voxels per axis.

    Returns:
        (B, C, *size).
    """
    return F.interpolate(image, size=tuple(size), mode="bilinear" if len(size) == 2 else "trilinear")


def adaptive_pool(image: Tensor, grid: Sequence[int]) -> Tensor:
    """Averages over a grid that need not divide the image.

    Args:
        image: (B, C, *P) float.
        grid: Positions per axis.

    Returns:
        (B, C, *grid).
    """
    pool: Callable[..., Tensor] = F.adaptive_avg_pool2d if len(grid) == 2 else F.adaptive_avg_pool3d
    return pool(image, tuple(grid))
