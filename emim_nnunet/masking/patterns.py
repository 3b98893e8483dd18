"""Mask patterns on the cell grid: position, modality, patch and their union, the hybrid mask pattern (HMP) of E-MIM.

Masks have *exact* ratios: counts are rounded, positions are drawn, so the masked fraction has no variance but for rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor


def _random_cells(scores: Tensor, count: int) -> Tensor:
    """The ``count`` cells of highest score in each row of (..., N) float scores, as a bool tensor."""
    masked = torch.zeros(scores.shape, dtype=torch.bool)
    return masked.scatter(-1, scores.topk(count, dim=-1).indices, True)


def position_mask(batch_size: int, grid: Sequence[int], ratio: float, generator: torch.Generator) -> Tensor:
    """Cells that are masked in all modalities.

    Args:
        batch_size: B.
        grid: Cells per axis.
        ratio: Share of cells in [0, 1]; the count is rounded to the nearest whole number.
        generator: CPU generator that draws the cells.

    Returns:
        (B, 1, *G) bool on the CPU.
    """
    num_cells = prod(grid)
    scores = torch.rand((batch_size, num_cells), generator=generator)
    return _random_cells(scores, round(ratio * num_cells)).view(batch_size, 1, *grid)


def hybrid_mask(
    batch_size: int,
    num_modalities: int,
    grid: Sequence[int],
    *,
    position_ratio: float,
    patch_ratio: float,
    modality_mask: bool = True,
    generator: torch.Generator,
) -> Tensor:
    """The hybrid mask pattern of E-MIM (arXiv 2407.10377): the union of a modality, a position and a patch mask.

    One modality of each sample is masked everywhere (not with a single modality); ``position_ratio`` of the cells is
    masked in all modalities; of the cells that this leaves, ``patch_ratio`` is masked independently per modality. (Drawing
    the patch mask among the cells that the position mask left changes no expectation and makes the fraction exact.)

    Args:
        batch_size: B.
        num_modalities: C.
        grid: Cells per axis.
        position_ratio: In [0, 1].
        patch_ratio: In [0, 1].
        modality_mask: Whether a whole modality is masked.
        generator: CPU generator that draws everything.

    Returns:
        (B, C, *G) bool on the CPU.
    """
    num_cells = prod(grid)
    position = position_mask(batch_size, grid, position_ratio, generator).view(batch_size, 1, num_cells)
    num_patches = round(patch_ratio * (num_cells - round(position_ratio * num_cells)))
    scores = torch.rand((batch_size, num_modalities, num_cells), generator=generator)
    masked = position | _random_cells(scores.masked_fill(position, -1.0), num_patches)
    if modality_mask and num_modalities > 1:
        modality = torch.randint(num_modalities, (batch_size,), generator=generator)
        masked[torch.arange(batch_size), modality] = True
    return masked.view(batch_size, num_modalities, *grid)


def masked_fraction(
    num_modalities: int, *, position_ratio: float, patch_ratio: float, modality_mask: bool = True
) -> float:
    """Share of (modality, cell) pairs that :func:`hybrid_mask` hides: 1 - (1 - 1/C)(1 - r_pos)(1 - r_patch).

    Args:
        num_modalities: C; with 1 the modality mask is off.
        position_ratio: In [0, 1].
        patch_ratio: In [0, 1].
        modality_mask: Whether a whole modality is masked.

    Returns:
        A number in [0, 1].
    """
    modality = 1.0 / num_modalities if modality_mask and num_modalities > 1 else 0.0
    return 1.0 - (1.0 - modality) * (1.0 - position_ratio) * (1.0 - patch_ratio)
