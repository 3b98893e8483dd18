"""What is in a raw data set, labelled or not."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from emim_nnunet.errors import UserError
from emim_nnunet.nnunet.descriptions import find_candidate_datasets
from emim_nnunet.nnunet.images import NaturalImage2DIO
from emim_nnunet.nnunet.paths import nnUNet_preprocessed, nnUNet_raw
from emim_nnunet.storage.files import read_json

UNLABELLED = "imagesUnlabelled"
FOLDERS = ("imagesTr", "labelsTr", UNLABELLED)
MISSING = "missing_channels.json"  # case -> names of the channels that are zeros; where there is such a case
PROVENANCE = "provenance.json"  # what a conversion made the data set of


def dataset_name(dataset_id: int) -> str:
    """``DatasetXXX_NAME`` of an id.

    Args:
        dataset_id: Number XXX, without leading zeros.

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
        folder: Holds CASE_0000, CASE_0001, ... per case. A colour image holds several channels: there are fewer files then.
        dataset_json: Description of the data set, with ``file_ending`` and ``channel_names``.

    Returns:
        Case id -> paths of its images in the order of the channels; empty when the folder is missing.

    Raises:
        UserError: A case lacks a file, or has too many.
    """
    ending, channels = dataset_json["file_ending"], len(dataset_json["channel_names"])
    cut = len(ending) + len("_0000")
    cases: dict[str, list[str]] = {}
    for file in sorted(folder.glob(f"*_[0-9][0-9][0-9][0-9]{ending}")):
        cases.setdefault(file.name[:-cut], []).append(str(file))
    for case, images in cases.items():
        expected = len(images) if _has_colours(dataset_json) and len(images) <= channels else channels
        if images != [str(folder / f"{case}_{c:04d}{ending}") for c in range(expected)]:
            raise UserError(f"{folder / case}: expected exactly the channels 0000 to {channels - 1:04d}, one file each")
    return cases


def _has_colours(dataset_json: dict[str, Any]) -> bool:
    """Whether nnU-Net reads several channels from one file: its reader of two-dimensional pictures does."""
    reader = dataset_json.get("overwrite_image_reader_writer", "None")
    by_ending = dataset_json["file_ending"].lower() in NaturalImage2DIO.supported_file_endings
    return by_ending if reader == "None" else reader == NaturalImage2DIO.__name__


def check_channels(folder: Path, dataset_json: dict[str, Any], num_threads: int) -> None:
    """Whether pictures, whose files may hold one channel or several, have those of ``dataset.json``.

    Args:
        folder: Raw data set. Other formats have one channel per file, which :func:`images_of_cases` counts.
        dataset_json: Description of the data set.
        num_threads: Number of cases that are read at a time.

    Raises:
        UserError: A case has others, or cannot be read; the message names the first one.
    """
    if not _has_colours(dataset_json):
        return
    names = list(dataset_json["channel_names"].values())
    found = [
        images for sub in ("imagesTr", UNLABELLED) for images in images_of_cases(folder / sub, dataset_json).values()
    ]
    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        for images, number in zip(found, pool.map(_num_channels, found), strict=True):
            if number != len(names):
                raise UserError(
                    f"{images[0]}: the case has {number} channels in {len(images)} files, dataset.json has {len(names)} "
                    f"({', '.join(map(str, names))})"
                )


def _num_channels(images: list[str]) -> int:
    """Channels that nnU-Net reads from the pictures of a case."""
    try:
        return len(NaturalImage2DIO().read_images(images)[0])
    except AssertionError as error:
        if images[0].lower().endswith(".tif"):  # volumes, one per channel: nnU-Net's next reader takes them
            return len(images)
        raise UserError(f"{images[0]}: the case cannot be read ({' '.join(str(error).split())})") from error
    except (OSError, RuntimeError, SyntaxError, ValueError) as error:
        reason = " ".join(str(error).split()) or "its files are of different size"
        raise UserError(f"{images[0]}: the case cannot be read ({reason})") from error


def unlabelled_images(folder: Path, dataset_json: dict[str, Any]) -> dict[str, list[str]]:
    """Images of the cases without label of a raw data set; empty where it has none. As :func:`images_of_cases`."""
    return images_of_cases(folder / UNLABELLED, dataset_json)


def missing_channels(folder: Path) -> dict[str, list[str]]:
    """What the cases of a raw data set lack.

    Args:
        folder: Raw data set; only one that ``emim_convert`` or ``emim_pool`` wrote says it.

    Returns:
        Case -> names of the channels that are zeros in it; cases that have all are left out.

    Raises:
        UserError: The file is not as these commands write it.
    """
    file = folder / MISSING
    content = read_json(file) if file.is_file() else {}
    if not isinstance(content, dict) or not all(isinstance(names, list) for names in content.values()):
        raise UserError(f"{file} must be a JSON object: case -> list of channels")
    return {case: names for case, names in content.items() if names}


def cases_without_orientation(folder: Path) -> set[str]:
    """Cases whose sources did not say how the patient lay, although converted images do; none where nothing is known.

    Args:
        folder: Raw data set; only one that ``emim_convert`` or ``emim_pool`` wrote says it.

    Returns:
        Ids of these cases.
    """
    file = folder / PROVENANCE
    content = read_json(file) if file.is_file() else {}
    cases = content.get("cases", {}) if isinstance(content, dict) else {}
    return {
        case for case, about in cases.items() if isinstance(about, dict) and not about.get("orientation_known", True)
    }
