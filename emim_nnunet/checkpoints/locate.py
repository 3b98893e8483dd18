"""Finding the files that a command names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed

from emim_nnunet.errors import UserError

CHECKPOINT_NAMES = ("checkpoint_final.pth", "checkpoint_latest.pth")


def find_checkpoint(path: Path) -> Path:
    """A checkpoint file, or the newest one of a fold's folder.

    Args:
        path: File or folder.

    Returns:
        The file.

    Raises:
        UserError: There is none.
    """
    if path.is_file():
        return path
    for name in CHECKPOINT_NAMES:
        if (path / name).is_file():
            return path / name
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
    if not nnUNet_preprocessed.is_set():
        raise UserError("the environment variable nnUNet_preprocessed is not set: it must name a folder")
    folders = sorted(Path(nnUNet_preprocessed).glob(f"Dataset{dataset_id:03d}_*"))
    if len(folders) != 1:
        raise UserError(
            f"-d {dataset_id}: expected one folder Dataset{dataset_id:03d}_NAME in {nnUNet_preprocessed}, found "
            f"{len(folders)}"
        )
    plans_file = folders[0] / f"{plans_name}.json"
    if not plans_file.is_file():
        known = ", ".join(sorted(p.stem for p in folders[0].glob("*Plans*.json"))) or "no plans"
        raise UserError(f"-p {plans_name}: {folders[0].name} has {known}")
    return _read_json(plans_file), _read_json(folders[0] / "dataset.json")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error})") from error
