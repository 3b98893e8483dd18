"""Labels and numbers of cases from a CSV file, and folds that keep all cases of a patient together."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emim_nnunet.datasets.splits import NNUNET_SEED, NUM_FOLDS, read_splits
from emim_nnunet.errors import UserError, listed
from emim_nnunet.nnunet.crossval import generate_crossval_split
from emim_nnunet.settings.plans import limit_of

CASE, PATIENT = "case", "patient"


@dataclass(frozen=True)
class LabelTable:
    """The classes of cases, or their numbers, as a CSV file gives them.

    Attributes:
        path: The CSV file.
        targets: Names of the columns to predict.
        classes: Target -> its different values, sorted; the place in the list is the number of the class. Empty for a target
            that is a number itself, such as an age.
        rows: Case -> target -> class; None where the cell is empty.
        patients: Case -> patient.
    """

    path: Path
    targets: list[str]
    classes: dict[str, list[str]]
    rows: dict[str, dict[str, str | None]]
    patients: dict[str, str]

    def numbers(self, case: str) -> list[float]:
        """For each target the number of the case's class, -1 where it is unknown; or the number itself, NaN where unknown."""
        return [self._number(target, self.rows[case][target]) for target in self.targets]

    def _number(self, target: str, value: str | None) -> float:
        if self.classes[target]:
            return -1 if value is None else self.classes[target].index(value)
        return math.nan if value is None else float(value)

    def means(self, cases: Sequence[str]) -> dict[str, float]:
        """Mean of each target that is a number over those of the cases that have it."""
        columns = {self.targets[place]: [self.numbers(case)[place] for case in cases] for place in self.numeric}
        return {target: float(np.nanmean(values)) for target, values in columns.items()}

    @property
    def numeric(self) -> list[int]:
        """Places of the targets that are numbers."""
        return [place for place, target in enumerate(self.targets) if not self.classes[target]]


def read_table(
    path: Path,
    targets: Sequence[str] | None = None,
    known_patients: Mapping[str, str] | None = None,
    numeric: Sequence[str] = (),
) -> LabelTable:
    """Read a CSV file with a column ``case``, perhaps ``patient``, and one or several columns of classes or numbers.

    Args:
        path: The file: comma- or semicolon-separated, UTF-8, with a head line.
        targets: Columns of classes to predict; None = all but ``case`` and ``patient``, or none where ``numeric`` has any.
        known_patients: Case -> patient, for cases whose patient the file does not name; other cases are patients of their own.

        numeric: Columns of numbers, which are predicted as such.

    Returns:
        The table.

    Raises:
        UserError: The file is unreadable, a column is missing, a case or a column occurs twice, a case has no name, a number is
            none, or a target has a single class or number.
    """
    columns, content = _read_csv(path)
    chosen = _chosen_columns(path, columns, [*(targets or []), *numeric] or None)
    both = sorted(set(targets or []) & set(numeric))
    if both:
        raise UserError(f"--number {both[0]}: is asked for as a class too, with --column")
    rows: dict[str, dict[str, str | None]] = {}
    patients = {}
    for number, row in enumerate(content, 2):
        if None in row or None in row.values():
            raise UserError(f"{path}, line {number}: expected {len(columns)} cells")
        case = row[CASE].strip()
        if not case or case in rows:
            raise UserError(
                f"{path}, line {number}: {f'case {case} is there twice' if case else 'the case has no name'}"
            )
        rows[case] = {name: row[name].strip() or None for name in chosen}
        _check_numbers(f"{path}, line {number}", {name: rows[case][name] for name in numeric})
        patients[case] = (row.get(PATIENT) or "").strip() or (known_patients or {}).get(case, case)
    classes = {name: sorted({str(r[name]) for r in rows.values() if r[name] is not None}) for name in chosen}
    for name, values in classes.items():
        what = "number" if name in numeric else "class"
        if len(set(map(float, values)) if name in numeric else values) < 2:
            raise UserError(
                f"{path}: column '{name}' has {len(values)} {what} ({', '.join(values)}), at least 2 are needed"
            )
    classes |= {name: [] for name in numeric}
    return LabelTable(path, chosen, classes, rows, patients)


def _check_numbers(where: str, cells: Mapping[str, str | None]) -> None:
    """Whether cells hold finite numbers, or nothing."""
    for name, text in cells.items():
        try:
            if text is not None and not abs(float(text)) < math.inf:
                raise ValueError
        except ValueError:
            raise UserError(f"{where}: '{text}' in column '{name}' is no number, such as 12.5") from None


def _read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Names of the columns and the rows of a CSV file with a head line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a CSV file in UTF-8 ({error})") from error
    lines = text.splitlines()
    if len(lines) < 2:
        raise UserError(
            f"{path} is empty: expected a head line with '{CASE}' and at least one column of classes, and rows"
        )
    delimiter = ";" if lines[0].count(";") > lines[0].count(",") else ","
    reader = csv.DictReader(lines, delimiter=delimiter)
    try:
        columns = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = columns
        content = list(reader)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num + 1}: {error}") from error
    return columns, content


def _chosen_columns(path: Path, columns: list[str], targets: Sequence[str] | None) -> list[str]:
    """Names of the columns of classes to predict."""
    if CASE not in columns:
        raise UserError(f"{path} has no column '{CASE}'; it has {', '.join(columns)}")
    twice = next((name for name in columns if columns.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path}: column '{twice}' is there twice")
    chosen = list(dict.fromkeys(targets)) if targets else [c for c in columns if c not in (CASE, PATIENT)]
    missing = [name for name in chosen if name not in columns]
    if missing or not chosen:
        raise UserError(f"{path} has no column {', '.join(missing) or 'of classes'}; it has {', '.join(columns)}")
    if len(chosen) > (limit := limit_of("columns of classes")):
        raise UserError(f"{path} has {len(chosen)} columns of classes, at most {limit} at once: choose with --column")
    return chosen


def check_cases(table: LabelTable, present: Sequence[str], where: str) -> None:
    """Check that all cases of a table are preprocessed.

    Args:
        table: The labels.
        present: Ids of the preprocessed cases.
        where: Name of the data set, for the message.

    Raises:
        UserError: Cases are missing; the message names some of them.
    """
    unknown = sorted(set(table.rows) - set(present))
    if unknown:
        raise UserError(f"{table.path} names cases that are not preprocessed in {where}: {listed(unknown)}")


def split(table: LabelTable, dataset_folder: Path, fold: int | str) -> tuple[list[str], list[str]]:
    """Training and validation cases of a fold of nnU-Net's split; no patient is in both.

    Cases that nnU-Net does not split (those without segmentation) are split like it does, by patient. A patient who has a case
    in the validation set has none in the training set.

    Args:
        table: The labels.
        dataset_folder: Folder of the preprocessed data set; nnU-Net's ``splits_final.json`` in it may be missing.
        fold: Number of the fold, or ``all`` to train on all cases.

    Returns:
        Sorted ids of the training cases and of the validation cases.

    Raises:
        UserError: There is no such fold, or one of the two sets has no case, or fewer than two classes of a target.
    """
    if fold == "all":
        return sorted(table.rows), []
    folds = read_splits(dataset_folder)
    known = {case for part in folds for case in (*part["train"], *part["val"])}
    rest = sorted({table.patients[case] for case in set(table.rows) - known})
    num_folds = len(folds) or min(NUM_FOLDS, len(rest))
    if not 0 <= int(fold) < num_folds:
        raise UserError(f"-f {fold}: the split has {num_folds} folds (0 to {num_folds - 1}), or use 'all'")
    held_out = set(folds[int(fold)]["val"]) if folds else set()
    if len(rest) >= num_folds > 1:
        own = generate_crossval_split(rest, seed=NNUNET_SEED, n_splits=num_folds)[int(fold)]["val"]
        held_out |= {case for case in table.rows if case not in known and table.patients[case] in set(map(str, own))}
    validation = sorted(held_out & set(table.rows))
    patients = {table.patients[case] for case in validation}
    training = sorted(case for case in table.rows if table.patients[case] not in patients)
    for name, cases in (("training", training), ("validation", validation)):
        _check_classes(table, cases, f"{name} set of fold {fold}")
    return training, validation


def _check_classes(table: LabelTable, cases: Sequence[str], where: str) -> None:
    for target in table.targets:
        present = sorted({str(table.rows[c][target]) for c in cases if table.rows[c][target] is not None})
        kind = "class" if table.classes[target] else "number"
        if len(present) < 2:
            raise UserError(
                f"the {where} ({len(cases)} cases) has {f'only the {kind} ' + present[0] if present else f'no {kind}'} of "
                f"'{target}': choose another fold with -f, or 'all' and evaluate on other data"
            )
