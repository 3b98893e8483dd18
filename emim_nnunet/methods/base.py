"""What every SSL method offers to the trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn


class Reconstruction(NamedTuple):
    """What a method reconstructs; detached tensors.

    Attributes:
        masked_image: (B, C, *P), the network's input.
        prediction: (B, C, *P).
        target: (B, C, *P), what the prediction is compared with.
        hidden: (B, C, *P) bool, True = masked.
        counted: (B, C, *P) bool, what the loss counts: masked, and inside the body if asked.
    """

    masked_image: Tensor
    prediction: Tensor
    target: Tensor
    hidden: Tensor
    counted: Tensor


class MethodOutput(NamedTuple):
    """Result of a method's forward.

    Attributes:
        loss: () float32, what is minimised; equal on all ranks.
        terms: Detached () tensors to log.
        features: Detached stage outputs for the (first) masked or augmented view.
        original_features: Detached stage outputs for the image as it is, of all stages; in evaluation mode only, and where the
            method computes them anyway.
        reconstruction: Of the first view; None for a method that reconstructs nothing.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    features: list[Tensor]
    original_features: list[Tensor] | None = None
    reconstruction: Reconstruction | None = None


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
