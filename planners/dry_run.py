"""A training step without values: torch's fake tensors have shape, type and lifetime, but no memory, and cost nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from emim_nnunet.checkpoints.network import planned_method
from emim_nnunet.methods.base import SSLMethod
from emim_nnunet.networks import own_norm_outputs
from emim_nnunet.settings.block import config_from_block


def fake_stage(
    counter: AbstractContextManager,
    method_class: type[SSLMethod],
    plan: dict[str, Any],
    block: dict[str, Any],
    channels: int,
) -> tuple[FakeTensorMode, SSLMethod, Callable[[], Tensor]]:
    """An SSL method on fake weights, and its loss of a batch.

    Args:
        counter: Counts memory or operations; it is active while the method is made.
        method_class: The SSL method to make.
        plan: A configuration of the plans; ``architecture`` and ``patch_size`` of it are used.
        block: Its ``emim`` block, whose ``batch_size`` is that of the batch.
        channels: Number of channels of an image.

    Returns:
        The mode, the method, and a function that makes a batch and returns its loss. Use method and function under the
        mode and, inside it, the counter.
    """
    patch_size, batch_size = [int(p) for p in plan["patch_size"]], block["batch_size"]
    config = config_from_block(method_class.config_class, block)
    crop = method_class.crop_size(config, patch_size)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake, counter, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # deepcopy does, without harm
        method = planned_method(method_class, plan["architecture"], channels, patch_size, config, seed=None)
        own_norm_outputs(method)
    # one sample's draws, as many times as there are samples: their values do not matter
    sample = method.draw(torch.Generator().manual_seed(0)) | {"subject": torch.zeros(1, dtype=torch.int64)}

    def loss() -> Tensor:
        draws = {key: torch.cat([value] * batch_size) for key, value in sample.items()}
        foreground = torch.ones(batch_size, 1, *crop, dtype=torch.bool)
        return method(torch.zeros(batch_size, channels, *crop), foreground, draws).loss

    return fake, method, loss
