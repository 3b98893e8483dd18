"""The encoder that nnU-Net plans, as a type."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, cast

from torch import Tensor, nn


class PlannedEncoder(Protocol):
    """What the encoders of nnU-Net's networks, plain and residual, have in common; they are ``nn.Module``."""

    @property
    def strides(self) -> Sequence[int | Sequence[int]]:
        """Of each stage, a number or one number per axis."""

    @property
    def output_channels(self) -> Sequence[int]:
        """Of each stage."""

    @property
    def conv_op(self) -> type[nn.Module]:
        """``nn.Conv2d`` or ``nn.Conv3d``."""

    @property
    def stages(self) -> nn.Sequential:
        """One module each; a residual encoder has a ``stem`` before the first."""

    def __call__(self, image: Tensor, /) -> list[Tensor]:
        """(B, C, *P) -> one (B, features_s, *grid_s) per stage."""

    def modules(self) -> Iterator[nn.Module]:
        """As of every ``nn.Module``."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """As of every ``nn.Module``."""

    def eval(self) -> object:
        """As of every ``nn.Module``."""


def encoder_of(network: nn.Module) -> PlannedEncoder:
    """The encoder of a network that nnU-Net planned.

    Args:
        network: Has an ``encoder``; torch cannot say of what type.
    """
    return cast(PlannedEncoder, network.encoder)
