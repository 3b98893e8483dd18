"""The rules that derive the ``emim`` block. The first line of each docstring is the rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, prod

from emim_nnunet.errors import UserError
from emim_nnunet.networks.backbones import TOKEN
from emim_nnunet.networks.geometry import cumulative_strides, stage_grids
from emim_nnunet.nnunet.plans import ANISO_THRESHOLD

Strides = Sequence[int | Sequence[int]]

POSITION_RATIO, PATCH_RATIO = 0.25, 0.5
MAX_CELL, MIN_CELLS_PER_AXIS = 16, 4
NUM_LEVELS, MIN_ROWS = 3, 256
MIN_WIDTH, MAX_WIDTH, WIDTH_FACTOR = 512, 2048, 4
DECODER_MIN_WIDTH = 8
CROPS_PER_CASE, ITERATIONS_PER_EPOCH = 400, 250
MIN_EPOCHS, MAX_EPOCHS = 100, 1000
FILLED = 0.95  # of the memory target
# peak rates of AdamW for a Primus: nnU-Net's own from scratch, and a third of that from pretrained weights, as nnU-Net's HEAD
PRIMUS_RATES = {"finetune_initial_lr": 1e-4, "finetune_scratch_lr": 3e-4}
# where cases lack modalities: of four, a third of the samples keep all, a quarter two or fewer
DROPOUT = {"finetune_p_drop_modality": 0.25}
# nnU-Net's normalisations that leave an image of zeros, which stands for a modality that a case lacks, at 0
KEEPS_ZERO = ("ZScoreNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization")
# of the block that the planner writes, whatever method will use it
PLANNED_KEYS = (
    "cell_size",
    "position_ratio",
    "patch_ratio",
    "pyramid_levels",
    "projector_widths",
    "decoder_min_width",
    "batch_size",
    "parent_factor",
    "patches_at_once",
    "num_epochs",
)


def token_patch(patch_size: Sequence[int]) -> list[int]:
    """nnU-Net's patch in whole tokens of 8 voxels, rounded down, and at least 4 tokens on every axis.

    Args:
        patch_size: Voxels per axis.

    Returns:
        Voxels per axis, multiples of 8, at least 32: with fewer tokens there is nothing to mask.
    """
    return [max(int(p) // TOKEN, MIN_CELLS_PER_AXIS) * TOKEN for p in patch_size]


def cell_size(strides: Strides, patch_size: Sequence[int]) -> tuple[int, ...]:
    """The stride of the deepest encoder stage that is at most 16 voxels and leaves at least 4 cells, on every axis.

    Args:
        strides: Stride of each encoder stage in voxels of the stage before: one number, or one per axis.
        patch_size: Voxels of a training patch per axis.

    Returns:
        Voxels of a mask cell per axis, 1 to 16.

    Raises:
        UserError: The patch is smaller than 4 voxels on an axis.
    """
    fitting = [
        stride
        for stride in cumulative_strides(strides, len(patch_size))
        if all(s <= MAX_CELL and p // s >= MIN_CELLS_PER_AXIS for s, p in zip(stride, patch_size, strict=True))
    ]
    if not fitting:
        raise UserError(f"a patch of {list(patch_size)} voxels is too small to mask cells in it: plan larger patches")
    return fitting[-1]


def pyramid_levels(
    strides: Strides, patch_size: Sequence[int], cell: Sequence[int], batch_size: int
) -> tuple[int, ...]:
    """The deepest three encoder stages after the first that offer at least 256 cells per batch.

    A stage offers batch_size x the cells of its own grid or of the mask's grid, whichever is coarser. Where none offers 256,
    the deepest of those that offer most is taken.

    Args:
        strides: Stride of each encoder stage in voxels of the stage before: one number, or one per axis.
        patch_size: Voxels of a training patch per axis.
        cell: Voxels of a mask cell per axis, see :func:`cell_size`.
        batch_size: Samples in a batch of the SSL stage.

    Returns:
        Stage numbers from 0, ascending.
    """
    mask_grid = [p // c for p, c in zip(patch_size, cell, strict=True)]
    rows = [batch_size * prod(map(min, grid, mask_grid)) for grid in stage_grids(strides, patch_size)]
    enough = [stage for stage in range(1, len(rows)) if rows[stage] >= MIN_ROWS]
    if enough:
        return tuple(enough[-NUM_LEVELS:])
    return (max(stage for stage in range(1, len(rows)) if rows[stage] == max(rows[1:])),)


def projector_widths(features_per_stage: Sequence[int], levels: Sequence[int]) -> tuple[int, ...]:
    """Four times the channels of the level's stage, within 512 to 2048.

    Args:
        features_per_stage: Number of channels of each encoder stage.
        levels: Numbers of the encoder stages that are pyramid levels, from 0.

    Returns:
        One width per level, 512 to 2048.
    """
    return tuple(min(max(WIDTH_FACTOR * features_per_stage[level], MIN_WIDTH), MAX_WIDTH) for level in levels)


def decoder_min_width(strides: Strides, num_axes: int, channels: int) -> int:
    """What the decoder's head produces at a position of stage 1: channels x voxels; at least 8.

    Args:
        strides: Stride of each encoder stage in voxels of the stage before: one number, or one per axis.
        num_axes: Number of axes of a patch, 2 or 3.
        channels: Number of channels of an image.

    Returns:
        Least number of channels of the decoder, at least 8.
    """
    return max(DECODER_MIN_WIDTH, channels * prod(cumulative_strides(strides, num_axes)[1]))


def parent_factor(patch_size: Sequence[int]) -> tuple[int, ...]:
    """2 on every axis; 1 on axes of an odd number of voxels, and across the slices of an anisotropic patch.

    nnU-Net's patches have about the same extent in millimetres on every axis, so an axis with less than a third of the largest
    number of voxels has thick slices: their number suffices for the whole volume as it is.

    Args:
        patch_size: Voxels of a training patch per axis.

    Returns:
        Size of MiM's wide crop in patches, per axis: 1 or 2.
    """
    return tuple(1 if p % 2 or max(patch_size) / p > ANISO_THRESHOLD else 2 for p in patch_size)


def num_epochs(num_cases: int, batch_size: int) -> int:
    """As many epochs of 250 steps as show 400 crops of each case, within 100 to 1000.

    Args:
        num_cases: Number of cases, labelled and unlabelled, at least 1.
        batch_size: Samples in a batch of the SSL stage.

    Returns:
        Number of epochs, 100 to 1000.
    """
    epochs = ceil(num_cases * CROPS_PER_CASE / (ITERATIONS_PER_EPOCH * batch_size))
    return min(max(epochs, MIN_EPOCHS), MAX_EPOCHS)


def ssl_batch_size(gigabytes: Callable[[int], float], target: float, first_guess: int, limit: int) -> int:
    """The largest whose step fits the memory target, with no more voxels than the data set has (or 2 samples); at least 1.

    A batch whose step fills 95 % of the target is taken without looking for a larger one.

    Args:
        gigabytes: Peak memory of a step with that many samples; it grows, and is convex but for rounding: the largest of the
            amounts at the moments of a step, each of which is linear.
        target: GB that the step may take.
        first_guess: Batch size where the search begins, at least 1.
        limit: The largest batch size that the data set allows, at least 1.

    Returns:
        Batch size of the SSL stage, 1 to ``limit``.
    """
    known: dict[int, float] = {}
    fits, too_many = 0, limit + 1
    batch = min(first_guess, limit)
    while too_many - fits > 1 and known.get(fits, 0.0) < FILLED * target and _least(known, fits + 1) <= target:
        peak = known[batch] = gigabytes(batch)
        if peak <= target:
            fits = batch
        else:
            too_many = batch
        batch = int(batch * target / peak)
        if len(known) > 1:
            (left, low), (right, high) = sorted(sorted(known.items(), key=lambda item: abs(item[1] - target))[:2])
            batch = left + int((target - low) * (right - left) / max(high - low, 1e-9 * target))
        batch = min(max(batch, fits + 1), too_many - 1)
    return max(1, fits)


def _least(known: dict[int, float], batch: int) -> float:
    """What a step takes at least: a convex function is above a line through two of its points, but for between them."""
    tried = sorted(known)
    pairs = ([b for b in tried if b < batch][-2:], [b for b in tried if b > batch][:2])
    lines = [
        known[a] + (batch - a) * (known[b] - known[a]) / (b - a) for a, b in (pair for pair in pairs if len(pair) == 2)
    ]
    return max(lines, default=0.0)
