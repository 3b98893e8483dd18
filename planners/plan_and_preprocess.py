"""Fingerprint, plan and preprocess a data set, with or without labels, by one process or by shards."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from emim_nnunet.datasets.raw import dataset_name, unlabelled_images
from emim_nnunet.datasets.shards import Shard, lock_data_set
from emim_nnunet.datasets.splits import PATIENTS, ensure_splits, in_no_fold, take_over_splits
from emim_nnunet.errors import UserError, listed
from emim_nnunet.nnunet.paths import nnUNet_preprocessed, nnUNet_raw
from emim_nnunet.nnunet.planning import plan_experiment_dataset
from emim_nnunet.planners.adding import keep_plans
from emim_nnunet.planners.fingerprint import extract_fingerprint
from emim_nnunet.planners.fingerprint_parts import gather_fingerprint, look_at_shard
from emim_nnunet.planners.nnUNetPlannerEMIM import DEFAULT_PLANS, nnUNetPlannerEMIM
from emim_nnunet.planners.options import Options
from emim_nnunet.planners.preprocess import LABELS, Part, preprocess_cases
from emim_nnunet.planners.raw_data import (
    check_files,
    check_whose,
    find_cases,
    look_at_backgrounds,
    look_at_raw_dataset,
)
from emim_nnunet.planners.seen_files import SeenFiles
from emim_nnunet.storage.files import remove_all_leftovers, write_json
from emim_nnunet.storage.locks import Lock
from emim_nnunet.storage.tables import markdown_table

FAILED = "failed.json"
logger = logging.getLogger(__name__)


class CasesFailed(UserError):
    """Some cases are left out, everything else is done."""


def plan_and_preprocess(dataset_id: int, options: Options, patients: dict[str, str] | None = None) -> str:
    """nnU-Net's three steps with our planner, for labelled and unlabelled cases; what is done already is not done again.

    Args:
        dataset_id: Id of a raw data set.
        options: How it is planned and preprocessed, and which part of that is done.
        patients: Case -> patient, where the conversion does not say it; a case that is missing is its own patient.

    Returns:
        Name of the plans.

    Raises:
        CasesFailed: With ``keep_going``, cases could not be used; ``failed.json`` names them.
        UserError: Data set or files are not as needed, or another process writes the preprocessed data set.
    """
    name = dataset_name(dataset_id)
    raw_folder, preprocessed = Path(nnUNet_raw) / name, Path(nnUNet_preprocessed) / name
    plans = options.plans_name_or_default or DEFAULT_PLANS
    with lock_data_set(preprocessed, options.shard, f"{name} in nnUNet_preprocessed") as lock:
        if options.shard is not None:
            _tell(_do_shard(raw_folder, preprocessed, options, options.shard, lock))
            return plans
        for folder in (preprocessed, preprocessed / LABELS):
            remove_all_leftovers(folder)
        if options.finish:
            failed = _finish(dataset_id, raw_folder, preprocessed, options, patients, lock)
        else:
            failed = _do_all(dataset_id, raw_folder, preprocessed, options, patients, lock)
        if options.preprocess or failed:
            _note_failures(preprocessed / FAILED, failed)
    _tell(failed)
    return plans


def _do_all(
    dataset_id: int,
    raw_folder: Path,
    preprocessed: Path,
    options: Options,
    patients: dict[str, str] | None,
    lock: Lock,
) -> dict[str, str]:
    """Everything, in one process and its workers; returns which cases are left out, and why."""
    seen, threads = SeenFiles(preprocessed, anew=options.clean), options.num_processes_fingerprint
    raw = look_at_raw_dataset(raw_folder, preprocessed, patients, threads, keep_going=options.keep_going, seen=seen)
    if options.add:
        raw = keep_plans(raw, preprocessed, options)
    remark, wrong = look_at_backgrounds(raw, threads, seen)
    if remark:
        logger.warning("WARNING: %s", remark)
    if not options.add:
        raw = extract_fingerprint(raw, preprocessed / "dataset_fingerprint.json", options)
    seen.save()
    _take_over(raw_folder, preprocessed, patients)
    plans = options.plans_name_or_default or DEFAULT_PLANS if options.add else _plan(dataset_id, options, raw.failed)
    failed = raw.failed
    if options.preprocess:
        failed = preprocess_cases(
            raw.folder.name,
            plans,
            options.configurations,
            raw.labelled_files,
            unlabelled_images(raw_folder, raw.description),
            options.num_processes,
            lock,
            find_body=wrong if options.body else (),
            verbose=options.verbose,
            part=Part(keep_going=options.keep_going, body=options.body),
            failed=failed,
        )
    _make_folds(preprocessed, [case for case in raw.labelled if case not in failed])
    if remark:
        logger.warning("WARNING: %s", remark)  # again: nnU-Net has printed much since
    return failed


def _do_shard(raw_folder: Path, preprocessed: Path, options: Options, shard: Shard, lock: Lock) -> dict[str, str]:
    """The part of a shard: of the fingerprint with ``--no_pp``, otherwise of the preprocessing."""
    everything = find_cases(raw_folder)
    plans = options.plans_name_or_default or DEFAULT_PLANS
    if options.preprocess and not (preprocessed / f"{plans}.json").is_file():
        raise UserError(
            f"{preprocessed.name} has no plans {plans}: shards preprocess what is planned. Run emim_plan_and_preprocess with "
            f"--no_pp first, or with --no_pp --shard i/N for all i and then --no_pp --finish"
        )
    seen, threads = SeenFiles(preprocessed, shard, anew=options.clean), options.num_processes_fingerprint
    raw = check_files(everything.part(shard), threads, keep_going=options.keep_going, seen=seen)
    remark, wrong = look_at_backgrounds(raw, threads, seen)
    if remark:
        logger.warning("WARNING: %s", remark)
    if not options.preprocess:
        failed = look_at_shard(raw, preprocessed / "dataset_fingerprint.json", options)
        seen.save()
        return failed
    seen.save()
    return preprocess_cases(
        raw_folder.name,
        plans,
        options.configurations,
        everything.labelled_files,
        everything.unlabelled,
        options.num_processes,
        lock,
        find_body=wrong if options.body else (),
        verbose=options.verbose,
        part=Part(shard=shard, finish=False, keep_going=options.keep_going, body=options.body),
        failed=raw.failed,
    )


def _finish(
    dataset_id: int,
    raw_folder: Path,
    preprocessed: Path,
    options: Options,
    patients: dict[str, str] | None,
    lock: Lock,
) -> dict[str, str]:
    """Put together what shards have done: the fingerprint, of which plans are made, with ``--no_pp``; otherwise the folders."""
    raw = find_cases(raw_folder)
    check_whose(raw, preprocessed, patients)
    SeenFiles(preprocessed).save()
    if not options.preprocess:
        failed = gather_fingerprint(raw, preprocessed / "dataset_fingerprint.json", keep_going=options.keep_going)
        _take_over(raw_folder, preprocessed, patients)
        _plan(dataset_id, options, failed)
        return failed
    plans = options.plans_name_or_default or DEFAULT_PLANS
    part = Part(preprocess=False, keep_going=options.keep_going)
    failed = preprocess_cases(
        raw_folder.name,
        plans,
        options.configurations,
        raw.labelled_files,
        raw.unlabelled,
        1,
        lock,
        find_body=None,
        part=part,
    )
    _take_over(raw_folder, preprocessed, patients)
    _make_folds(preprocessed, [case for case in raw.labelled if case not in failed])
    return failed


def _take_over(raw_folder: Path, preprocessed: Path, patients: Mapping[str, str] | None) -> None:
    """What is known about patients and folds goes to where training looks for it."""
    take_over_splits(raw_folder, preprocessed)
    if patients is not None:
        write_json(preprocessed / PATIENTS, patients)


def _make_folds(preprocessed: Path, labelled: list[str]) -> None:
    """Make folds where there are none; those that are there stay."""
    ensure_splits(preprocessed, labelled)
    outside = in_no_fold(preprocessed, labelled)
    if outside:
        logger.info(
            "%d labelled cases are in no fold of splits_final.json (%s), so no fold trains on them: remove that file for new "
            "folds (what was trained on the old ones cannot be compared with them)",
            len(outside),
            listed(outside),
        )


def _note_failures(file: Path, failed: Mapping[str, str]) -> None:
    """Write which cases are left out; without any, remove what an earlier run wrote."""
    if failed:
        write_json(file, dict(sorted(failed.items())))
    else:
        file.unlink(missing_ok=True)


def _tell(failed: Mapping[str, str]) -> None:
    """Print a table of the cases that failed and end with exit code 2, if there are any."""
    if not failed:
        return
    for line in markdown_table(["case", "why it is left out"], sorted(failed.items())):
        logger.info("%s", line)
    raise CasesFailed(
        f"{len(failed)} cases are left out ({listed(sorted(failed))}), see the table above; everything else is done. Mend "
        f"them and repeat the command"
    )


def _plan(dataset_id: int, options: Options, failed: Mapping[str, str]) -> str:
    """Let nnU-Net write the plans with our planner; returns their name."""
    wanted = {"like": options.like, "backbone": options.backbone, "left_out": frozenset(failed)}
    planner = type("nnUNetPlannerEMIM", (nnUNetPlannerEMIM,), wanted)  # a subclass, because nnU-Net makes the planner
    _, plans = plan_experiment_dataset(
        dataset_id,
        planner,
        options.gpu_memory_target,
        "DefaultPreprocessor",
        options.spacing,
        options.plans_name_or_default,
    )
    return plans
