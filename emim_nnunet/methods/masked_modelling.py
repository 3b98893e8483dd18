"""What the methods that hide part of an image and reconstruct it have in common: what is hidden, aimed at and counted.

A method *has* a :class:`MaskedModelling`. The weights are the method's own, as ``fill`` and ``decoder``: checkpoints know them
by these names, and optimisers by the order that follows from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from emim_nnunet.distributed import all_reduce_sum
from emim_nnunet.losses import masked_mse, normalise_cells
from emim_nnunet.masking import cells_to_voxels, grid_size
from emim_nnunet.methods.base import MethodOutput, Reconstruction, SSLConfig
from emim_nnunet.networks import PlannedEncoder, ReconstructionDecoder
from emim_nnunet.settings.block import require

FILLS = ("zero", "learned")


@dataclass(frozen=True, kw_only=True)
class MaskedModellingConfig(SSLConfig):
    """Settings that every method which masks and reconstructs has.

    The first three describe the hybrid mask of E-MIM: what E-MIM masks, what MiM masks in level 2 if asked to, and what sets
    the masked fraction of plain MIM unless it is given one.

    Attributes:
        position_ratio: The hybrid mask hides this share of the cells in all modalities, in [0, 1).
        patch_ratio: It hides this share of the remaining cells independently per modality, in [0, 1).
        modality_mask: It hides one whole modality of each sample, where there are several.
        fill: Masked voxels are replaced with ``zero``, or with one ``learned`` number per modality (starts at 0).
        foreground_only: Count only voxels inside the body. Background and padding are constant 0: they would dilute the
            loss by a share that depends on the field of view and reward learning the outline.
        norm_pix: Standardise the target in each cell; invites collapse (see :func:`normalise_cells`).
    """

    position_ratio: float = 0.25
    patch_ratio: float = 0.5
    modality_mask: bool = True
    fill: str = "zero"
    foreground_only: bool = True
    norm_pix: bool = False

    def __post_init__(self) -> None:
        for name in ("position_ratio", "patch_ratio"):
            require(0.0 <= getattr(self, name) < 1.0, f"{name} must be in [0, 1), not {getattr(self, name)}")
        require(self.fill in FILLS, f"fill must be one of {', '.join(FILLS)}, not '{self.fill}'")


class MaskedPatches(NamedTuple):
    """Patches of which part is hidden, see :func:`hide`.

    Attributes:
        image: (N, C, *P) float.
        foreground: (N, 1, *P) bool, True inside the body.
        hidden: (N, C, *P) bool, True = masked.
        present: (N, C, 1, ...) bool, modalities that are there; the others are hidden everywhere and do not count.
        cell_size: Voxels of a mask cell per axis.
    """

    image: Tensor
    foreground: Tensor
    hidden: Tensor
    present: Tensor
    cell_size: tuple[int, ...]


def hide(
    image: Tensor, foreground: Tensor, masked: Tensor, present: Tensor, cell_size: tuple[int, ...]
) -> MaskedPatches:
    """Hide cells, and modalities that are not there.

    Args:
        image: (N, C, *P) float.
        foreground: (N, 1, *P) bool.
        masked: (N, C or 1, *G) bool, True = the cell is masked.
        present: (N, C) bool.
        cell_size: Voxels of a cell per axis, P / G.
    """
    present = present.view(*present.shape, *[1] * (image.ndim - 2))
    return MaskedPatches(image, foreground, cells_to_voxels(masked, cell_size) | ~present, present, cell_size)


def with_missing(masked: Tensor, present: Tensor) -> Tensor:
    """A mask (1, C, *G) bool that hides modalities that are not there, too.

    Args:
        masked: (1, C, *G) bool.
        present: (C,) bool.
    """
    return masked | ~present.view(1, -1, *[1] * (masked.ndim - 2))


def fill_in(image: Tensor, hidden: Tensor, fill: Tensor | None) -> Tensor:
    """What the network sees.

    Args:
        image: (N, C, *P) float.
        hidden: (N, C, *P) bool.
        fill: (C,) float, the value of hidden voxels; None = 0.

    Returns:
        (N, C, *P).
    """
    if fill is None:
        return image.masked_fill(hidden, 0.0)
    return torch.where(hidden, fill.view(1, -1, *[1] * (image.ndim - 2)).to(image.dtype), image)


class MaskedModelling:
    """Target, counted voxels and loss of a reconstruction; and the weights that it needs, for the method to keep.

    Args:
        config: Settings.
        floor: Least variance of a cell where targets are standardised, see :func:`normalise_cells`.
    """

    def __init__(self, config: MaskedModellingConfig, *, floor: float = 0.0) -> None:
        self.config = config
        self.floor = floor

    @staticmethod
    def check(config: MaskedModellingConfig, patch_size: Sequence[int], strides: Sequence[int | Sequence[int]]) -> None:
        """See :meth:`SSLMethod.check`."""
        try:
            grid_size(patch_size, config.cell_size)
        except ValueError as error:
            require(False, str(error))
        require(len(strides) >= 2, f"an encoder of at least 2 stages is needed, the plans have {len(strides)}")

    def new_weights(
        self, encoder: PlannedEncoder, num_modalities: int
    ) -> tuple[ReconstructionDecoder, nn.Parameter | None]:
        """The decoder for an encoder, and the fill value, (C,), where it is learned."""
        decoder = ReconstructionDecoder(encoder.output_channels, encoder.strides, num_modalities, encoder.conv_op)
        return decoder, nn.Parameter(torch.zeros(num_modalities)) if self.config.fill == "learned" else None

    def target(self, patches: MaskedPatches) -> Tensor:
        """What a prediction is compared with, (N, C, *P)."""
        if not self.config.norm_pix:
            return patches.image
        inside = patches.foreground if self.config.foreground_only else None
        return normalise_cells(patches.image, patches.cell_size, inside, floor=self.floor)

    def counted(self, patches: MaskedPatches) -> Tensor:
        """What the loss counts, (N, C, *P) bool: hidden, of a modality that is there, and inside the body if asked."""
        counted = patches.hidden & patches.present
        return counted & patches.foreground if self.config.foreground_only else counted

    def loss(self, patches: MaskedPatches, prediction: Tensor) -> Tensor:
        """Mean squared error of a prediction, (N, C, *P), over what is counted on all ranks: () float32."""
        return masked_mse(prediction, self.target(patches), self.counted(patches))

    def shown(self, patches: MaskedPatches, masked_image: Tensor, prediction: Tensor) -> Reconstruction:
        """What the collapse monitor looks at."""
        return Reconstruction(
            image=patches.image,
            foreground=patches.foreground,
            masked_image=masked_image.detach(),
            prediction=prediction.detach(),
            target=self.target(patches).detach(),
            hidden=patches.hidden,
            counted=self.counted(patches),
        )

    def encode(
        self, image: Tensor, masked: Tensor, encoder: PlannedEncoder, fill: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """The image with its ``masked`` cells, (N, C, *G) bool, filled in, and the stage outputs for it."""
        masked_image = fill_in(image, cells_to_voxels(masked, self.config.cell_size), fill)
        return masked_image, encoder(masked_image)

    def reconstruct(
        self,
        image: Tensor,
        foreground: Tensor,
        masked: Tensor,
        present: Tensor,
        encoder: PlannedEncoder,
        decoder: nn.Module,
        fill: Tensor | None,
    ) -> tuple[MethodOutput, list[Tensor]]:
        """Mask one view of each sample, encode and reconstruct it.

        Args:
            image: (N, C, *P) float.
            foreground: (N, 1, *P) bool.
            masked: (N, C, *G) bool, True = the cell is masked.
            present: (N, C) bool, the modalities that count.
            encoder: The encoder of the method.
            decoder: The decoder of the method, see :meth:`new_weights`.
            fill: The fill value of the method, see :meth:`new_weights`.

        Returns:
            The complete output of a method whose loss is the reconstruction, and the stage outputs for the masked image.
        """
        masked_image, features = self.encode(image, masked, encoder, fill)
        prediction = decoder(features)
        # the hidden voxels are not kept from above: they would need memory while the decoder runs
        shown = self.shown(hide(image, foreground, masked, present, self.config.cell_size), masked_image, prediction)
        loss = masked_mse(prediction, shown.target, shown.counted)
        counts = [masked.sum(), masked.all(1).sum(), torch.tensor(masked.numel(), device=masked.device)]
        num_masked, num_everywhere, num_cells = all_reduce_sum(torch.stack(counts).float()).unbind()
        terms = {
            "reconstruction": loss.detach(),
            "masked_fraction": num_masked / num_cells,
            "fully_masked_fraction": num_everywhere / num_cells * masked.shape[1],
        }
        return MethodOutput(loss, terms, [f.detach() for f in features], reconstruction=shown), features
