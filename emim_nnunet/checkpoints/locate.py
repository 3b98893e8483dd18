"""Finding the files that a command names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed

from emim_nnunet.errors import UserError

CHECKPOINT_NAMES = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")


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
    found = [next((f / name for name in CHECKPOINT_NAMES if (f / name).is_file()), None) for f in folds]
    found = [file for file in found if file is not None]
    if len(found) == 1 or (found and found[0].parent == path):
        return found[0]
    if found:
        raise UserError(f"{path} holds several folds ({', '.join(file.parent.name for file in found)}): choose with -f")
    raise UserError(f"CHECKPOINT {path}: neither a file nor a folder with {' or '.join(CHECKPOINT_NAMES)}")


def read_target(dataset_id: int, plans_name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plans and dataset.json of a preprocessed data set.

    Args:
        dataset_id: Number.
        plans_name: Name of the plans.

    Returns:
        Both as dicts.

    Raises:
        UserError: Folder, data set or plans are missing, or not JSON.
    """
    folder = preprocessed_folder(dataset_id)
    plans_file = folder / f"{plans_name}.json"
    if not plans_file.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*Plans*.json"))) or "no plans"
        raise UserError(f"-p {plans_name}: {folder.name} has {known}")
    return _read_json(plans_file), _read_json(folder / "dataset.json")


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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error})") from error
