"""Which cases an SSL stage learns from and which it is measured on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from emim_nnunet.datasets.preprocessed import Case, case_identifiers, unlabelled_folder
from emim_nnunet.datasets.splits import check_fold, ensure_splits, read_splits
from emim_nnunet.errors import UserError


def prepare_splits(labelled: Path, fold: int | str) -> None:
    """Make sure that nnU-Net can split few cases as well (its five folds need five), and that it has the fold.

    For a fold that is not in the split, nnU-Net would take a random one, whose validation cases others learn from.

    Args:
        labelled: Folder of the preprocessed labelled cases, in the folder of the data set.
        fold: Number of a fold, or ``all``.

    Raises:
        UserError: A numbered fold of a single patient, no such fold, or a split of other cases.
    """
    if fold == "all":
        return
    identifiers = case_identifiers(labelled)
    ensure_splits(labelled.parent, identifiers)
    if identifiers and not read_splits(labelled.parent):
        what = "one labelled case" if len(identifiers) == 1 else "labelled cases of one patient"
        raise UserError(f"{labelled.parent.name} has {what}, which cannot be split: use fold 'all'")
    check_fold(labelled.parent, int(fold), identifiers)


@dataclass(frozen=True)
class StageCases:
    """Cases of an SSL stage.

    Attributes:
        training: Cases that it learns from.
        probe: Cases that it is measured on.
        probe_is_held_out: Whether no probe case is learnt from.
        left_out: Cases that would be learnt from if they were not of patients of the probe set.
    """

    training: list[Case]
    probe: list[Case]
    probe_is_held_out: bool
    left_out: list[Case]


def stage_cases(
    labelled: Path,
    training_ids: list[str],
    validation_ids: list[str],
    unlabelled_ids: list[str],
    use_validation: bool,
    patients: dict[str, str],
    origins: dict[str, str],
) -> StageCases:
    """Training cases of the fold and all unlabelled ones to learn from, validation cases of the fold to measure on.

    Other cases of the patients of the held-out cases are left out.

    Args:
        labelled: Folder of the labelled cases; unlabelled ones are in :func:`unlabelled_folder` of it.
        training_ids: Of the fold.
        validation_ids: Of the fold.
        unlabelled_ids: All of them.
        use_validation: Learn from the validation cases too.
        patients: Case -> patient, see :func:`read_patients`.
        origins: Case -> data set, see :func:`read_origins`.

    Returns:
        The cases; without validation cases the probe set is the training set.

    Raises:
        UserError: No case at all.
    """
    held_out = [] if use_validation else [i for i in validation_ids if i not in training_ids]
    learnt = list(dict.fromkeys([*training_ids, *(validation_ids if use_validation else [])]))

    def cases(folder: Path, identifiers: list[str]) -> list[Case]:
        return [Case(folder, i, patients.get(i, ""), origins.get(i, "")) for i in sorted(identifiers)]

    training = cases(labelled, learnt) + cases(unlabelled_folder(labelled), unlabelled_ids)
    probe = cases(labelled, held_out)
    held_out_patients = {case.subject for case in probe}
    left_out = [case for case in training if case.subject in held_out_patients]
    training = [case for case in training if case.subject not in held_out_patients]
    if left_out and not training:
        raise UserError(
            f"every case left for the SSL stage is of a patient of the validation set ({len(left_out)} cases)"
        )
    if not training:
        raise UserError(
            f"no preprocessed case in {labelled.name} or {unlabelled_folder(labelled).name}: preprocess first"
        )
    return StageCases(training, probe or training, bool(probe), left_out)
