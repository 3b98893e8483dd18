"""Patients and splits: written when a data set is preprocessed, so that training needs to write nothing beside the data."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from emim_nnunet.errors import UserError, listed
from emim_nnunet.storage.files import copy_file, read_json, write_json

SPLITS, PATIENTS, ORIGINS = "splits_final.json", "patients.json", "origins.json"
PARTS = ("train", "val")
NUM_FOLDS = 5
NNUNET_SEED = 12345  # of nnUNetTrainer.do_split
MAX_LISTED = 5  # of the ids that stand for all others in a message
# a patient's id ends with a digit, a visit or slice follows: p07_2, sub-01_ses-2, TCGA_1234_slice12
LAST_OF_SEVERAL = re.compile(r"(?P<stem>.*\d)[_-](?:(?:[a-z]+-?)?\d+|ses-[a-z0-9]+)", re.IGNORECASE)


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
    """A JSON object of texts; empty without the file."""
    if not path.is_file():
        return {}
    names = read_json(path)
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"{path} must be a JSON object: case -> name")
    return names


def read_patients_csv(path: Path) -> dict[str, str]:
    """Whose each case is, from a table.

    Args:
        path: CSV file with the columns ``case`` and ``patient``, comma- or semicolon-separated, UTF-8; others do not matter.

    Returns:
        Case -> patient.

    Raises:
        UserError: Not such a file, an empty cell, or a case twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        delimiter = ";" if lines and ";" in lines[0] else ","
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--patients: {path} cannot be read as a CSV file in UTF-8 ({error})") from error
    head = rows[0] if rows else []
    if not {"case", "patient"} <= set(head):
        raise UserError(
            f"--patients: {path} must have a head line with 'case' and 'patient'; it has {', '.join(head) or 'none'}"
        )
    patients: dict[str, str] = {}
    for number, row in enumerate(rows[1:], 1):
        cells = dict(zip(head, row, strict=False))
        case, patient = cells.get("case", ""), cells.get("patient", "")
        if not case or not patient or case in patients:
            wrong = f"case {case} is there twice" if case in patients else "the case or the patient is missing"
            raise UserError(f"--patients: {path}, row {number} below the head line: {wrong}")
        patients[case] = patient
    return patients


def check_patients(patients: Mapping[str, str], cases: Collection[str], where: str) -> None:
    """Whether all cases whose patient is told are there.

    Args:
        patients: Case -> patient, as the user says.
        cases: Ids of all cases that are there.
        where: Name of the data set, for the message.

    Raises:
        UserError: Some are not there; the message names the first of them.
    """
    unknown = sorted(set(patients) - set(cases))
    if unknown:
        raise UserError(f"--patients names cases that are not in {where}: {listed(unknown)}")


def check_splits(dataset_folder: Path, patients: Mapping[str, str]) -> None:
    """Whether the folds of a data set keep the cases of a patient together.

    Args:
        dataset_folder: Raw or preprocessed folder; one without ``splits_final.json`` is right.
        patients: Case -> patient; a case that is missing is its own patient.

    Raises:
        UserError: A fold trains on a patient whom it validates on.
    """
    for number, fold in enumerate(read_splits(dataset_folder)):
        training, validation = ({patients.get(case, case) for case in fold[part]} for part in PARTS)
        parted = sorted(training & validation)
        if parted:
            raise UserError(
                f"fold {number} of {dataset_folder / SPLITS} trains and validates on cases of patient {parted[0]}: remove that "
                f"file for folds by patient (what was trained on the old folds cannot be compared with them)"
            )


def alike(cases: Collection[str]) -> list[str]:
    """Cases that look like visits or slices of the same patients.

    Args:
        cases: Ids of cases.

    Returns:
        The ids of one such patient where at least two patients seem to have several cases, otherwise none: a single stem, as in
        ``BRATS_001`` and ``BRATS_002``, is the name of a data set.
    """
    stems: dict[str, list[str]] = {}
    for case in sorted(cases):
        match = LAST_OF_SEVERAL.fullmatch(case)
        if match:
            stems.setdefault(match["stem"], []).append(case)
    several = [group for group in stems.values() if len(group) > 1]
    return several[0] if len(several) > 1 else []


def take_over_splits(raw: Path, preprocessed: Path) -> None:
    """Copy what a conversion knows about patients to where training looks for it.

    Args:
        raw: Raw folder of a data set; its ``splits_final.json`` does not replace one that is there, what it knows about
            patients and origins does.
        preprocessed: Preprocessed folder of the same data set, which exists.
    """
    for name, replace in ((SPLITS, False), (PATIENTS, True), (ORIGINS, True)):
        source, target = raw / name, preprocessed / name
        if source.is_file() and (replace or not target.exists()):
            copy_file(source, target)


def ensure_splits(dataset_folder: Path, case_identifiers: list[str]) -> None:
    """Write ``splits_final.json``: nnU-Net's five folds over the patients, or leave-one-out for two to four of them.

    Args:
        dataset_folder: Folder of the data set, where the file belongs; an existing one stays. Its ``patients.json`` says which
            cases belong together.
        case_identifiers: All labelled cases. Those of a single patient cannot be split.
    """
    path = dataset_folder / SPLITS
    known = read_patients(dataset_folder)
    patients: dict[str, list[str]] = {}
    for case in sorted(case_identifiers):
        patients.setdefault(known.get(case, case), []).append(case)
    names = sorted(patients)
    if path.exists() or len(names) < 2:
        return
    if len(names) < NUM_FOLDS:
        splits = [{"train": [n for n in names if n != held_out], "val": [held_out]} for held_out in names]
    else:
        from emim_nnunet.nnunet.crossval import generate_crossval_split  # imports a lot, and most commands find splits

        splits = generate_crossval_split(names, seed=NNUNET_SEED, n_splits=NUM_FOLDS)
    by_case = [
        {part: [case for name in split[part] for case in patients[str(name)]] for part in PARTS} for split in splits
    ]
    write_json(path, by_case, indent=4)


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


def in_no_fold(dataset_folder: Path, identifiers: Sequence[str]) -> list[str]:
    """Labelled cases that no fold has; none where there are no folds.

    Args:
        dataset_folder: Preprocessed folder of the data set.
        identifiers: All labelled cases.
    """
    splits = read_splits(dataset_folder)
    known = {case for fold in splits for part in PARTS for case in fold[part]}
    return [case for case in identifiers if splits and case not in known]


def check_fold(dataset_folder: Path, fold: int, identifiers: Sequence[str]) -> None:
    """Whether a fold can be trained.

    Args:
        dataset_folder: Preprocessed folder of the data set.
        fold: Number of the fold, from 0.
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
            f"fold {fold} in {dataset_folder / SPLITS} names cases that are not preprocessed: {', '.join(unknown[:MAX_LISTED])}"
        )
