"""Finding the files that a command names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed

from emim_nnunet.checkpoints.io import read_json
from emim_nnunet.errors import UserError
from emim_nnunet.plans import check_plans

CHECKPOINT_NAMES = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_previous.pth", "checkpoint_best.pth")
REQUIRED_KEYS = ("channel_names", "labels", "numTraining", "file_ending")


def find_checkpoint(path: Path, fold: str | None = None) -> Path:
    """A checkpoint file, the newest one of a fold's folder, or that of a fold in nnU-Net's folder of a model.

    Args:
        path: File, folder of a fold, or folder of a model.
        fold: Number or ``all``; which fold of a model. None = the only one that has a checkpoint.

    Returns:
        The file.

    Raises:
        UserError: There is none, or there are several folds.
    """
    if path.is_file():
        return path
    folds = [path / f"fold_{fold}"] if fold is not None else [path, *sorted(path.glob("fold_*"))]
    per_fold = [next((f / name for name in CHECKPOINT_NAMES if (f / name).is_file()), None) for f in folds]
    found = [file for file in per_fold if file is not None]
    if len(found) == 1 or (found and found[0].parent == path):
        return found[0]
    if found:
        raise UserError(
            f"{path} holds several folds ({', '.join(file.parent.name for file in found)}): choose with -f, or name one of them"
        )
    raise UserError(f"CHECKPOINT {path}: neither a file nor a folder with {' or '.join(CHECKPOINT_NAMES)}")


def read_target(dataset_id: int, plans_name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plans and dataset.json of a preprocessed data set.

    Args:
        dataset_id: Number.
        plans_name: Name of the plans.

    Returns:
        Both as dicts.

    Raises:
        UserError: Folder, data set or plans are missing, or not as they must be.
    """
    return read_plans(preprocessed_folder(dataset_id), plans_name)


def read_plans(folder: Path, plans_name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """As :func:`read_target`, from the preprocessed folder of a data set."""
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
    """``dataset.json`` of a raw or preprocessed data set.

    Raises:
        UserError: Missing, not JSON, or incomplete.
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


def preprocessed_folder(dataset_id: int) -> Path:
    """Folder of a data set in ``nnUNet_preprocessed``.

    Args:
        dataset_id: Number.

    Returns:
        The folder.

    Raises:
        UserError: The variable is not set, or there is no such data set.
    """
    if not nnUNet_preprocessed.is_set():
        raise UserError("the environment variable nnUNet_preprocessed is not set: it must name a folder")
    folders = sorted(Path(nnUNet_preprocessed).glob(f"Dataset{dataset_id:03d}_*"))
    if len(folders) != 1:
        raise UserError(
            f"-d {dataset_id}: expected one folder Dataset{dataset_id:03d}_NAME in {nnUNet_preprocessed}, found "
            f"{len(folders)}"
        )
    return folders[0]
