"""What a training step of a method costs, so that methods can be given equal compute."""

from __future__ import annotations

from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from emim_nnunet.methods import method_class
from emim_nnunet.nnunet.plans import PlansManager, determine_num_input_channels
from emim_nnunet.planners.dry_run import fake_stage
from emim_nnunet.settings.block import config_from_block
from emim_nnunet.settings.stages import TrainingConfig
from emim_nnunet.training.stage import read_block


def step_flops(plans: dict[str, Any], dataset_json: dict[str, Any], configuration: str, method: str) -> int:
    """Floating point operations of one training step, forward and backward, counted without computing anything.

    Convolutions and matrix products count, a multiply-add as two. What is computed twice to save memory counts once.

    Args:
        plans: Plans JSON.
        dataset_json: ``dataset.json``.
        configuration: Whose ``emim`` block holds the settings of the method.
        method: Class name.

    Returns:
        FLOPs of the whole batch.
    """
    manager = PlansManager(plans)
    planned = manager.get_configuration(configuration)
    channels = determine_num_input_channels(manager, planned, dataset_json)
    block = read_block(plans, configuration)
    block |= {"patches_at_once": None, "batch_size": config_from_block(TrainingConfig, block).batch_size}
    counter = FlopCounterMode(display=False)
    fake, _, loss = fake_stage(counter, method_class(method), planned.configuration, block, channels)
    with fake, counter:
        loss().backward()
    return counter.get_total_flops()
