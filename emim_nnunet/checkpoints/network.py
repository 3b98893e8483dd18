"""The network that plans describe, and an SSL method around its encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from emim_nnunet.methods.base import SSLConfig, SSLMethod
from emim_nnunet.networks import encoder_of, materialise
from emim_nnunet.nnunet.plans import get_network_from_plans


def planned_network(
    architecture: dict[str, Any], channels: int, heads: int, *, deep_supervision: bool, seed: int | None = None
) -> nn.Module:
    """nnU-Net's U-Net of a configuration.

    Args:
        architecture: Of the configuration.
        channels: Of the image.
        heads: Segmentation heads.
        deep_supervision: Whether it returns all resolutions.
        seed: nnU-Net's initialisation as a function of it, whatever the global generator; None = not initialised by nnU-Net.

    Returns:
        The network.
    """
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return get_network_from_plans(
            architecture["network_class_name"],
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
            channels,
            heads,
            allow_init=seed is not None,
            deep_supervision=deep_supervision,
        )


def planned_method(
    method_class: type[SSLMethod],
    architecture: dict[str, Any],
    channels: int,
    patch_size: Sequence[int],
    config: SSLConfig,
    *,
    seed: int | None,
) -> SSLMethod:
    """An SSL method around the encoder of a configuration, as it is before training.

    Args:
        method_class: The method.
        architecture: Of the configuration.
        channels: Of the image.
        patch_size: Voxels per axis, what the encoder takes.
        config: Settings of the method.
        seed: All weights are a function of it, whatever the global generator; None = torch's initialisation, from the global
            generator: for fake tensors, which have no values and cannot come from the meta device.

    Returns:
        The method, on the CPU.
    """
    heads = 2  # the decoder is not looked at
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is None:
            unet: Any = planned_network(architecture, channels, heads, deep_supervision=False)
        else:
            torch.manual_seed(seed)
            with torch.device("meta"):
                unet = planned_network(architecture, channels, heads, deep_supervision=False)
            materialise(unet.encoder, unet.initialize)
        return method_class(encoder_of(unet), channels, patch_size, config)
