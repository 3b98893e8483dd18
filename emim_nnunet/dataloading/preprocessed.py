"""Folders of preprocessed cases: nnU-Net's, and beside it that of the cases without label."""

from __future__ import annotations

from pathlib import Path

from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class


def unlabelled_folder(data_folder: Path) -> Path:
    """Folder of the preprocessed cases without label, beside the folder of the labelled ones."""
    return data_folder.with_name(data_folder.name + "_unlabelled")


def case_identifiers(folder: Path) -> list[str]:
    """Ids of the preprocessed cases in a folder, sorted; none where it is missing or empty, which nnU-Net does not take."""
    if not any(folder.glob("*.pkl")):
        return []
    return sorted(infer_dataset_class(str(folder)).get_identifiers(str(folder)))
