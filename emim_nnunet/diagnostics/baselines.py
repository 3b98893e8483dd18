"""Baselines of a reconstruction: what predictions reach that know no image content, each the best of its kind.

All of them are judged on the very voxels that the loss counts, and form a ladder up to the network:

    constant -> sample constant -> outline -> depth -> network

*Constant*: one number per modality; its loss is the collapsed loss. *Sample constant*: one number per sample and modality, what
a network puts out whose output does not depend on the place. *Outline*: one number inside the body and one outside. *Depth*: a
number for each distance to the border of the body. A network whose loss is not below one of them has learnt no more than that.

They are fitted to the probe set itself (in-sample), and so a little optimistic: the sample constants have a number per sample
and modality, depth has :data:`BINS` per modality.

The loss of the constant is the variance of the masked targets. Masks are drawn without a look at the image, so it is the same
for every kind of mask up to sampling; :func:`mask_sums` shows that on the data at hand.

Everything follows from sums, which add up over batches and ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from emim_nnunet.diagnostics.reconstruction import pooled, ratio, split_cells, to_float64
from emim_nnunet.masking import hybrid_mask, masked_fraction, position_mask
from emim_nnunet.randomness import Stream, seeded_generator

CONSTANTS = ("global", "modality", "cell_position", "voxel_position")
BINS = 64  # of one voxel each
POSITION_RATIO, PATCH_RATIO = 0.25, 0.5  # of E-MIM's hybrid mask; the other masks hide the same share
MASKS = ("position", "patch", "modality", "hybrid")
DRAWS = 16  # of each kind per patch: which modality is hidden matters more than which cells
OTHER_MASKS = 1  # keeps the draws apart from those of the probe


def position_sums(target: Tensor, counted: Tensor) -> Tensor:
    """Sums per modality and voxel position in the patch.

    Args:
        target: (B, C, *P) float.
        counted: (B, C, *P) bool.

    Returns:
        (3, C, *P) float64 on the CPU: count, target, squared target.
    """
    target, counted = to_float64(target).cpu(), counted.cpu()
    values = torch.where(counted, target, 0.0)
    return torch.stack([counted.double().sum(0), values.sum(0), values.square().sum(0)])


def constant_losses(sums: Tensor, cell_size: Sequence[int]) -> dict[str, float]:
    """Losses of four predictions that ignore the image, each the best of its kind on the very same voxels.

    With few patches the constants per voxel position fit those patches themselves, so that loss is optimistic.

    Args:
        sums: (3, C, *P) of :func:`position_sums`.
        cell_size: Voxels of a mask cell per axis.

    Returns:
        Mean squared error of one constant over all (``global``), one per ``modality``, one per modality and
        ``cell_position`` in the patch, one per modality and ``voxel_position``. NaN when nothing was counted.
    """
    num_modalities, patch = sums.shape[1], sums.shape[2:]
    blocks = [n for p, c in zip(patch, cell_size, strict=True) for n in (p // c, c)]
    axes = tuple(range(3, 3 + 2 * len(patch), 2))
    grouped = {
        "global": sums.reshape(3, -1).sum(1, keepdim=True),
        "modality": sums.reshape(3, num_modalities, -1).sum(2),
        "cell_position": sums.reshape(3, num_modalities, *blocks).sum(axes),
        "voxel_position": sums,
    }
    assert prod(blocks) == prod(patch)
    return {kind: _loss(values) for kind, values in grouped.items()}


def _unexplained(sums: Tensor) -> Tensor:
    """(3, ...) count, total and squares of groups -> (...) squared deviations from the mean of each group."""
    count, total, squares = sums
    return (squares - total.square() / count.clamp_min(1.0)).clamp_min(0.0)


def _loss(sums: Tensor) -> float:
    """Of one constant per group."""
    return float(ratio(_unexplained(sums).sum(), sums[0].sum()))


def sample_sums(target: Tensor, counted: Tensor) -> Tensor:
    """Squared deviations from the mean of each sample and modality, summed over samples.

    Args:
        target: (B, C, *P) float.
        counted: (B, C, *P) bool.

    Returns:
        (C,) float64 on the CPU.
    """
    target, counted = to_float64(target).cpu().flatten(2), counted.cpu().flatten(2)
    mean = torch.where(counted, target, 0.0).sum(2, keepdim=True) / counted.sum(2, keepdim=True).clamp_min(1)
    return torch.where(counted, (target - mean).square(), 0.0).sum((0, 2))


def depth_bins(foreground: Tensor) -> Tensor:
    """Distance of every voxel of the body to the nearest voxel outside, in whole voxels.

    Args:
        foreground: (B, 1, *P) bool.

    Returns:
        (B, 1, *P) int64 on the CPU: 0 outside; what is deeper than ``BINS - 1``, or in a crop without a border, is there.
    """
    bodies = foreground[:, 0].cpu().numpy()
    depths = np.full(bodies.shape, BINS - 1, dtype=np.int64)
    for depth, body in zip(depths, bodies, strict=True):
        if not body.all():
            depth[...] = np.minimum(np.rint(distance_transform_edt(body)), BINS - 1)
    return torch.from_numpy(depths)[:, None]


def depth_sums(target: Tensor, counted: Tensor, foreground: Tensor) -> Tensor:
    """Sums per modality and depth; bin 0 is the outside.

    Args:
        target: (B, C, *P) float.
        counted: (B, C, *P) bool.
        foreground: (B, 1, *P) bool.

    Returns:
        (3, C, BINS) float64 on the CPU: count, target, squared target.
    """
    target, counted = to_float64(target).cpu(), counted.cpu()
    num_modalities = target.shape[1]
    modality = torch.arange(num_modalities).view(1, -1, *[1] * (target.ndim - 2))
    groups, values = (depth_bins(foreground) + BINS * modality)[counted], target[counted]
    sums = [torch.bincount(groups, w, BINS * num_modalities) for w in (torch.ones_like(values), values, values**2)]
    return torch.stack(sums).view(3, num_modalities, BINS)


def baseline_losses(depths: Tensor, samples: Tensor, channel_names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Losses of the baselines, pooled over modalities and for each of them.

    Args:
        depths: (3, C, BINS) of :func:`depth_sums`.
        samples: (C,) of :func:`sample_sums`.
        channel_names: C names.

    Returns:
        ``{"all": losses, NAME: losses, ...}``; losses are the mean squared errors of ``constant``, ``sample_constant``,
        ``outline`` and ``depth``. NaN where nothing was counted.
    """
    outline = torch.stack([depths[..., 0], depths[..., 1:].sum(2)], 2)
    unexplained = {
        "constant": _unexplained(depths.sum(2)),
        "sample_constant": samples,
        "outline": _unexplained(outline).sum(1),
        "depth": _unexplained(depths).sum(1),
    }
    count = pooled(depths[0].sum(1))
    losses = {kind: ratio(pooled(values), count) for kind, values in unexplained.items()}
    names = ("all", *channel_names)
    return {name: {kind: float(values[i]) for kind, values in losses.items()} for i, name in enumerate(names)}


def draw_masks(num_modalities: int, grid: Sequence[int], generator: torch.Generator) -> dict[str, Tensor]:
    """One mask of each kind that E-MIM compares, all of the same masked share but for ``modality``.

    Args:
        num_modalities: C; with one, ``modality`` hides nothing.
        grid: Cells per axis.
        generator: CPU generator that draws everything.

    Returns:
        (1, C, *G) bool for each of :data:`MASKS`.
    """
    share = masked_fraction(num_modalities, position_ratio=POSITION_RATIO, patch_ratio=PATCH_RATIO)
    hybrid = partial(hybrid_mask, 1, num_modalities, grid, generator=generator)
    return {
        "position": position_mask(1, grid, share, generator).expand(1, num_modalities, *grid),
        "patch": hybrid(position_ratio=0.0, patch_ratio=share, modality_mask=False),
        "modality": hybrid(position_ratio=0.0, patch_ratio=0.0),
        "hybrid": hybrid(position_ratio=POSITION_RATIO, patch_ratio=PATCH_RATIO),
    }


def mask_sums(
    target: Tensor, counted: Tensor, foreground: Tensor, grid: Sequence[int], seed: int, indices: Sequence[int]
) -> Tensor:
    """Sums per modality over what other masks would hide of the same crops.

    Args:
        target: (B, C, *P) float.
        counted: (B, C, *P) bool, what the loss counts; of it only matters whether the outside of the body counts.
        foreground: (B, 1, *P) bool.
        grid: Cells of the mask per axis.
        seed: Of the run.
        indices: Number of each patch in the probe set; with the seed it decides the masks.

    Returns:
        (masks, 3, C) float64 on the CPU, in the order of :data:`MASKS`: count, target, squared target.
    """
    target, counted, foreground = to_float64(target).cpu(), counted.cpu(), foreground.cpu()
    sums = torch.zeros((len(MASKS), 3, target.shape[1]), dtype=torch.float64)
    for index, values, c, inside in zip(indices, target, counted, foreground, strict=True):
        present = (values != 0).flatten(1).any(1).view(-1, *[1] * (values.ndim - 1))
        usable = present if (c & ~inside).any() else present & inside
        values = torch.where(usable, values, 0.0)
        parts = (usable.expand(values.shape).double(), values, values.square())
        cells = torch.stack([split_cells(part, grid).sum(2) for part in parts])
        generator = seeded_generator(seed, Stream.PROBE, index, OTHER_MASKS)
        for _ in range(DRAWS):
            masks = draw_masks(len(values), grid, generator)
            sums += torch.stack([(cells * masks[kind].flatten(2)).sum(2) for kind in MASKS])
    return sums


def mask_losses(sums: Tensor) -> dict[str, float]:
    """Loss of one constant per modality under other masks, from :func:`mask_sums`; NaN where a mask hides nothing."""
    return {kind: _loss(values) for kind, values in zip(MASKS, sums, strict=True)}
