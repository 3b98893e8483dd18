"""Which cases an SSL stage uses and where its results are; whether one is the same, see :mod:`.same_stage`."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from emim_nnunet.checkpoints.io import load_checkpoint
from emim_nnunet.checkpoints.schema import CONTINUED, check_content
from emim_nnunet.datasets.preprocessed import Case, case_identifiers, unlabelled_folder
from emim_nnunet.datasets.splits import check_fold, ensure_splits, read_splits
from emim_nnunet.errors import UserError
from emim_nnunet.methods import config_classes
from emim_nnunet.methods.base import SSLConfig, SSLMethod
from emim_nnunet.nnunet.paths import nnUNet_results
from emim_nnunet.planners.ssl_plan import PLANNED_KEYS
from emim_nnunet.settings.block import check_known_keys, config_from_block, emim_block, require
from emim_nnunet.settings.plans import check_plans
from emim_nnunet.settings.stages import FinetuneConfig, TrainingConfig

FINAL, LATEST, PREVIOUS = "checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_previous.pth"
LOG = "ssl_log.csv"


def read_block(plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """The resolved ``emim`` block, all keys known and all loop settings valid.

    Raises:
        UserError: The plans are not as they must be, or naming the key and the valid ones.
    """
    check_plans(plans, configuration)
    block = emim_block(plans, configuration)
    check_known_keys(block, [*config_classes(), TrainingConfig, FinetuneConfig])
    config_from_block(TrainingConfig, block)
    config_from_block(FinetuneConfig, block)
    return block


def settings_without_effect(block: dict[str, Any], config_class: type[SSLConfig]) -> list[str]:
    """Keys of the block that somebody set for another method than the one that runs.

    Args:
        block: A resolved ``emim`` block.
        config_class: Of the method that runs.

    Returns:
        Sorted; without what the planner writes for all methods, and without null.
    """
    used = {field.name for field in fields(config_class)} - set(config_class.without_effect)
    of_methods = {field.name for method in config_classes() for field in fields(method)}
    return sorted(k for k in of_methods - used - set(PLANNED_KEYS) if block.get(k) is not None)


def refuse_settings_without_effect(block: dict[str, Any], method: type[SSLMethod]) -> None:
    """Refuse what looks like a setting of the method, being one of those that it inherits, and is not.

    Raises:
        UserError: Naming the first one.
    """
    for key in method.config_class.without_effect:
        require(
            block.get(key) is None,
            f"{key} has no effect with {method.__name__}: take it out, or set it to null in a configuration that inherits",
        )


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


def stage_folder(trainer_name: str, dataset_name: str, plans_name: str, configuration: str, fold: int | str) -> Path:
    """Output folder that nnU-Net gives to a trainer."""
    return Path(nnUNet_results) / dataset_name / f"{trainer_name}__{plans_name}__{configuration}" / f"fold_{fold}"


def unfinished_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that an unfinished SSL stage left, if any."""
    return next((folder / name for name in (LATEST, PREVIOUS) if (folder / name).is_file()), None)


def check_beginning(folder: Path, *, asked_to_continue: bool) -> str | None:
    """Refuse to begin an SSL stage where there is one.

    Args:
        folder: Output folder of the stage.
        asked_to_continue: Whether ``--c`` was given (and no checkpoint was found).

    Returns:
        What to tell the user, if anything.

    Raises:
        UserError: There are checkpoints, or results whose checkpoints are gone.
    """
    existing = [name for name in (FINAL, LATEST, PREVIOUS, LOG) if (folder / name).is_file()]
    if not existing:
        return (
            "--c: there is no checkpoint to continue from, so the SSL stage starts anew" if asked_to_continue else None
        )
    if existing == [LOG]:
        raise UserError(
            f"{folder} holds the results of an SSL stage ({LOG}) but no checkpoint to continue from: move it away to start anew"
        )
    raise UserError(f"{folder} already holds an SSL stage ({existing[0]}): continue it with --c, or move it away")


def load_newest(path: Path) -> tuple[dict[str, Any], str | None]:
    """A checkpoint of an SSL stage; where it is damaged, the one before it.

    The damaged one gets another name: later ones must not push the good one out.

    Args:
        path: File; :data:`PREVIOUS` lies beside it.

    Returns:
        The checkpoint, and what to tell the user, if anything.

    Raises:
        UserError: Neither can be read.
    """
    previous = path.with_name(PREVIOUS)
    try:
        return _continued(path), None
    except UserError as error:
        if path == previous or not previous.is_file():
            raise
        checkpoint = _continued(previous)
        with suppress(OSError):  # another process of the stage was faster
            path.rename(path.with_name(f"{path.name}.damaged"))
        return checkpoint, f"WARNING: {error}. Taking the checkpoint before it, {PREVIOUS}"


def _continued(path: Path) -> dict[str, Any]:
    """A checkpoint that holds all that a stage goes on from."""
    checkpoint = load_checkpoint(path)
    check_content(checkpoint, CONTINUED, str(path))
    try:
        check_plans(checkpoint["plans"], checkpoint["configuration"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return checkpoint
