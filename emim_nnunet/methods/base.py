"""What every SSL method offers to the trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn


class MethodOutput(NamedTuple):
    """Result of a method's forward.

    Attributes:
        loss: () float32, what is minimised; equal on all ranks.
        terms: Detached () tensors to log.
        sums: (C, 4) float32, detached, this rank's part: what skill follows from (see
            :func:`emim_nnunet.losses.masked_sums`).
        masked_image: (B, C, *P), detached, the network's input.
        reconstruction: (B, C, *P), detached.
        features: Stage outputs of the masked view, detached.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    sums: Tensor
    masked_image: Tensor
    reconstruction: Tensor
    features: list[Tensor]


class SSLMethod(nn.Module):
    """An SSL method around the encoder that nnU-Net planned.

    Subclasses set ``config_class`` and implement :meth:`check`, :meth:`draw` and ``forward(image, foreground, draws)``.
    All randomness comes through :meth:`draw`, so forward is a pure function of its inputs.

    Attributes:
        encoder: The part that is transferred; its keys in the state dict start with ``encoder.``.
        config_class: The frozen dataclass of the method's settings.
    """

    config_class: ClassVar[type]
    encoder: nn.Module

    def __init__(self, encoder: nn.Module, num_modalities: int, patch_size: Sequence[int], config: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.num_modalities = num_modalities
        self.patch_size = tuple(patch_size)
        self.config = config

    @classmethod
    def check(cls, config: Any, patch_size: Sequence[int], strides: Sequence[int | Sequence[int]]) -> None:
        """Whether settings, patch and encoder fit each other.

        Args:
            config: An instance of ``config_class``.
            patch_size: Voxels per axis.
            strides: Stride of each encoder stage.

        Raises:
            UserError: They do not; names the key of the ``emim`` block.
        """
        raise NotImplementedError

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """The random inputs of one sample.

        Args:
            generator: CPU generator of that sample.

        Returns:
            CPU tensors with a leading axis of length 1; the trainer concatenates those of a batch along it.
        """
        raise NotImplementedError
