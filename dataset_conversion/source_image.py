"""An image of a source: reading it, comparing and changing the grid that it is on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from emim_nnunet.dataset_conversion.case import SourceFile
from emim_nnunet.datasets.images import read_dicom_series, read_image_file

GRID_TOLERANCE = 1e-3
TEXT_KEYS = ("ITK_FileNotes", "descrip", "aux_file", "intent_name")  # under which ITK hands on the text of a header
sitk.ProcessObject.SetGlobalWarningDisplay(False)


def read_image(file: SourceFile) -> sitk.Image:
    """The three-dimensional image that a source file stands for.

    Args:
        file: Where it is: a three-dimensional file, a place in a four-dimensional one, or the slices of a series.

    Returns:
        The image, without the text of its header.

    Raises:
        RuntimeError: SimpleITK cannot read the file, or one of the slices.
        ValueError: The file has not the dimensions, or not the channels, that it should have.
    """
    image = _read_slices(file.slices) if file.slices else read_image_file(file.path)
    if file.component is not None:
        if image.GetDimension() != 4 or image.GetSize()[3] <= file.component:
            raise ValueError(f"must be a four-dimensional image of at least {file.component + 1} channels")
        image = image[:, :, :, file.component]
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ValueError("must be a three-dimensional scalar image")
    for key in TEXT_KEYS:
        image.EraseMetaData(key)
    return image


def _read_slices(slices: Sequence[Path]) -> sitk.Image:
    """The volume of a DICOM series, without what its headers say about the patient."""
    image = read_dicom_series(slices)
    for key in image.GetMetaDataKeys():
        image.EraseMetaData(key)
    return image


def grid_difference(first: sitk.Image, second: sitk.Image) -> str:
    """What differs between two grids, or an empty string.

    Args:
        first: The image whose grid is given first.
        second: The image that it is compared with.

    Returns:
        The first difference, for example ``spacing [1, 1, 1] and [1, 1, 2] mm``; sizes are in voxels (x, y, z).
    """
    if first.GetSize() != second.GetSize():
        return f"size {list(first.GetSize())} and {list(second.GetSize())}"
    for name, unit in (("Spacing", " mm"), ("Origin", " mm"), ("Direction", "")):
        a, b = (getattr(image, f"Get{name}")() for image in (first, second))
        if not np.allclose(a, b, rtol=GRID_TOLERANCE, atol=GRID_TOLERANCE):
            shown = [", ".join(f"{v:g}" for v in values) for values in (a, b)]
            return f"{name.lower()} [{shown[0]}] and [{shown[1]}]{unit}"
    return ""


def overlap(first: sitk.Image, second: sitk.Image) -> bool:
    """Whether the boxes around two images, in millimetres, share anything."""
    boxes = []
    for image in (first, second):
        far = [n - 1 for n in image.GetSize()]
        corners = np.array(
            [
                image.TransformIndexToPhysicalPoint([f if bits >> a & 1 else 0 for a, f in enumerate(far)])
                for bits in range(8)
            ]
        )
        boxes.append((corners.min(0), corners.max(0)))
    return bool((np.maximum(boxes[0][0], boxes[1][0]) < np.minimum(boxes[0][1], boxes[1][1])).all())


def on_grid(labels: sitk.Image, grid: sitk.Image) -> sitk.Image:
    """A segmentation on another grid, by the nearest voxel; 0 where it ends."""
    return sitk.Resample(labels, grid, sitk.Transform(), sitk.sitkNearestNeighbor, 0)


def body(mask: sitk.Image, grid: sitk.Image) -> np.ndarray:
    """Which voxels (z, y, x) of a grid are inside of a mask, by the nearest one."""
    return sitk.GetArrayFromImage(on_grid(mask, grid)) != 0


def with_voxels(image: sitk.Image, voxels: np.ndarray) -> sitk.Image:
    """Other voxels (z, y, x) on the grid of an image."""
    result = sitk.GetImageFromArray(voxels)
    result.CopyInformation(image)
    return result


def zeros_like(image: sitk.Image) -> sitk.Image:
    """Zeros (int16) on the grid of an image: what stands for a channel that a case lacks."""
    zeros = sitk.Image(image.GetSize(), sitk.sitkInt16)
    zeros.CopyInformation(image)
    return zeros
