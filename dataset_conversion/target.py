"""Where a new raw data set goes: its folder, and the lock on its id."""

from __future__ import annotations

import re
from pathlib import Path

from emim_nnunet.datasets.shards import Shard, lock_data_set
from emim_nnunet.errors import UserError
from emim_nnunet.nnunet.paths import nnUNet_raw
from emim_nnunet.storage.locks import Lock


def target_folder(dataset_id: int, name: str) -> Path:
    """The folder of a new raw data set, which is not made here.

    Args:
        dataset_id: 1 to 999, not used yet in nnUNet_raw.
        name: NAME in DatasetXXX_NAME: letters, digits, _ and -.

    Returns:
        ``nnUNet_raw/DatasetXXX_NAME``.

    Raises:
        UserError: nnUNet_raw is not set or no folder, or id or name cannot be taken.
    """
    if not nnUNet_raw.is_set():
        raise UserError("the environment variable nnUNet_raw is not set: it must name the folder of raw data sets")
    raw = Path(nnUNet_raw)
    if not raw.is_dir():
        raise UserError(f"nnUNet_raw={raw} is not a folder: create it first")
    if not 1 <= dataset_id <= 999:
        raise UserError(f"-d {dataset_id}: a data set id is a number from 1 to 999")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise UserError(f"--name {name!r}: use letters, digits, _ and - only")
    used = sorted(p.name for p in raw.glob(f"Dataset{dataset_id:03d}_*"))
    if used:
        raise UserError(f"-d {dataset_id}: this data set id is used already by {raw / used[0]}")
    return raw / f"Dataset{dataset_id:03d}_{name}"


def dataset_lock(dataset_id: int, name: str, shard: Shard | None = None) -> Lock:
    """The lock of a new raw data set, whatever its name: an id may be used once.

    Args:
        dataset_id: 1 to 999, not used yet in nnUNet_raw.
        name: NAME in DatasetXXX_NAME, as for :func:`target_folder`.
        shard: The part of it that is written; None = the whole.

    Raises:
        UserError: As :func:`target_folder`; or another process writes this id.
    """
    place = target_folder(dataset_id, name).with_name(f"Dataset{dataset_id:03d}")
    return lock_data_set(place, shard, f"data set {dataset_id} in nnUNet_raw")
