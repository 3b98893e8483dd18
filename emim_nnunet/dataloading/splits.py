"""Splits: written when a data set is preprocessed, so that training needs to write nothing beside the data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunetv2.utilities.crossval_split import generate_crossval_split

from emim_nnunet.checkpoints.io import copy_file, read_json, write_json
from emim_nnunet.errors import UserError

SPLITS, PATIENTS, ORIGINS = "splits_final.json", "patients.json", "origins.json"
PARTS = ("train", "val")
NUM_FOLDS = 5
NNUNET_SEED = 12345  # of nnUNetTrainer.do_split


def read_patients(dataset_folder: Path) -> dict[str, str]:
    """Whose each case is, where some patient has several: ``patients.json`` of the conversion.

    Args:
        dataset_folder: Raw or preprocessed folder of a data set.

    Returns:
        Case -> patient; empty without the file. A case that is not in it is its own patient.

    Raises:
        UserError: The file is not a JSON object of texts.
    """
    return _read_names(dataset_folder / PATIENTS)


def read_origins(dataset_folder: Path) -> dict[str, str]:
    """Which data set each case comes from, of several pooled ones: ``origins.json`` of :func:`pool`.

    Args, return value and errors as in :func:`read_patients`.
    """
    return _read_names(dataset_folder / ORIGINS)


def _read_names(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    names = read_json(path)
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"{path} must be a JSON object: case -> name")
    return names


def take_over_splits(raw: Path, preprocessed: Path) -> None:
    """Copy what a conversion knows about patients to where training looks for it.

    Args:
        raw: Raw folder of a data set; its ``splits_final.json`` does not replace one that is there, what it knows about
            patients and origins does.
        preprocessed: Preprocessed folder.
    """
    for name, replace in ((SPLITS, False), (PATIENTS, True), (ORIGINS, True)):
        source, target = raw / name, preprocessed / name
        if source.is_file() and (replace or not target.exists()):
            copy_file(source, target)


def ensure_splits(dataset_folder: Path, case_identifiers: list[str]) -> None:
    """Write ``splits_final.json``: nnU-Net's five folds, or leave-one-out for two to four cases, for which those fail.

    Args:
        dataset_folder: Preprocessed folder of the data set, where the file belongs; an existing one stays.
        case_identifiers: All labelled cases. A single one cannot be split.
    """
    path = dataset_folder / SPLITS
    cases = sorted(case_identifiers)
    if path.exists() or len(cases) < 2:
        return
    if len(cases) < NUM_FOLDS:
        splits = [{"train": [c for c in cases if c != held_out], "val": [held_out]} for held_out in cases]
    else:
        splits = generate_crossval_split(cases, seed=NNUNET_SEED, n_splits=NUM_FOLDS)
    plain = [{part: [str(case) for case in split[part]] for part in PARTS} for split in splits]
    write_json(path, plain, indent=4)


def read_splits(dataset_folder: Path) -> list[dict[str, list[str]]]:
    """The folds of ``splits_final.json``.

    Args:
        dataset_folder: Preprocessed folder of the data set.

    Returns:
        Per fold, the ids under ``train`` and ``val``; empty without the file.

    Raises:
        UserError: The file is not as nnU-Net writes it.
    """
    path = dataset_folder / SPLITS
    if not path.is_file():
        return []
    splits = read_json(path)
    right = isinstance(splits, list) and all(
        isinstance(fold, dict)
        and all(isinstance(fold.get(part), list) and all(isinstance(c, str) for c in fold[part]) for part in PARTS)
        for fold in splits
    )
    if not right:
        raise UserError(f"{path} must be a list of folds, each with lists of case ids under 'train' and 'val'")
    return splits


def check_fold(dataset_folder: Path, fold: int, identifiers: Sequence[str]) -> None:
    """Whether a fold can be trained.

    Args:
        dataset_folder: Preprocessed folder of the data set.
        fold: Number.
        identifiers: All labelled cases that are preprocessed.

    Raises:
        UserError: No such fold, or it names cases that are not there.
    """
    splits = read_splits(dataset_folder)
    if not 0 <= fold < len(splits):
        raise UserError(
            f"fold {fold}: {SPLITS} of {dataset_folder.name} has the folds 0 to {len(splits) - 1}, and 'all'"
        )
    unknown = sorted({case for part in PARTS for case in splits[fold][part]} - set(identifiers))
    if unknown:
        raise UserError(
            f"fold {fold} in {dataset_folder / SPLITS} names cases that are not preprocessed: {', '.join(unknown[:5])}"
        )
