"""Writing the checked cases of a source as a raw data set of nnU-Net."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from emim_nnunet.dataset_conversion.case import LABEL, MASK, TARGET_ENDING, SourceCase, SourceFile
from emim_nnunet.dataset_conversion.family import DatasetFamily
from emim_nnunet.dataset_conversion.options import Options
from emim_nnunet.dataset_conversion.remedies import remedied
from emim_nnunet.dataset_conversion.source_image import on_grid, read_image, with_voxels, zeros_like
from emim_nnunet.datasets.headers import copy_without_text, says_orientation
from emim_nnunet.datasets.images import save_image
from emim_nnunet.datasets.raw import FOLDERS, MISSING, PROVENANCE, UNLABELLED
from emim_nnunet.datasets.splits import PATIENTS, ensure_splits
from emim_nnunet.errors import UserError
from emim_nnunet.nnunet.descriptions import generate_dataset_json
from emim_nnunet.storage.files import copy_file, write_json
from emim_nnunet.storage.versions import versions


def describe(family: DatasetFamily, all_cases: Sequence[SourceCase], folder: Path, name: str, options: Options) -> None:
    """Write the files that describe a data set whose images and labels are there.

    Args:
        family: The table that describes the data set.
        all_cases: All cases of the source, without problems where they are taken.
        folder: Holds the images and labels.
        name: Name of the data set, ``DatasetXXX_NAME``.
        options: How the cases were converted, and which are taken.

    Raises:
        OSError: A file could not be written.
    """
    _describe(family, options.taken(all_cases), folder, name)
    write_json(folder / PROVENANCE, _provenance(family, all_cases, options))


def _describe(family: DatasetFamily, cases: Sequence[SourceCase], folder: Path, name: str) -> None:
    """Write dataset.json, and where there is something to say, the files about patients, folds and missing channels."""
    labelled = [case.identifier for case in cases if case.labelled]
    generate_dataset_json(
        str(folder),
        channel_names=dict(enumerate(family.channels)),
        labels=family.labels,
        num_training_cases=len(labelled),
        file_ending=TARGET_ENDING,
        regions_class_order=family.regions_class_order,
        dataset_name=name,
        reference=family.citation,
        license=family.licence,
        description=family.title,
        converted_by=f"emim_nnunet {versions()['emim_nnunet']}",
    )
    dataset_json = json.loads((folder / "dataset.json").read_text())
    write_json(folder / "dataset.json", dataset_json | {"citation": family.citation})
    patients = {case.identifier: case.patient for case in cases}
    if len(set(patients.values())) < len(patients):
        write_json(folder / PATIENTS, patients)
    if len({patients[case] for case in labelled}) < len(labelled):
        ensure_splits(folder, labelled)
    missing = {case.identifier: case.missing for case in cases if case.missing}
    if missing:
        write_json(folder / MISSING, missing)


def write_case(family: DatasetFamily, case: SourceCase, folder: Path, options: Options) -> None:
    """Write the images of a case, and its label where it has one.

    Args:
        family: The table that describes the data set.
        case: The case, checked and without problems.
        folder: Has the folders of a raw data set.
        options: How the case is converted.

    Raises:
        OSError: A file could not be written.
    """
    reference = write_images(family, case, folder / ("imagesTr" if case.labelled else UNLABELLED), options)
    target = folder / "labelsTr" / f"{case.identifier}{TARGET_ENDING}"
    if case.labelled and not target.exists():
        _write_label(family, case.files[LABEL], target, reference if LABEL in case.on_other_grid else None)


def write_images(family: DatasetFamily, case: SourceCase, images: Path, options: Options) -> sitk.Image | None:
    """Write an image for every channel of the family, zeros where the case lacks it; what is there already stays.

    Args:
        family: Its channels are used.
        case: The case, checked and without problems.
        images: Folder of the images, which exists.
        options: How the case is converted.

    Returns:
        The image whose grid the others get; None where none is resampled.

    Raises:
        OSError: A file could not be written.
    """
    reference = read_image(case.files[options.resample_to]) if options.resample_to and case.on_other_grid else None
    mask = read_image(case.files[MASK]) if MASK in case.files else None
    for number, channel in enumerate(family.channels):
        target = images / f"{case.identifier}_{number:04d}{TARGET_ENDING}"
        grid = reference if channel in case.on_other_grid else None
        if os.path.lexists(target):
            continue
        if channel in case.missing:
            save_image(zeros_like(read_image(case.files[_grid_channel(family, case, options)])), target)
        else:
            _write_image(case, channel, target, grid, mask, options)
    return reference


def _grid_channel(family: DatasetFamily, case: SourceCase, options: Options) -> str:
    """The channel whose grid the case has."""
    return options.resample_to or next(channel for channel in family.channels if channel in case.files)


def _write_image(
    case: SourceCase,
    channel: str,
    target: Path,
    grid: sitk.Image | None,
    mask: sitk.Image | None,
    options: Options,
) -> None:
    """Write an image: the same bytes, or a link to them, where it is right already."""
    file = case.files[channel]
    if not case.copied(channel):
        image = remedied(read_image(file), grid, mask, background_to_zero=options.background_to_zero).image
        save_image(image, target)
    elif options.link:
        target.symlink_to(file.path.resolve())
    elif options.strip_header:
        copy_without_text(file.path, target)
    else:
        copy_file(file.path, target)


def _write_label(family: DatasetFamily, file: SourceFile, target: Path, grid: sitk.Image | None) -> None:
    """Write a segmentation with the values that nnU-Net wants, on a grid by the nearest voxel."""
    image = read_image(file)
    voxels = sitk.GetArrayFromImage(image)
    mapped = np.zeros(voxels.shape, dtype=np.uint8)
    for old, new in family.label_map.items():
        mapped[voxels == old] = new
    result = with_voxels(image, mapped)
    save_image(result if grid is None else on_grid(result, grid), target)


def _provenance(family: DatasetFamily, all_cases: Sequence[SourceCase], options: Options) -> dict[str, Any]:
    """What every file was made of, and how. Names of files and folders may say who a patient is: there are none."""
    cases = options.taken(all_cases)
    left_out = {case.identifier: case.missing for case in all_cases if case not in cases}
    return {
        "family": family.name,
        "licence": family.licence,
        "citation": family.citation,
        "overlaps_with": family.overlaps,
        "resampled_to": options.resample_to,
        "masked": family.masked,
        "header_text_left_out": options.strip_header,
        "num_labelled": sum(case.labelled for case in cases),
        "num_unlabelled": sum(not case.labelled for case in cases),
        "left_out_for_missing_channels": left_out,
        "cases": {
            case.identifier: {
                "labelled": case.labelled,
                "patient": case.patient,
                "orientation_known": all(
                    case.files[c].slices or says_orientation(case.files[c].path)
                    for c in family.channels
                    if c in case.files
                ),
                "resampled": case.on_other_grid,
                "filled_with": case.filled_with,
                "set_to_zero": case.set_to_zero,
                "background_not_zero": {c: found._asdict() for c, found in case.background.items()},
                "lost_labels": case.lost_labels,
                "missing": case.missing,
                "sha256": dict(sorted(case.sha256.items())),
            }
            for case in cases
        },
        "versions": versions(),
    }


def files_of(family: DatasetFamily, case: SourceCase) -> list[str]:
    """Names of the files of a case that is converted, below the folder of the data set."""
    images = "imagesTr" if case.labelled else UNLABELLED
    names = [f"{images}/{case.identifier}_{c:04d}{TARGET_ENDING}" for c in range(len(family.channels))]
    return [*names, *([f"labelsTr/{case.identifier}{TARGET_ENDING}"] if case.labelled else [])]


def keep_only_what_was_planned(folder: Path, family: DatasetFamily, cases: Sequence[SourceCase]) -> None:
    """Compare images and labels with what should be there; remove what a killed run left beside them.

    Args:
        folder: Work folder that is filled.
        family: The table that describes the data set.
        cases: The cases that are taken; others have no files.

    Raises:
        UserError: Something that was written is gone.
    """
    planned = {name for case in cases for name in files_of(family, case)}
    found = {f"{sub}/{name}" for sub in FOLDERS for name in os.listdir(folder / sub)}
    if planned - found:
        raise UserError(f"{folder / min(planned - found)} was written and is gone again: repeat the command")
    for name in found - planned:
        (folder / name).unlink()
