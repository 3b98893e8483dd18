"""Folders of preprocessed cases: nnU-Net's, and beside it that of the cases without label."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class


def orientations_file(data_folder: Path) -> Path:
    """Where the orientations of preprocessed cases are noted: not among them, where nnU-Net takes no other files."""
    return data_folder.parent / "orientations" / f"{data_folder.name}.json"


def read_orientations(folder: Path, transpose: Sequence[int]) -> dict[str, str]:
    """To which side of the patient the axes of preprocessed cases lead, where preparation could tell.

    Args:
        folder: Of preprocessed cases.
        transpose: ``transpose_forward`` of the plans.

    Returns:
        By case id a letter per axis, as ``SPL``; empty where the folder does not say it.
    """
    try:
        content = json.loads(orientations_file(folder).read_text())
        return {case: "".join(letters[axis] for axis in transpose) for case, letters in content.items()}
    except (OSError, ValueError, AttributeError, TypeError, LookupError):  # made by nnU-Net or an earlier version
        return {}


def unlabelled_folder(data_folder: Path) -> Path:
    """Folder of the preprocessed cases without label, beside the folder of the labelled ones."""
    return data_folder.with_name(data_folder.name + "_unlabelled")


def case_identifiers(folder: Path) -> list[str]:
    """Ids of the preprocessed cases in a folder, sorted; none where it is missing or empty, which nnU-Net does not take."""
    if not any(folder.glob("*.pkl")):
        return []
    return sorted(infer_dataset_class(str(folder)).get_identifiers(str(folder)))
