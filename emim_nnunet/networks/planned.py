"""The type of the encoder that nnU-Net plans, and how plans describe it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from emim_nnunet.networks.primus import PrimusEncoder, primus_geometry

PRIMUS = "dynamic_network_architectures.architectures.primus.Primus"  # its import takes seconds, as it needs timm


class PlannedEncoder(Protocol):
    """What the encoders of nnU-Net's networks, plain, residual and Primus, have in common; they are ``nn.Module``."""

    @property
    def strides(self) -> Sequence[int | Sequence[int]]:
        """The stride of each stage, a number or one number per axis."""

    @property
    def output_channels(self) -> Sequence[int]:
        """The number of output channels of each stage."""

    @property
    def conv_op(self) -> type[nn.Module]:
        """``nn.Conv2d`` or ``nn.Conv3d``."""

    def __call__(self, image: Tensor, /) -> list[Tensor]:
        """The output (B, features_s, *grid_s) of each stage for an image (B, C, *P)."""

    def modules(self) -> Iterator[nn.Module]:
        """All modules in it, see ``nn.Module.modules``."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """All its parameters, see ``nn.Module.parameters``."""

    def eval(self) -> object:
        """Set evaluation mode, see ``nn.Module.eval``."""


def encoder_of(network: nn.Module) -> Any:
    """The encoder of a network that nnU-Net planned, which shares its weights with the network.

    Args:
        network: A U-Net with an attribute ``encoder``, or a Primus.

    Returns:
        A module that is a :class:`PlannedEncoder`.
    """
    kind = type(network)
    if f"{kind.__module__}.{kind.__qualname__}" == PRIMUS:
        return PrimusEncoder(network)
    return network.get_submodule("encoder")


def is_primus(architecture: dict[str, Any]) -> bool:
    """Whether the ``architecture`` of a configuration is a Primus."""
    return architecture["network_class_name"] == PRIMUS


def planned_geometry(architecture: dict[str, Any]) -> tuple[Sequence[int | Sequence[int]], Sequence[int]]:
    """Strides and channels of the stages of the encoder that an ``architecture`` describes."""
    arguments = architecture["arch_kwargs"]
    return (
        primus_geometry(arguments)
        if is_primus(architecture)
        else (arguments["strides"], arguments["features_per_stage"])
    )
