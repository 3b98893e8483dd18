"""Looking at a raw data set before it is planned: which cases there are, and whether their files can be used."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from emim_nnunet.datasets.background import Background, background_remark, wrong_background
from emim_nnunet.datasets.channel_names import channel_names
from emim_nnunet.datasets.folders import read_dataset_json
from emim_nnunet.datasets.images import check_streams
from emim_nnunet.datasets.raw import check_channels, images_of_cases, raw_files, unlabelled_images
from emim_nnunet.datasets.splits import (
    MAX_LISTED,
    PATIENTS,
    SPLITS,
    alike,
    check_patients,
    check_splits,
    read_origins,
    read_patients,
    read_splits,
)
from emim_nnunet.errors import UserError
from emim_nnunet.nnunet.descriptions import get_filenames_of_train_images_and_targets
from emim_nnunet.nnunet.images import determine_reader_writer_from_dataset_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RawDataset:
    """A raw data set that can be planned.

    Attributes:
        folder: Its folder ``nnUNet_raw/DatasetXXX_NAME``.
        description: Content of its dataset.json.
        labelled: Ids of the cases in imagesTr, ascending.
        unlabelled: Id of a case in imagesUnlabelled -> its images, in the order of the channels.
    """

    folder: Path
    description: dict[str, Any]
    labelled: list[str]
    unlabelled: dict[str, list[str]]


def look_at_raw_dataset(
    folder: Path, preprocessed: Path, patients: dict[str, str] | None, num_threads: int
) -> RawDataset:
    """Find the cases of a raw data set, and check all its files.

    Args:
        folder: ``nnUNet_raw/DatasetXXX_NAME``.
        preprocessed: ``nnUNet_preprocessed/DatasetXXX_NAME``, which need not exist.
        patients: Case -> patient, as the user says; None = the user says nothing.
        num_threads: Number of files that are read at a time.

    Raises:
        UserError: There is no case, a file is missing, damaged or not as it should be, or patients and folds contradict.
    """
    description = read_dataset_json(folder)
    raw = RawDataset(folder, description, _labelled_cases(folder, description), unlabelled_images(folder, description))
    if not raw.labelled and not raw.unlabelled:
        raise UserError(f"{folder} holds no case, neither in imagesTr nor in imagesUnlabelled")
    for known in (read_splits, read_patients, read_origins):  # of the conversion: are they readable?
        known(folder)
    _check_patients(folder, preprocessed, patients, {*raw.labelled, *raw.unlabelled})
    check_streams(raw_files(folder, description), num_threads)
    check_channels(folder, description, num_threads)
    return raw


def look_at_backgrounds(raw: RawDataset, num_threads: int) -> tuple[str, set[str]]:
    """Look for images whose background is not 0.

    Args:
        raw: The data set; all its images are read.
        num_threads: Number of cases that are read at a time.

    Returns:
        A line that says which and what helps, or an empty string; ids of the cases with such an image.

    Raises:
        UserError: A file cannot be read; the message names it.
    """
    dataset_json = raw.description
    train = get_filenames_of_train_images_and_targets(str(raw.folder), dataset_json) if raw.labelled else {}
    images = {case: files["images"] for case, files in train.items()} | raw.unlabelled
    reader = determine_reader_writer_from_dataset_json(dataset_json, next(iter(images.values()))[0], verbose=False)()
    names = channel_names(dataset_json)

    def look(files: list[str]) -> list[Background | None]:
        return [wrong_background(channel) for file in files for channel in read_case(reader, [file])[0]]

    found: dict[str, Background] = {}
    wrong: set[str] = set()
    with ThreadPoolExecutor(num_threads) as pool:
        looks = tqdm(pool.map(look, images.values()), "Looking at backgrounds", len(images), disable=None)
        for case, backgrounds in zip(images, looks, strict=True):
            named = zip(names, backgrounds, strict=False)
            found |= {f"case {case}, {name}": background for name, background in named if background}
            wrong |= {case} if any(backgrounds) else set()
    if not found:
        return "", wrong
    remark = (
        f"{background_remark(found, len(images) * len(names))}: set it to 0; emim_convert does with --background_to_zero or a "
        f"--mask"
    )
    return remark, wrong


def _check_patients(raw: Path, preprocessed: Path, patients: dict[str, str] | None, cases: set[str]) -> None:
    """What ``--patients`` says must agree with the rest; without it, ids that look like several of a patient are told."""
    if patients is None:
        group = [] if read_patients(raw) or read_patients(preprocessed) else alike(cases)
        if group:
            logger.warning(
                "WARNING: %s look like visits or slices of one patient, but each case is taken for a patient: cases of one may "
                "then be in training and validation. --patients FILE says whose each case is",
                ", ".join(group[:MAX_LISTED]),
            )
        return
    if (raw / PATIENTS).is_file():
        raise UserError(f"--patients: {raw / PATIENTS} says already whose each case is: edit that file, or remove it")
    check_patients(patients, cases, raw.name)
    for folder in (preprocessed, raw):  # that of the raw data counts only where there is no other
        if (folder / SPLITS).is_file():
            check_splits(folder, patients)
            break
    own = len(cases - set(patients))
    if own:
        logger.info("--patients says nothing of %d of %d cases: each of them is a patient", own, len(cases))


def _labelled_cases(raw: Path, dataset_json: dict[str, Any]) -> list[str]:
    """Ids of the cases in imagesTr, each with its label."""
    ending = dataset_json["file_ending"]
    if "dataset" in dataset_json:
        return sorted(dataset_json["dataset"])
    cases = sorted(images_of_cases(raw / "imagesTr", dataset_json))
    for case in cases:
        label = raw / "labelsTr" / f"{case}{ending}"
        if not label.is_file():
            raise UserError(f"{label} is missing: cases without label belong into {raw / 'imagesUnlabelled'}")
    return cases


def read_case(reader: Any, files: list[str]) -> tuple[np.ndarray, dict[str, Any]]:
    """Read images with a reader of nnU-Net's.

    Args:
        reader: An instance of the reader that the data set needs.
        files: Images of a case, or some of them.

    Returns:
        Voxels (channels, z, y, x), and nnU-Net's properties of the case.

    Raises:
        UserError: nnU-Net's reader fails; the message names the first file.
    """
    try:
        return reader.read_images(files)
    except RuntimeError as error:
        raise UserError(
            f"{files[0]}, or another channel of that case, cannot be read ({str(error).splitlines()[0]})"
        ) from error
