"""Regions of cases: classes of their segmentations, a label map per case, or an atlas that all cases share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from emim_nnunet.datasets.dataset import PreprocessedDataset
from emim_nnunet.datasets.images import read_image_file
from emim_nnunet.datasets.preprocessed import Case, open_case, read_properties, readable
from emim_nnunet.errors import UserError
from emim_nnunet.nnunet.plans import PlansManager
from emim_nnunet.storage.files import sha256_of

SEGMENTATION = "segmentation"
ENDINGS = (".nii.gz", ".nii", ".mha", ".nrrd")
TOLERANCE = 1e-3


class Regions:
    """Where label maps come from, and which of their values are which region.

    Args:
        source: ``segmentation``; a folder with a label map ``CASE.nii.gz`` per case; or the file of one label map for all.
        named: Name -> values that belong to it; empty = the classes of the segmentations, or every value for itself.
        data: The data set that the cases belong to.

    Attributes:
        values: Name -> values, in the order in which they stand in the table.

    Raises:
        UserError: The source does not exist or is not readable, or holds no region.
    """

    def __init__(self, source: str, named: Mapping[str, Sequence[int]], data: PreprocessedDataset) -> None:
        self._data, self._folder, self._atlas = data, None, None
        self.values: dict[str, Sequence[int]] = dict(named)
        self.sha256: str | None = None
        if source == SEGMENTATION:
            self.values = self.values or _classes(data)
            return
        path = Path(source)
        if path.is_dir():
            self._folder = path
            if not any(_label_file(path, case) for case in data.cases):
                raise UserError(
                    f"--regions {source} holds no label map of a case, such as {next(iter(data.cases))}.nii.gz"
                )
        elif path.is_file():
            self._atlas, self.sha256 = _read(path), sha256_of(path)
        else:
            raise UserError(f"--regions {source}: expected '{SEGMENTATION}', a folder of label maps, or a label map")
        self.values = self.values or {f"label{value}": (value,) for value in self._all_values()}

    def label_map(self, case: Case) -> np.ndarray | None:
        """The label map of a case on its preprocessed voxels.

        Args:
            case: The case.

        Returns:
            (*shape) int; None where the case has none.

        Raises:
            UserError: The label map cannot be read, or is on another grid than the images of the case were.
        """
        with readable(case.identifier):
            image, seg = open_case(case.folder, case.identifier)
            shape = image.shape[1:]
            if self._folder is None and self._atlas is None:
                return np.asarray(seg)[0] if case.folder == self._data.labelled_folder else None
        file = None if self._folder is None else _label_file(self._folder, case.identifier)
        labels = self._atlas if self._folder is None else None if file is None else _read(file)
        if labels is None:
            return None
        properties = read_properties(case.folder, case.identifier)
        where = f"the label map {'of ' if file else 'for '}case {case.identifier}"
        return _as_preprocessed(labels, properties, shape, self._data.plans["transpose_forward"], where)

    def _all_values(self) -> list[int]:
        files = [] if self._folder is None else [_label_file(self._folder, case) for case in self._data.cases]
        maps = [self._atlas] if self._atlas is not None else (_read(file) for file in files if file is not None)
        found = {int(value) for labels in maps for value in np.unique(sitk.GetArrayViewFromImage(labels))} - {0}
        if not found:
            raise UserError("--regions: the label maps hold nothing but 0")
        return sorted(found)


def _classes(data: PreprocessedDataset) -> dict[str, Sequence[int]]:
    """The classes of the data set, with the values that are in its preprocessed segmentations."""
    manager = PlansManager(data.plans).get_label_manager(data.dataset_json)
    wanted = data.dataset_json["labels"].items()
    values = {name: tuple(v) if isinstance(v, list | tuple) else (v,) for name, v in wanted}
    kept: dict[str, Sequence[int]] = {
        name: v for name, v in values.items() if v != (0,) and manager.ignore_label not in v
    }
    if not kept or not data.labelled:
        raise UserError(f"--regions {SEGMENTATION}: {data.name} has no case with a segmentation")
    return kept


def _label_file(folder: Path, case: str) -> Path | None:
    return next((file for ending in ENDINGS if (file := folder / f"{case}{ending}").is_file()), None)


def _read(file: Path) -> sitk.Image:
    try:
        image = read_image_file(file)
    except RuntimeError as error:
        raise UserError(f"{file} is not a readable image ({str(error).strip().splitlines()[-1].strip()})") from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise UserError(f"{file} must be a three-dimensional label map")
    voxels = sitk.GetArrayFromImage(image)
    if not np.isfinite(voxels).all() or not np.array_equal(voxels, voxels.astype(np.int32)):
        raise UserError(f"{file} must be a label map: it holds values that are no whole numbers")
    return sitk.Cast(image, sitk.sitkInt32)


def _as_preprocessed(
    labels: sitk.Image, properties: Mapping[str, Any], shape: Sequence[int], transpose: Sequence[int], where: str
) -> np.ndarray:
    """A label map on the grid of the raw images after what preprocessing did to those: order of axes, cropping, resampling."""
    placed = properties.get("sitk_stuff")
    if placed is None:
        raise UserError(
            f"{where}: its images were not read by SimpleITK, so that its grid is not known: use segmentations"
        )
    raw = tuple(np.array(labels.GetSize()[::-1])[list(transpose)])
    if raw != tuple(properties["shape_before_cropping"]):
        expected = [int(n) for n in np.array(properties["shape_before_cropping"])[np.argsort(transpose)]]
        raise UserError(f"{where} has the size {list(labels.GetSize()[::-1])}, its images {expected} (z, y, x)")
    for name in ("Spacing", "Origin", "Direction"):
        own, theirs = getattr(labels, f"Get{name}")(), placed.get(name.lower())
        if len(theirs) == len(own) and not np.allclose(own, theirs, rtol=TOLERANCE, atol=TOLERANCE):
            raise UserError(f"{where} is on another grid than its images: another {name.lower()}")
    voxels = sitk.GetArrayFromImage(labels).transpose(transpose)
    voxels = voxels[tuple(slice(first, last) for first, last in properties["bbox_used_for_cropping"])]
    for axis, (old, new) in enumerate(zip(voxels.shape, shape, strict=True)):  # the nearest voxel
        voxels = voxels.take(((np.arange(new) + 0.5) * old / new).astype(int), axis)
    return voxels
