"""Conversion between cells and voxels. A *cell* is a block of voxels that is masked as a whole.

Shapes: B samples, C modalities, then 2 or 3 spatial axes written ``*P`` (voxels of the patch) or ``*G`` (cells of the grid).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def grid_size(patch_size: Sequence[int], cell_size: Sequence[int]) -> tuple[int, ...]:
    """Number of cells per axis.

    Args:
        patch_size: Voxels per axis.
        cell_size: Voxels of a cell per axis.

    Returns:
        Cells per axis.

    Raises:
        ValueError: The numbers of axes differ, a cell is larger than the patch, or the patch is no multiple of the cell.
    """
    if len(patch_size) != len(cell_size):
        raise ValueError(f"cell_size {list(cell_size)} must have one entry per axis of patch_size {list(patch_size)}")
    if any(c < 1 or c > p for p, c in zip(patch_size, cell_size, strict=True)):
        raise ValueError(f"cell_size {list(cell_size)} must be at least 1 and at most patch_size {list(patch_size)}")
    if any(p % c for p, c in zip(patch_size, cell_size, strict=True)):
        raise ValueError(f"cell_size {list(cell_size)} must divide patch_size {list(patch_size)}")
    return tuple(p // c for p, c in zip(patch_size, cell_size, strict=True))


def cells_to_voxels(cells: Tensor, cell_size: Sequence[int]) -> Tensor:
    """Repeat every cell's value over its voxels.

    Args:
        cells: (B, C, *G) tensor of any dtype.
        cell_size: Voxels of a cell per axis.

    Returns:
        (B, C, *P) tensor of the same dtype, P = G * cell_size.
    """
    for axis, size in enumerate(cell_size, start=2):
        cells = cells.repeat_interleave(size, dim=axis)
    return cells


def voxels_to_cells(voxels: Tensor, grid: Sequence[int]) -> Tensor:
    """Average over the voxels of each cell.

    Args:
        voxels: (B, C, *P) float; every axis of P is a multiple of the same axis of G.
        grid: Cells per axis.

    Returns:
        (B, C, *G) float.
    """
    window = [p // g for p, g in zip(voxels.shape[2:], grid, strict=True)]
    return (F.avg_pool2d if len(window) == 2 else F.avg_pool3d)(voxels, window)


def foreground_cells(foreground: Tensor, grid: Sequence[int], threshold: float = 0.5) -> Tensor:
    """Cells of which at least ``threshold`` of the voxels are foreground.

    Args:
        foreground: (B, 1, *P) bool, True inside the body.
        grid: Cells per axis.
        threshold: Least share of foreground voxels, in (0, 1].

    Returns:
        (B, 1, *G) bool.
    """
    return voxels_to_cells(foreground.to(torch.float32), grid) >= threshold


def choose_rows(usable: Tensor, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Choose some cells of each sample at random, usable ones first.

    Args:
        usable: (B, N) bool, the cells that may be used.
        scores: (B, N) float, random numbers in [0, 1) that decide the choice.
        count: Number of cells to choose of each sample; all N where there are fewer.

    Returns:
        The numbers of the chosen cells (B, K) int64, and their weights (B * K,) float32: 1 for usable cells, 0 for others.
    """
    chosen = (scores + usable.to(scores.dtype)).topk(min(count, usable.shape[1]), dim=1).indices
    return chosen, usable.gather(1, chosen).flatten().to(torch.float32)


def take_rows(cells: Tensor, chosen: Tensor) -> Tensor:
    """Take the feature rows of chosen cells.

    Args:
        cells: (B, D, *G) float, a feature vector per cell.
        chosen: (B, K) int64, the row-major numbers of the chosen cells.

    Returns:
        (B * K, D), the rows of the first sample first.
    """
    flat = cells.flatten(2).transpose(1, 2)
    index = chosen[:, :, None].expand(-1, -1, flat.shape[2])
    return flat.gather(1, index).flatten(0, 1)
