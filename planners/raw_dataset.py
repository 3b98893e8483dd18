"""What is in a raw data set, labelled or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets

from emim_nnunet.errors import UserError

UNLABELLED = "imagesUnlabelled"


def dataset_name(dataset_id: int) -> str:
    """``DatasetXXX_NAME`` of an id.

    Raises:
        UserError: nnU-Net's folders are not set, or there is not exactly one data set of that id.
    """
    for variable in (nnUNet_raw, nnUNet_preprocessed):
        if not variable.is_set():
            raise UserError(f"the environment variable {variable.env_var_name} is not set: it must name a folder")
    found = find_candidate_datasets(dataset_id)
    if len(found) != 1:
        raise UserError(
            f"-d {dataset_id}: expected one folder Dataset{dataset_id:03d}_NAME in {nnUNet_raw}, found {len(found)}"
        )
    return str(found[0])


def images_of_cases(folder: Path, dataset_json: dict[str, Any]) -> dict[str, list[str]]:
    """Images of the cases in a folder.

    Args:
        folder: Holds CASE_0000, CASE_0001, ... per case.
        dataset_json: Of the data set.

    Returns:
        Paths per case in the order of the channels; empty when the folder is missing.

    Raises:
        UserError: A case lacks a channel, or has too many.
    """
    ending, channels = dataset_json["file_ending"], len(dataset_json["channel_names"])
    cut = len(ending) + len("_0000")
    cases: dict[str, list[str]] = {}
    for file in sorted(folder.glob(f"*_[0-9][0-9][0-9][0-9]{ending}")):
        cases.setdefault(file.name[:-cut], []).append(str(file))
    for case, images in cases.items():
        if images != [str(folder / f"{case}_{c:04d}{ending}") for c in range(channels)]:
            raise UserError(f"{folder / case}: expected exactly the channels 0000 to {channels - 1:04d}, one file each")
    return cases


def unlabelled_images(folder: Path, dataset_json: dict[str, Any]) -> dict[str, list[str]]:
    """Images of the cases without label of a raw data set; see :func:`images_of_cases`."""
    return images_of_cases(folder / UNLABELLED, dataset_json)


def raw_files(folder: Path, dataset_json: dict[str, Any]) -> list[Path]:
    """All images and labels that planning and preprocessing read, in the three folders of a raw data set."""
    folders = ("imagesTr", "labelsTr", UNLABELLED)
    return [file for sub in folders for file in sorted((folder / sub).glob(f"*{dataset_json['file_ending']}"))]
