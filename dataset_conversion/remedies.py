"""What a conversion changes in the voxels of an image."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from emim_nnunet.dataset_conversion.source_image import body, with_voxels
from emim_nnunet.datasets.background import dominating_value, outside_value


class Remedied(NamedTuple):
    """An image as it is written.

    Attributes:
        image: The image on the grid of its case.
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
        image: As :func:`.source_image.read_image` gives it.
        grid: Image whose grid it gets, by linear interpolation; None = it keeps its own.
        mask: Mask of brain or body (inside is not 0), on any grid; outside of it the image becomes 0. None = no mask.
        background_to_zero: A value other than 0 that dominates the image becomes 0. All other voxels keep their values.
    """
    voxels = sitk.GetArrayViewFromImage(image)
    set_to_zero = (dominating_value(voxels) or None) if background_to_zero else None
    filled_with = None
    result = image
    if set_to_zero is not None:
        result = with_voxels(image, np.where(voxels == set_to_zero, voxels.dtype.type(0), voxels))
    if grid is not None:
        filled_with = 0.0 if background_to_zero else outside_value(voxels)
        result = sitk.Resample(result, grid, sitk.Transform(), sitk.sitkLinear, filled_with)
    if mask is not None:
        voxels = sitk.GetArrayFromImage(result)
        voxels[~body(mask, result)] = 0
        result = with_voxels(result, voxels)
    return Remedied(result, set_to_zero, filled_with)
