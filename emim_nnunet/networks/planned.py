"""The type of the encoder that nnU-Net plans."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, cast

from torch import Tensor, nn


class PlannedEncoder(Protocol):
    """What the encoders of nnU-Net's networks, plain and residual, have in common; they are ``nn.Module``."""

    @property
    def strides(self) -> Sequence[int | Sequence[int]]:
        """The stride of each stage, a number or one number per axis."""

    @property
    def output_channels(self) -> Sequence[int]:
        """The number of output channels of each stage."""

    @property
    def conv_op(self) -> type[nn.Module]:
        """``nn.Conv2d`` or ``nn.Conv3d``."""

    @property
    def stages(self) -> nn.Sequential:
        """The stages, one module each; a residual encoder has a ``stem`` before the first one."""

    def __call__(self, image: Tensor, /) -> list[Tensor]:
        """The output (B, features_s, *grid_s) of each stage for an image (B, C, *P)."""

    def modules(self) -> Iterator[nn.Module]:
        """All modules in it, see ``nn.Module.modules``."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """All its parameters, see ``nn.Module.parameters``."""

    def eval(self) -> object:
        """Set evaluation mode, see ``nn.Module.eval``."""


def encoder_of(network: nn.Module) -> PlannedEncoder:
    """The encoder of a network that nnU-Net planned.

    Args:
        network: A network with an attribute ``encoder``, whose type torch does not know.
    """
    return cast(PlannedEncoder, network.encoder)
