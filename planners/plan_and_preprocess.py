"""Fingerprint, plan and preprocess a data set, with or without labels."""

from __future__ import annotations

import logging
from pathlib import Path

from emim_nnunet.datasets.raw import dataset_name
from emim_nnunet.datasets.splits import PATIENTS, ensure_splits, take_over_splits
from emim_nnunet.nnunet.paths import nnUNet_preprocessed, nnUNet_raw
from emim_nnunet.nnunet.planning import plan_experiment_dataset
from emim_nnunet.planners.fingerprint import extract_fingerprint
from emim_nnunet.planners.nnUNetPlannerEMIM import nnUNetPlannerEMIM
from emim_nnunet.planners.options import Options
from emim_nnunet.planners.preprocess import preprocess_cases
from emim_nnunet.planners.raw_data import look_at_backgrounds, look_at_raw_dataset
from emim_nnunet.storage.files import write_json
from emim_nnunet.storage.locks import acquire

logger = logging.getLogger(__name__)


def plan_and_preprocess(dataset_id: int, options: Options, patients: dict[str, str] | None = None) -> str:
    """nnU-Net's three steps with our planner, for labelled and unlabelled cases.

    Args:
        dataset_id: Id of a raw data set.
        options: How it is planned and preprocessed.
        patients: Case -> patient, where the conversion does not say it; a case that is missing is its own patient.

    Returns:
        Name of the plans.

    Raises:
        UserError: Data set or files are not as needed, or another process writes the preprocessed data set.
    """
    name = dataset_name(dataset_id)
    raw_folder, preprocessed = Path(nnUNet_raw) / name, Path(nnUNet_preprocessed) / name
    with acquire(preprocessed, f"{name} in nnUNet_preprocessed") as lock:
        raw = look_at_raw_dataset(raw_folder, preprocessed, patients, options.num_processes_fingerprint)
        remark, wrong = look_at_backgrounds(raw, options.num_processes_fingerprint)
        if remark:
            logger.warning("WARNING: %s", remark)
        extract_fingerprint(dataset_id, raw, preprocessed / "dataset_fingerprint.json", options)
        take_over_splits(raw_folder, preprocessed)
        if patients is not None:
            write_json(preprocessed / PATIENTS, patients)
        plans = _plan(dataset_id, options)
        if options.preprocess:
            preprocess_cases(
                name,
                plans,
                options.configurations,
                raw.unlabelled,
                options.num_processes,
                lock,
                find_body=wrong if options.body else (),
                verbose=options.verbose,
            )
        ensure_splits(preprocessed, raw.labelled)
    if remark:
        logger.warning("WARNING: %s", remark)  # again: nnU-Net has printed much since
    return plans


def _plan(dataset_id: int, options: Options) -> str:
    """Let nnU-Net write the plans with our planner; returns their name."""
    wanted = {"like": options.like, "backbone": options.backbone}
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
