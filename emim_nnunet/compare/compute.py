"""The cost of a training step of each method, so that methods can be compared with equal compute."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from emim_nnunet.compare.protocol import Protocol
from emim_nnunet.datasets.dataset import PreprocessedDataset
from emim_nnunet.errors import UserError
from emim_nnunet.methods import method_class
from emim_nnunet.methods.base import SSLMethod
from emim_nnunet.networks import PrimusEncoder
from emim_nnunet.nnunet.plans import PlansManager, determine_num_input_channels
from emim_nnunet.planners.dry_run import fake_stage
from emim_nnunet.settings.block import config_from_block
from emim_nnunet.settings.stages import TrainingConfig
from emim_nnunet.training.stage import read_block

MASKS = 16  # whose mean says how much a method's masks leave visible


def step_flops(plans: dict[str, Any], dataset_json: dict[str, Any], configuration: str, method: str) -> int:
    """Count the floating point operations of one training step, forward and backward, without computing anything.

    Convolutions and matrix products count, a multiply-add as two. What is computed twice to save memory counts once. Of the
    tokens of a Primus, those that the method's masks leave visible on average count.

    Args:
        plans: The plans JSON as a dict.
        dataset_json: The content of ``dataset.json``.
        configuration: Name of the configuration, whose ``emim`` block holds the settings of the method.
        method: Class name of the SSL method.

    Returns:
        The number of operations for the whole batch.
    """
    manager = PlansManager(plans)
    planned = manager.get_configuration(configuration)
    channels = determine_num_input_channels(manager, planned, dataset_json)
    block = read_block(plans, configuration)
    block |= {"patches_at_once": None, "batch_size": config_from_block(TrainingConfig, block).batch_size}
    counter = FlopCounterMode(display=False)
    fake, stage, loss = fake_stage(counter, method_class(method), planned.configuration, block, channels)
    if isinstance(stage.encoder, PrimusEncoder):
        stage.encoder.share_of_dry_run = visible_share(stage)
    with fake, counter:
        loss().backward()
    return counter.get_total_flops()


def visible_share(method: SSLMethod) -> float:
    """Share of the cells that a method's masks leave visible in some modality, on average over samples."""
    samples = [method.draw(torch.Generator().manual_seed(seed)) for seed in range(MASKS)]
    if "masked" in samples[0]:
        return 1.0 - float(torch.cat([sample["masked"] for sample in samples]).all(1).float().mean())
    return 1.0 - getattr(method.config, "mask_ratio", 0.0)


def equal_compute(protocol: Protocol, data: PreprocessedDataset) -> dict[str, dict[str, Any]]:
    """Compute the steps of each arm that pretrains, so that all spend about as many operations as the reference.

    Args:
        protocol: The protocol of the comparison.
        data: The preprocessed data set of the user.

    Returns:
        Name of the arm -> ``gflops_per_step``, ``steps``, ``steps_per_epoch``, ``exaflops`` (1e18 operations in all) and
        ``method``.

    Raises:
        UserError: The reference is no arm that pretrains.
    """
    pretraining = [arm for arm in protocol.arms if arm.method is not None]
    if not pretraining:
        return {}
    costs = {}
    for arm in pretraining:
        assert arm.method is not None
        added = {arm.name: {"inherits_from": data.configuration, "emim": arm.settings}}
        with_arm = data.plans | {"configurations": data.plans["configurations"] | added}
        costs[arm.name] = step_flops(with_arm, data.dataset_json, arm.name, arm.method)
    reference = protocol.reference or pretraining[0].name
    if reference not in costs:
        raise UserError(f"--reference {reference}: must be one of the arms that pretrain, {', '.join(costs)}")
    config = config_from_block(TrainingConfig, read_block(data.plans, data.configuration))
    budget = costs[reference] * config.num_epochs * config.num_iterations_per_epoch
    result = {}
    for arm in pretraining:
        per_epoch = max(1, round(budget / costs[arm.name] / config.num_epochs))
        steps = per_epoch * config.num_epochs
        result[arm.name] = {
            "method": arm.method,
            "settings": arm.settings,
            "gflops_per_step": costs[arm.name] / 1e9,
            "steps_per_epoch": per_epoch,
            "steps": steps,
            "exaflops": costs[arm.name] * steps / 1e18,
        }
    return result
