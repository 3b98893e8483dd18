"""What a conversion changes in the voxels of an image, and what it says about those that it leaves as they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import SimpleITK as sitk

from emim_nnunet.dataset_conversion.family import MASK, DatasetFamily
from emim_nnunet.datasets.background import background_remark, dominating_value, outside_value

if TYPE_CHECKING:
    from emim_nnunet.dataset_conversion.converter import Options
    from emim_nnunet.dataset_conversion.source_cases import SourceCase


class Remedied(NamedTuple):
    """An image as it is written.

    Attributes:
        image: On its final grid.
        set_to_zero: Value of the voxels that became 0; None = none did.
        filled_with: Value where the grid goes beyond the image; None = it was not resampled.
    """

    image: sitk.Image
    set_to_zero: float | None
    filled_with: float | None


def remedied(
    image: sitk.Image, grid: sitk.Image | None, mask: sitk.Image | None, *, background_to_zero: bool
) -> Remedied:
    """An image with a background of 0, on the grid of its case.

    Args:
        image: As read.
        grid: To put it on, linear; None = its own.
        mask: Of brain or body, on any grid; outside of it the image becomes 0.
        background_to_zero: A value other than 0 that dominates the image becomes 0. All other voxels keep their values.
    """
    voxels = sitk.GetArrayViewFromImage(image)
    set_to_zero = (dominating_value(voxels) or None) if background_to_zero else None
    filled_with = None
    result = image
    if set_to_zero is not None:
        result = _like(image, np.where(voxels == set_to_zero, voxels.dtype.type(0), voxels))
    if grid is not None:
        filled_with = 0.0 if background_to_zero else outside_value(voxels)
        result = sitk.Resample(result, grid, sitk.Transform(), sitk.sitkLinear, filled_with)
    if mask is not None:
        voxels = sitk.GetArrayFromImage(result)
        voxels[~body(mask, result)] = 0
        result = _like(result, voxels)
    return Remedied(result, set_to_zero, filled_with)


def body(mask: sitk.Image, grid: sitk.Image) -> np.ndarray:
    """Which voxels (z, y, x) of a grid are inside of a mask, by the nearest one."""
    return sitk.GetArrayFromImage(on_grid(mask, grid)) != 0


def on_grid(labels: sitk.Image, grid: sitk.Image) -> sitk.Image:
    """A segmentation on another grid, by the nearest voxel; 0 where it ends."""
    return sitk.Resample(labels, grid, sitk.Transform(), sitk.sitkNearestNeighbor, 0)


def _like(image: sitk.Image, voxels: np.ndarray) -> sitk.Image:
    result = sitk.GetImageFromArray(voxels)
    result.CopyInformation(image)
    return result


def remarks(family: DatasetFamily, cases: Sequence[SourceCase], options: Options) -> list[str]:
    """What a user must know about the images of a conversion, a line each.

    Args:
        family: Table of the data set.
        cases: Those that are taken, checked.
        options: Of the conversion.
    """
    lines = []
    backgrounds = {f"case {c.identifier}, {channel}": found for c in cases for channel, found in c.background.items()}
    if backgrounds:
        constant = any(found.value is not None for found in backgrounds.values())
        noise = any(found.value is None for found in backgrounds.values())
        help_ = ["--background_to_zero sets a constant to 0"] * constant
        help_ += ["--mask of folders and bids takes a mask of the brain or body"] * (noise or not constant)
        num_images = sum(channel in case.files for case in cases for channel in family.channels)
        lines.append(f"{background_remark(backgrounds, num_images)}: {'; '.join(help_)}")
    texts = [places for case in cases for places in case.header_text.values()]
    if texts and not options.strip_header:
        fields = ", ".join(f"{n} {field}" for field, n in Counter(f for places in texts for f in places).most_common())
        remedy = "without --link, --strip_header leaves it out" if options.link else "--strip_header leaves it out"
        lines.append(
            f"{len(texts)} image files hold text in their headers ({fields}), which may say who a patient is, and goes with "
            f"them: {remedy}"
        )
    outside = {case.identifier: case.label_outside_mask for case in cases if case.label_outside_mask}
    if outside:
        worst = max(outside, key=lambda identifier: outside[identifier])
        lines.append(
            f"{len(outside)} cases have labelled voxels outside of their {MASK}, where the images are 0 now (most in {worst}: "
            f"{outside[worst]:.0%} of them)"
        )
    lost = [case.identifier for case in cases if case.lost_labels]
    if lost:
        lines.append(f"{len(lost)} cases lost labels by resampling (--allow_lost_labels), the first is {lost[0]}")
    return lines
