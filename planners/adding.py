"""Taking new cases into a data set that is planned: the plans stay, and how the fingerprint would change is told."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from emim_nnunet.datasets.folders import read_dataset_json
from emim_nnunet.errors import UserError
from emim_nnunet.nnunet.paths import nnUNet_raw
from emim_nnunet.planners.fingerprint import fingerprint_of, how_to_look, look_at_cases, looked_at
from emim_nnunet.planners.nnUNetPlannerEMIM import DEFAULT_PLANS
from emim_nnunet.planners.options import Options
from emim_nnunet.planners.raw_data import RawDataset
from emim_nnunet.storage.files import copy_file, read_json

logger = logging.getLogger(__name__)
FIXED = (
    "channel_names",
    "labels",
    "regions_class_order",
    "file_ending",
)  # of dataset.json, for which the plans were made


def keep_plans(raw: RawDataset, preprocessed: Path, options: Options) -> RawDataset:
    """Check that the plans can be kept, take over ``dataset.json``, and tell how the fingerprint would change.

    Args:
        raw: All cases that can be used, old and new.
        preprocessed: The preprocessed data set.
        options: The name of the plans, and how cases are read.

    Returns:
        The cases that can be used.

    Raises:
        UserError: There are no plans to keep, or the new ``dataset.json`` does not go with them.
    """
    plans = options.plans_name_or_default or DEFAULT_PLANS
    if not (preprocessed / f"{plans}.json").is_file():
        raise UserError(
            f"--add: {raw.folder.name} has no plans {plans} that could be kept: run the command without --add"
        )
    old = read_dataset_json(preprocessed)
    other = [key for key in FIXED if raw.description.get(key) != old.get(key)]
    if other:
        raise UserError(
            f"--add: {', '.join(other)} of dataset.json in {Path(nnUNet_raw).name} differ from those that were planned with: "
            f"run the command without --add"
        )
    analysis, files = how_to_look(raw)
    found, failed = look_at_cases(partial(looked_at, analysis), files, options)
    raw = raw.without(failed)
    for line in changes(read_json(preprocessed / "dataset_fingerprint.json"), fingerprint_of(found)):
        logger.info("fingerprint: %s", line)
    logger.info("The plans %s are kept. To plan anew with these cases, repeat with --clean instead of --add", plans)
    copy_file(raw.folder / "dataset.json", preprocessed / "dataset.json")
    return raw


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs between two fingerprints, a line for each number that planning uses.

    Args:
        old: nnU-Net's fingerprint of the data set as it was planned.
        new: That of the data set as it is now.

    Returns:
        Lines; a single one where nothing has changed by more than a tenth of a percent.
    """
    key = "foreground_intensity_properties_per_channel"

    def numbers(fingerprint: dict[str, Any]) -> dict[str, np.ndarray]:
        found = {
            "cases": np.array([len(fingerprint["spacings"])]),
            "median spacing": np.median(fingerprint["spacings"], 0),
            "median shape": np.median(fingerprint["shapes_after_crop"], 0),
            "median share after cropping": np.array([fingerprint["median_relative_size_after_cropping"]]),
        }
        for channel, values in sorted(fingerprint[key].items()):
            for name in ("mean", "std", "percentile_00_5", "percentile_99_5"):
                found[f"{name} of channel {channel}"] = np.array([values[name]])
        return found

    before, now = numbers(old), numbers(new)
    rows = [(name, before[name], now[name]) for name in before if name in now]
    told = [f"{name}: {_text(a)} -> {_text(b)}" for name, a, b in rows if not np.allclose(a, b, rtol=1e-3)]
    return told or ["unchanged"]


def _text(values: np.ndarray) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
