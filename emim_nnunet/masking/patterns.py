"""Mask patterns on the cell grid: position, modality, patch and their union, the hybrid mask pattern (HMP) of E-MIM.

Masks have *exact* ratios: the number of masked cells is fixed (rounded) and only their positions are drawn, so the masked
fraction is the same in every mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor


def top_cells(scores: Tensor, count: int) -> Tensor:
    """Choose the ``count`` cells of highest score.

    Args:
        scores: (..., N) float, a score per cell; random scores give a random mask.
        count: Number of cells to choose, at most N.

    Returns:
        (..., N) bool on the same device, True = chosen.
    """
    masked = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    return masked.scatter(-1, scores.topk(count, dim=-1).indices, True)


def position_mask(batch_size: int, grid: Sequence[int], ratio: float, generator: torch.Generator) -> Tensor:
    """Draw cells that are masked in all modalities.

    Args:
        batch_size: Number B of samples.
        grid: Cells per axis.
        ratio: Share of cells in [0, 1]; the count is rounded to the nearest whole number.
        generator: CPU generator that draws the cells.

    Returns:
        (B, 1, *G) bool on the CPU.
    """
    num_cells = prod(grid)
    scores = torch.rand((batch_size, num_cells), generator=generator)
    return top_cells(scores, round(ratio * num_cells)).view(batch_size, 1, *grid)


def hybrid_mask(
    batch_size: int,
    num_modalities: int,
    grid: Sequence[int],
    *,
    position_ratio: float,
    patch_ratio: float,
    modality_mask: bool = True,
    generator: torch.Generator,
    present: Tensor | None = None,
) -> Tensor:
    """The hybrid mask pattern of E-MIM (arXiv 2407.10377): the union of a modality, a position and a patch mask.

    One modality of each sample is masked everywhere (not with a single modality); ``position_ratio`` of the cells is
    masked in all modalities; of the cells that this leaves, ``patch_ratio`` is masked independently per modality. (Drawing
    the patch mask among the cells that the position mask left changes no expectation and makes the fraction exact.)

    Args:
        batch_size: Number B of samples.
        num_modalities: Number C of modalities.
        grid: Cells per axis.
        position_ratio: Share of the cells that is masked in all modalities, in [0, 1].
        patch_ratio: Share of the remaining cells of each modality that is masked, in [0, 1].
        modality_mask: Whether a whole modality is masked.
        generator: CPU generator that draws everything.
        present: (C,) bool, the modalities that the samples have; the masked one is chosen among them, and none is masked where
            there is only one. None = all.

    Returns:
        (B, C, *G) bool on the CPU.
    """
    scores = hybrid_scores(batch_size, num_modalities, grid, generator, present)
    return hybrid_mask_of(
        *scores, grid, position_ratio=position_ratio, patch_ratio=patch_ratio, modality_mask=modality_mask
    )


def hybrid_scores(
    batch_size: int,
    num_modalities: int,
    grid: Sequence[int],
    generator: torch.Generator,
    present: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the random numbers of a hybrid mask, for :func:`hybrid_mask_of`.

    Args:
        batch_size: Number B of samples.
        num_modalities: Number C of modalities.
        grid: Cells per axis, N cells in all.
        generator: CPU generator that draws everything.
        present: (C,) bool, the modalities that the samples have, see :func:`hybrid_mask`; None = all.

    Returns:
        CPU tensors: scores of the positions (B, N) float, scores of the cells of each modality (B, C, N) float, and which
        modality is masked (B, C) bool.
    """
    num_cells = prod(grid)
    position = torch.rand((batch_size, num_cells), generator=generator)
    patch = torch.rand((batch_size, num_modalities, num_cells), generator=generator)
    choices = torch.arange(num_modalities) if present is None else present.nonzero()[:, 0]
    modality = torch.zeros((batch_size, num_modalities), dtype=torch.bool)
    if len(choices) > 1:
        modality[torch.arange(batch_size), choices[torch.randint(len(choices), (batch_size,), generator=generator)]] = (
            True
        )
    return position, patch, modality


def hybrid_mask_of(
    position_scores: Tensor,
    patch_scores: Tensor,
    modality: Tensor,
    grid: Sequence[int],
    *,
    position_ratio: float,
    patch_ratio: float,
    modality_mask: bool = True,
) -> Tensor:
    """Make a hybrid mask from scores: cells with the highest scores are masked; see :func:`hybrid_mask`.

    Args:
        position_scores: (B, N) float, scores of the positions; cells whose score is raised are masked in all modalities first.
        patch_scores: (B, C, N) float >= 0, scores of the cells of each modality.
        modality: (B, C) bool, the modality that is masked everywhere.
        grid: Cells per axis.
        position_ratio: Share of the cells that is masked in all modalities, in [0, 1].
        patch_ratio: Share of the remaining cells of each modality that is masked, in [0, 1].
        modality_mask: Whether a whole modality is masked.

    Returns:
        (B, C, *G) bool on the device of the scores.
    """
    num_cells = patch_scores.shape[2]
    num_positions = round(position_ratio * num_cells)
    position = top_cells(position_scores, num_positions)[:, None]
    num_patches = round(patch_ratio * (num_cells - num_positions))
    masked = position | top_cells(patch_scores.masked_fill(position, -1.0), num_patches)
    if modality_mask:
        masked = masked | modality[:, :, None]
    return masked.view(*patch_scores.shape[:2], *grid)


def masked_fraction(
    num_modalities: int, *, position_ratio: float, patch_ratio: float, modality_mask: bool = True
) -> float:
    """Share of (modality, cell) pairs that :func:`hybrid_mask` hides: 1 - (1 - 1/C)(1 - r_pos)(1 - r_patch).

    Args:
        num_modalities: Number C of modalities; with one, no whole modality is masked.
        position_ratio: Share r_pos of the cells that is masked in all modalities, in [0, 1].
        patch_ratio: Share r_patch of the remaining cells of each modality that is masked, in [0, 1].
        modality_mask: Whether a whole modality is masked.

    Returns:
        The masked fraction, in [0, 1].
    """
    modality = 1.0 / num_modalities if modality_mask and num_modalities > 1 else 0.0
    return 1.0 - (1.0 - modality) * (1.0 - position_ratio) * (1.0 - patch_ratio)
