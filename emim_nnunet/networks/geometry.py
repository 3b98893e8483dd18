"""Strides and grids of the stages of a planned encoder."""

from __future__ import annotations

from collections.abc import Sequence


def cumulative_strides(strides: Sequence[int | Sequence[int]], num_axes: int) -> list[tuple[int, ...]]:
    """Voxels of the patch per position of each stage's output, per axis.

    Args:
        strides: One entry per stage, a number or one number per axis (nnU-Net's ``strides``).
        num_axes: Number of spatial axes, 2 or 3.

    Returns:
        One tuple of ``num_axes`` numbers per stage.
    """
    total = (1,) * num_axes
    result = []
    for stride in strides:
        per_axis = (stride,) * num_axes if isinstance(stride, int) else tuple(stride)
        total = tuple(t * s for t, s in zip(total, per_axis, strict=True))
        result.append(total)
    return result


def stage_grids(strides: Sequence[int | Sequence[int]], patch_size: Sequence[int]) -> list[tuple[int, ...]]:
    """Positions per axis of each stage's output.

    Args:
        strides: One entry per stage, a number or one number per axis (nnU-Net's ``strides``).
        patch_size: Voxels per axis.

    Returns:
        One tuple per stage.
    """
    return [
        tuple(p // s for p, s in zip(patch_size, stride, strict=True))
        for stride in cumulative_strides(strides, len(patch_size))
    ]
