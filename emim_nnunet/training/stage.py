"""The settings of a stage and the folder of its results. :mod:`.same_stage` compares SSL stages."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from emim_nnunet.methods import config_classes
from emim_nnunet.methods.base import SSLConfig, SSLMethod
from emim_nnunet.nnunet.paths import nnUNet_results
from emim_nnunet.planners.ssl_plan import PLANNED_KEYS
from emim_nnunet.settings.block import check_known_keys, config_from_block, emim_block, require
from emim_nnunet.settings.plans import check_plans
from emim_nnunet.settings.stages import FinetuneConfig, TrainingConfig


def read_block(plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """Read the ``emim`` block, inheritance resolved, and check that all keys are known and all loop settings valid.

    Raises:
        UserError: The plans are not valid, or a key of the block is unknown or has a wrong value; the message names it.
    """
    check_plans(plans, configuration)
    block = emim_block(plans, configuration)
    check_known_keys(block, [*config_classes(), TrainingConfig, FinetuneConfig])
    config_from_block(TrainingConfig, block)
    config_from_block(FinetuneConfig, block)
    return block


def settings_without_effect(block: dict[str, Any], config_class: type[SSLConfig]) -> list[str]:
    """Find the keys of the block that were set for another method than the one that runs.

    Args:
        block: An ``emim`` block, inheritance resolved.
        config_class: The settings class of the method that runs.

    Returns:
        The keys, sorted, without those that the planner writes for all methods and those that are null.
    """
    used = {field.name for field in fields(config_class)} - set(config_class.without_effect)
    of_methods = {field.name for method in config_classes() for field in fields(method)}
    return sorted(k for k in of_methods - used - set(PLANNED_KEYS) if block.get(k) is not None)


def refuse_settings_without_effect(block: dict[str, Any], method: type[SSLMethod]) -> None:
    """Refuse keys of another method that look like settings of this one.

    Raises:
        UserError: Such a key is set; the message names the first one.
    """
    for key in method.config_class.without_effect:
        require(
            block.get(key) is None,
            f"{key} has no effect with {method.__name__}: take it out, or set it to null in a configuration that inherits",
        )


def stage_folder(trainer_name: str, dataset_name: str, plans_name: str, configuration: str, fold: int | str) -> Path:
    """The output folder that nnU-Net gives to a trainer for a data set, plans, configuration and fold."""
    return Path(nnUNet_results) / dataset_name / f"{trainer_name}__{plans_name}__{configuration}" / f"fold_{fold}"
