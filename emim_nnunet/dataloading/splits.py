"""Splits: written when a data set is preprocessed, so that training needs to write nothing beside the data."""

from __future__ import annotations

import json
from pathlib import Path

from nnunetv2.utilities.crossval_split import generate_crossval_split

from emim_nnunet.checkpoints.io import atomic_write

NUM_FOLDS = 5
NNUNET_SEED = 12345  # of nnUNetTrainer.do_split


def ensure_splits(dataset_folder: Path, case_identifiers: list[str]) -> None:
    """Write ``splits_final.json``: nnU-Net's five folds, or leave-one-out for two to four cases, for which those fail.

    Args:
        dataset_folder: Preprocessed folder of the data set, where the file belongs; an existing one stays.
        case_identifiers: All labelled cases. A single one cannot be split.
    """
    path = dataset_folder / "splits_final.json"
    cases = sorted(case_identifiers)
    if path.exists() or len(cases) < 2:
        return
    if len(cases) < NUM_FOLDS:
        splits = [{"train": [c for c in cases if c != held_out], "val": [held_out]} for held_out in cases]
    else:
        splits = generate_crossval_split(cases, seed=NNUNET_SEED, n_splits=NUM_FOLDS)
    plain = [{part: [str(case) for case in split[part]] for part in ("train", "val")} for split in splits]
    atomic_write(path, lambda file: file.write(json.dumps(plain, indent=4).encode()))
