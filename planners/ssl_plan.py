"""The rules that derive the ``emim`` block. The first line of each docstring is the rule."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod

from nnunetv2.configuration import ANISO_THRESHOLD

from emim_nnunet.errors import UserError
from emim_nnunet.networks.decoder import decoder_widths
from emim_nnunet.networks.geometry import cumulative_strides, stage_grids

Strides = Sequence[int | Sequence[int]]

POSITION_RATIO, PATCH_RATIO = 0.25, 0.5
MAX_CELL, MIN_CELLS_PER_AXIS = 16, 4
NUM_LEVELS, MIN_ROWS = 3, 256
MIN_WIDTH, MAX_WIDTH, WIDTH_FACTOR = 512, 2048, 4
CROPS_PER_CASE, ITERATIONS_PER_EPOCH = 400, 250
MIN_EPOCHS, MAX_EPOCHS = 100, 1000
# tensors of the size of the image (input, masked input, output, error, ...), of a decoder stage, of a projector's rows
IMAGE_MAPS, DECODER_MAPS, PROJECTOR_MAPS = 8, 3, 20
MAX_ROWS_PER_SAMPLE = 512


def cell_size(strides: Strides, patch_size: Sequence[int]) -> tuple[int, ...]:
    """The stride of the deepest encoder stage that is at most 16 voxels and leaves at least 4 cells, on every axis.

    Args:
        strides: Stride of each encoder stage.
        patch_size: Voxels per axis.

    Returns:
        Voxels of a cell per axis.

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
        strides: Stride of each encoder stage.
        patch_size: Voxels per axis.
        cell: Voxels of a cell per axis.
        batch_size: Of the SSL stage.

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
        features_per_stage: Channels of each encoder stage.
        levels: Pyramid levels.

    Returns:
        One width per level.
    """
    return tuple(min(max(WIDTH_FACTOR * features_per_stage[level], MIN_WIDTH), MAX_WIDTH) for level in levels)


def parent_factor(patch_size: Sequence[int]) -> tuple[int, ...]:
    """2 on every axis; 1 on axes of an odd number of voxels, and across the slices of an anisotropic patch.

    nnU-Net's patches have about the same extent in millimetres on every axis, so an axis with less than a third of the largest
    number of voxels has thick slices: their number suffices for the whole volume as it is.

    Args:
        patch_size: Voxels per axis.

    Returns:
        Size of MiM's wide crop in patches, per axis.
    """
    return tuple(1 if p % 2 or max(patch_size) / p > ANISO_THRESHOLD else 2 for p in patch_size)


def num_epochs(num_cases: int, batch_size: int) -> int:
    """As many epochs of 250 steps as show 400 crops of each case, within 100 to 1000.

    Args:
        num_cases: Labelled and unlabelled.
        batch_size: Of the SSL stage.

    Returns:
        Epochs.
    """
    epochs = ceil(num_cases * CROPS_PER_CASE / (ITERATIONS_PER_EPOCH * batch_size))
    return min(max(epochs, MIN_EPOCHS), MAX_EPOCHS)


def ssl_feature_map_size(
    encoder_size: int,
    features_per_stage: Sequence[int],
    strides: Strides,
    patch_size: Sequence[int],
    cell: Sequence[int],
    channels: int,
) -> float:
    """Memory of an E-MIM step per sample in nnU-Net's unit: values that convolutions put out.

    What autograd keeps is about 8 bytes per such value in float32 (measured on planned U-Nets, see the test), so a plain
    float32 tensor counts half a unit per value. Encoder with gradient, light decoder, image-sized tensors, stage outputs of
    the gradient-free pass over the original view, and the projectors' rows.

    Args:
        encoder_size: nnU-Net's ``compute_conv_feature_map_size`` of the encoder.
        features_per_stage: Channels of each encoder stage.
        strides: Stride of each encoder stage.
        patch_size: Voxels per axis.
        cell: Voxels of a cell per axis.
        channels: Of the image.

    Returns:
        Units.
    """
    voxels = [prod(grid) for grid in stage_grids(strides, patch_size)]
    widths = decoder_widths(features_per_stage)
    decoder = sum(DECODER_MAPS * widths[s] * voxels[s] for s in range(1, len(voxels)))
    image = 0.5 * IMAGE_MAPS * channels * voxels[0]
    outputs = 0.5 * sum(f * v for f, v in zip(features_per_stage, voxels, strict=True))
    deepest = range(max(1, len(voxels) - NUM_LEVELS), len(voxels))
    rows = min(MAX_ROWS_PER_SAMPLE, prod(p // c for p, c in zip(patch_size, cell, strict=True)))
    projectors = 0.5 * PROJECTOR_MAPS * rows * sum(projector_widths(features_per_stage, deepest))
    return encoder_size + decoder + image + outputs + projectors


def ssl_batch_size(batch_size: int, unet_size: int, ssl_size: float) -> int:
    """The segmentation batch size scaled by the ratio of feature maps (U-Net : SSL), rounded down, at least 1.

    Args:
        batch_size: Of the segmentation stage, which fits the memory target.
        unet_size: nnU-Net's ``compute_conv_feature_map_size`` of the whole U-Net.
        ssl_size: Of :func:`ssl_feature_map_size`.

    Returns:
        Batch size of the SSL stage, which fits the same target.
    """
    return max(1, int(batch_size * unet_size / ssl_size))
