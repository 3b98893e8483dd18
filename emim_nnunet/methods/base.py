"""What every SSL method offers to the trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from emim_nnunet.networks import PlannedEncoder
from emim_nnunet.settings.block import config_from_block

Config = TypeVar("Config", bound="SSLConfig")


@dataclass(frozen=True, kw_only=True)
class SSLConfig:
    """Settings that every method has.

    Attributes:
        cell_size: Voxels of a cell per axis: what is masked as a whole, and the grain in which features are looked at.
        formerly: What keys that are new, or have another default now, stood for in checkpoints that do not hold the settings of
            their stage. Such a stage goes on as it was begun.
        without_effect: Keys of other methods that look like settings of this one. A stage refuses them; other keys of other
            methods are only named in its log.
    """

    formerly: ClassVar[dict[str, Any]] = {}
    without_effect: ClassVar[tuple[str, ...]] = ()
    cell_size: tuple[int, ...]

    @classmethod
    def of_checkpoint(cls: type[Config], checkpoint: dict[str, Any], block: dict[str, Any]) -> Config:
        """The settings that a stage was begun with, whatever the defaults are now.

        Args:
            checkpoint: Of an SSL stage; those of earlier versions hold no settings.
            block: The resolved ``emim`` block, whose keys come first.

        Raises:
            UserError: A value in it is not as it must be.
        """
        return config_from_block(cls, cls.formerly | checkpoint.get("settings", {}) | block)


class Reconstruction(NamedTuple):
    """What a method reconstructs, of one patch per sample; detached tensors.

    Attributes:
        image: (B, C, *P), the patch as it is.
        foreground: (B, 1, *P) bool, True inside the body.
        masked_image: (B, C, *P), the network's input.
        prediction: (B, C, *P), the network's output.
        target: (B, C, *P), what the prediction is compared with.
        hidden: (B, C, *P) bool, True = masked.
        counted: (B, C, *P) bool, what the loss counts: masked, and inside the body if asked.
    """

    image: Tensor
    foreground: Tensor
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
        features: Detached stage outputs for a masked or changed view of the patch, position by position; None where no view
            covers the same voxels.
        original_features: Detached stage outputs for the patch as it is, of all stages; in evaluation mode only, and where the
            method computes them anyway.
        reconstruction: What was reconstructed of the first view; None for a method that reconstructs nothing.
        state: Detached tensors for :meth:`SSLMethod.after_step`, with the samples of this rank along the first axis.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    features: list[Tensor] | None = None
    original_features: list[Tensor] | None = None
    reconstruction: Reconstruction | None = None
    state: dict[str, Tensor] | None = None


class SSLMethod(nn.Module, Generic[Config]):
    """An SSL method around the encoder that nnU-Net planned.

    Subclasses name their settings (``class VICReg(SSLMethod[VICRegConfig])``), set ``config_class`` and implement
    :meth:`check`, :meth:`draw` and ``forward(image, foreground, draws)``. All randomness comes through :meth:`draw`, and what a
    method remembers changes in :meth:`after_step` only, so forward is a pure function of state and inputs.

    ``forward`` gets ``image`` (B, C, *crop) float, z-scored, outside of the body mostly 0 (or noise, where the background is
    that), ``foreground`` (B, 1, *crop) bool, and ``draws``: what :meth:`draw` returned for each sample, concatenated, and
    ``subject`` (B,) int64 >= 0, whose image it is. It returns a :class:`MethodOutput`.

    Attributes:
        encoder: The part that is transferred; its keys in the state dict start with ``encoder.``.
        config_class: The frozen dataclass of the method's settings.
        paper: The publication to cite; it stands in every export.
    """

    config_class: ClassVar[type[SSLConfig]]
    paper: ClassVar[str]
    encoder: PlannedEncoder

    def __init__(self, encoder: PlannedEncoder, num_modalities: int, patch_size: Sequence[int], config: Config) -> None:
        super().__init__()
        self.encoder = encoder
        self.num_modalities = num_modalities
        self.patch_size = tuple(patch_size)
        self.config = config

    @classmethod
    def check(cls, config: Config, patch_size: Sequence[int], strides: Sequence[int | Sequence[int]]) -> None:
        """Whether settings, patch and encoder fit each other.

        Args:
            config: An instance of ``config_class``.
            patch_size: Voxels per axis.
            strides: Stride of each encoder stage.

        Raises:
            UserError: They do not fit; the message names the key of the ``emim`` block.
        """
        raise NotImplementedError

    @classmethod
    def crop_size(cls, config: Config, patch_size: Sequence[int]) -> tuple[int, ...]:
        """Size of the crops that ``forward`` takes; the patch in their middle is what the collapse monitor looks at.

        Args:
            config: An instance of ``config_class``.
            patch_size: Voxels per axis, what the encoder takes.

        Returns:
            Voxels per axis, at least ``patch_size``; by default equal to it.
        """
        return tuple(patch_size)

    def after_step(self, state: dict[str, Tensor] | None) -> None:
        """Change what the method remembers, after each step of the optimiser; by default nothing.

        Args:
            state: ``state`` of the step's :class:`MethodOutput`, on this rank; the result must be the same on all ranks.
        """

    def draw(self, generator: torch.Generator, present: Tensor | None = None) -> dict[str, Tensor]:
        """The random inputs of one sample.

        A modality that the sample lacks is 0 everywhere. It must stay out of every loss: treat it as masked everywhere, and
        add nothing to it.

        Args:
            generator: CPU generator of that sample.
            present: (C,) bool, the modalities that the sample has; None = all.

        Returns:
            Tensors with a leading axis of length 1; the trainer concatenates those of a batch along it.
        """
        raise NotImplementedError

    def all_or(self, present: Tensor | None) -> Tensor:
        """``present`` (C,) bool; all True for None, and for a sample that has none (there is no body in it then)."""
        everything = torch.ones(self.num_modalities, dtype=torch.bool)
        return everything if present is None or not present.any() else present
