"""What a training step of a method costs, so that methods can be given equal compute."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from emim_nnunet.config import config_from_block
from emim_nnunet.methods import method_class
from emim_nnunet.training.config import TrainingConfig
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
    kind = method_class(method)
    config = config_from_block(kind.config_class, block)
    if getattr(config, "patches_at_once", None):
        config = replace(config, patches_at_once=None)
    unet = get_network_from_plans(
        planned.network_arch_class_name,
        planned.network_arch_init_kwargs,
        planned.network_arch_init_kwargs_req_import,
        channels,
        2,
        allow_init=False,
        deep_supervision=False,
    )
    network = kind(unet.encoder, channels, planned.patch_size, config)
    batch_size = config_from_block(TrainingConfig, block).batch_size
    draws = network.draw(torch.Generator().manual_seed(0)) | {"subject": torch.zeros(1, dtype=torch.int64)}
    draws = {key: value.repeat(batch_size, *[1] * (value.ndim - 1)) for key, value in draws.items()}
    shape = kind.crop_size(config, planned.patch_size)
    with (
        FakeTensorMode(allow_non_fake_inputs=True) as mode,
        FlopCounterMode(display=False) as counter,
    ):  # shapes and types without values
        tensors = dict(network.named_parameters()) | dict(network.named_buffers())
        fake = {name: mode.from_tensor(tensor) for name, tensor in tensors.items()}
        inputs = (
            torch.empty((batch_size, channels, *shape)),
            torch.empty((batch_size, 1, *shape), dtype=torch.bool),
            {key: mode.from_tensor(value) for key, value in draws.items()},
        )
        torch.func.functional_call(network, fake, inputs).loss.backward()
    return counter.get_total_flops()
