"""The folders and descriptions of data sets that a command names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emim_nnunet.errors import UserError
from emim_nnunet.nnunet.paths import nnUNet_preprocessed
from emim_nnunet.settings.plans import check_plans
from emim_nnunet.storage.files import read_json

REQUIRED_KEYS = ("channel_names", "labels", "numTraining", "file_ending")


def read_plans(folder: Path, plans_name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the plans and dataset.json of a preprocessed data set.

    Args:
        folder: Folder of the data set, see :func:`preprocessed_folder`.
        plans_name: Name of the plans.

    Returns:
        The plans and the content of dataset.json, as dicts.

    Raises:
        UserError: The plans or dataset.json are missing or not valid.
    """
    plans_file = folder / f"{plans_name}.json"
    if not plans_file.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*Plans*.json"))) or "no plans"
        raise UserError(f"-p {plans_name}: {folder.name} has {known}")
    plans = read_json(plans_file)
    check_plans(plans)
    if plans["dataset_name"] != folder.name:
        raise UserError(f"{plans_file} is of another data set, {plans['dataset_name']}")
    return plans, read_dataset_json(folder)


def read_dataset_json(folder: Path) -> dict[str, Any]:
    """Read ``dataset.json`` of a raw or preprocessed data set.

    Raises:
        UserError: The file is missing, not JSON, or incomplete.
    """
    path = folder / "dataset.json"
    if not path.is_file():
        raise UserError(f"{path} is missing: convert the data set first")
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} must be a JSON object")
    missing = [key for key in REQUIRED_KEYS if key not in content]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}")
    for key in ("channel_names", "labels"):
        if not isinstance(content[key], dict) or not content[key]:
            raise UserError(f"'{key}' in {path} must be a JSON object with at least one entry")
    if sorted(content["channel_names"]) != sorted(map(str, range(len(content["channel_names"])))):
        raise UserError(f'\'channel_names\' in {path} must have the keys "0", "1", and so on')
    return content


def preprocessed_folder(dataset: int | str) -> Path:
    """Find the folder of a data set in ``nnUNet_preprocessed``.

    Args:
        dataset: The id of the data set, or the name of its folder.

    Returns:
        The folder.

    Raises:
        UserError: The variable ``nnUNet_preprocessed`` is not set, or there is no such data set.
    """
    if not nnUNet_preprocessed.is_set():
        raise UserError("the environment variable nnUNet_preprocessed is not set: it must name a folder")
    if isinstance(dataset, str) and not dataset.isdecimal():
        folder = Path(nnUNet_preprocessed) / Path(dataset).name
        if folder.name != dataset or not folder.is_dir():
            raise UserError(f"data set {dataset}: neither a number nor the name of a folder in {nnUNet_preprocessed}")
        return folder
    dataset_id = int(dataset)
    folders = sorted(Path(nnUNet_preprocessed).glob(f"Dataset{dataset_id:03d}_*"))
    if len(folders) != 1:
        raise UserError(
            f"-d {dataset_id}: expected one folder Dataset{dataset_id:03d}_NAME in {nnUNet_preprocessed}, found "
            f"{len(folders)}"
        )
    return folders[0]
