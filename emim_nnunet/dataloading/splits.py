"""Splits of data sets that are too small for nnU-Net's five folds."""

from __future__ import annotations

import json
from pathlib import Path

from emim_nnunet.checkpoints.io import atomic_write

NUM_FOLDS = 5


def ensure_splits(dataset_folder: Path, case_identifiers: list[str]) -> None:
    """Write leave-one-out splits for two to four cases, for which nnU-Net's five folds fail.

    Args:
        dataset_folder: Preprocessed folder of the data set, where ``splits_final.json`` belongs; an existing file stays.
        case_identifiers: All labelled cases. With five or more nnU-Net splits itself; a single one cannot be split.
    """
    path = dataset_folder / "splits_final.json"
    if path.exists() or not 2 <= len(case_identifiers) < NUM_FOLDS:
        return
    cases = sorted(case_identifiers)
    splits = [{"train": [c for c in cases if c != held_out], "val": [held_out]} for held_out in cases]
    atomic_write(path, lambda file: file.write(json.dumps(splits, indent=4).encode()))
