"""The network that plans describe."""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn


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
