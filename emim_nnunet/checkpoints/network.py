"""The network that plans describe, and an SSL method around its encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from emim_nnunet.methods.base import SSLConfig, SSLMethod
from emim_nnunet.networks import encoder_of, is_primus, materialise
from emim_nnunet.nnunet.plans import get_network_from_plans


def planned_network(
    architecture: dict[str, Any], channels: int, heads: int, *, deep_supervision: bool, seed: int | None = None
) -> nn.Module:
    """Build nnU-Net's network of a configuration.

    Args:
        architecture: The ``architecture`` of the configuration.
        channels: Number of input channels.
        heads: Number of output channels of the segmentation.
        deep_supervision: Whether the network returns outputs at all resolutions; a Primus never does.
        seed: Seed of nnU-Net's initialisation, which leaves the global generator as it is; None = no initialisation by nnU-Net.

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
            deep_supervision=None if is_primus(architecture) else deep_supervision,
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
    """Build an SSL method around the encoder of a configuration, as it is before training.

    Args:
        method_class: The class of the method.
        architecture: The ``architecture`` of the configuration.
        channels: Number of input channels.
        patch_size: Voxels per axis of the encoder's input.
        config: Settings of the method.
        seed: Seed of all weights, whatever the state of the global generator; None = torch's initialisation, from the global
            generator, for fake tensors, which have no values and cannot come from the meta device.

    Returns:
        The method, on the CPU.
    """
    heads = 2  # any number: the decoder is not used
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        if is_primus(architecture):
            # blocks that drop out at random would draw from the global generator, and two views would differ by them
            still = {"arch_kwargs": architecture["arch_kwargs"] | {"drop_path_rate": 0.0}}
            network: Any = planned_network(architecture | still, channels, heads, deep_supervision=False)
        elif seed is None:
            network = planned_network(architecture, channels, heads, deep_supervision=False)
        else:
            with torch.device("meta"):
                network = planned_network(architecture, channels, heads, deep_supervision=False)
            materialise(network.encoder, network.initialize)
        return method_class(encoder_of(network), channels, patch_size, config)
