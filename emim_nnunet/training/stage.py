"""Settings of a stage and where its results are; whether an SSL stage is the same, see :mod:`.same_stage`."""

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


def stage_folder(trainer_name: str, dataset_name: str, plans_name: str, configuration: str, fold: int | str) -> Path:
    """Output folder that nnU-Net gives to a trainer."""
    return Path(nnUNet_results) / dataset_name / f"{trainer_name}__{plans_name}__{configuration}" / f"fold_{fold}"
