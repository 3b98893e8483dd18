"""The choice of the cases that an SSL stage learns from and of those that it is measured on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from emim_nnunet.datasets.dataset import PreprocessedDataset
from emim_nnunet.datasets.preprocessed import Case, unlabelled_folder
from emim_nnunet.datasets.splits import SPLITS, check_fold, ensure_splits
from emim_nnunet.errors import UserError


def prepare_splits(data: PreprocessedDataset, fold: int | str) -> None:
    """Make sure that a data set has a split, even with fewer than the five cases that nnU-Net needs, and has the fold.

    For a fold that is not in the split, nnU-Net would draw a random one, whose validation cases are training cases elsewhere.

    Args:
        data: The data set; ``splits_final.json`` is written to its folder if it is missing.
        fold: The number of a fold, or ``all``.

    Raises:
        UserError: A numbered fold is asked of a single patient, there is no such fold, or the split is of other cases.
    """
    if fold == "all":
        return
    ensure_splits(data.folder, data.labelled_ids)
    if data.labelled and not data.splits:
        what = "one labelled case" if len(data.labelled) == 1 else "labelled cases of one patient"
        raise UserError(f"{data.name} has {what}, which cannot be split: use fold 'all'")
    check_fold(data.folder, int(fold), data.labelled_ids)


@dataclass(frozen=True)
class StageCases:
    """The cases of an SSL stage.

    Attributes:
        training: Cases that it learns from.
        probe: Cases that it is measured on.
        probe_is_held_out: Whether the stage learns from none of the probe cases.
        left_out: Cases that it does not learn from because they are of patients of the probe set.
    """

    training: list[Case]
    probe: list[Case]
    probe_is_held_out: bool
    left_out: list[Case]


def stage_cases(
    data: PreprocessedDataset, training_ids: list[str], validation_ids: list[str], *, use_validation: bool
) -> StageCases:
    """Choose the cases of an SSL stage.

    It learns from the training cases of the fold and all unlabelled ones, and is measured on the validation cases. Cases of the
    same patients as the held-out cases are left out.

    Args:
        data: The preprocessed data set, with its patients and unlabelled cases.
        training_ids: Ids of the labelled training cases of the fold.
        validation_ids: Ids of the labelled validation cases of the fold.
        use_validation: Whether to learn from the validation cases too.

    Returns:
        The cases; without validation cases the probe set is the training set.

    Raises:
        UserError: There is no case to learn from.
    """
    data.require_cases()
    held_out = [] if use_validation else [i for i in validation_ids if i not in training_ids]
    learnt = list(dict.fromkeys([*training_ids, *(validation_ids if use_validation else [])]))

    def cases(folder: Path, identifiers: Iterable[str]) -> list[Case]:
        return [Case(folder, i, data.patients.get(i, ""), data.origins.get(i, "")) for i in sorted(identifiers)]

    training = cases(data.labelled_folder, learnt)
    training += cases(unlabelled_folder(data.labelled_folder), data.unlabelled_ids)
    probe = cases(data.labelled_folder, held_out)
    held_out_patients = {case.subject for case in probe}
    left_out = [case for case in training if case.subject in held_out_patients]
    training = [case for case in training if case.subject not in held_out_patients]
    if not training and not left_out:
        raise UserError(f"the fold has no training case: see {SPLITS} of {data.name}")
    if not training:
        raise UserError(
            f"every case left for the SSL stage is of a patient of the validation set ({len(left_out)} cases)"
        )
    return StageCases(training, probe or training, bool(probe), left_out)
