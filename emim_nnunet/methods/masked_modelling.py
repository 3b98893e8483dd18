"""What the methods that hide part of an image and reconstruct it have in common: what is hidden, aimed at and counted.

A method *has* a :class:`MaskedModelling`. The weights are the method's own, as ``fill`` and ``decoder``: checkpoints know them
by these names, and optimisers by the order that follows from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from emim_nnunet.distributed import all_reduce_sum
from emim_nnunet.losses import masked_mse, normalise_cells
from emim_nnunet.masking import cells_to_voxels, grid_size, hybrid_mask
from emim_nnunet.methods.base import MethodOutput, Reconstruction, SSLConfig
from emim_nnunet.networks import (
    PlannedEncoder,
    PrimusEncoder,
    ReconstructionDecoder,
    TokenDecoder,
    added_to_stem,
    mask_stem,
    visible_only,
)
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
        fill: Masked voxels are replaced with ``zero``, or with one ``learned`` number per modality.
        fill_start: The learned number before the first step, in standard deviations of z-scored images; 0 is their mean.
        foreground_only: Count only voxels inside the body. Background and padding are constant 0: they would dilute the
            loss by a share that depends on the field of view and reward learning the outline.
        norm_pix: Standardise the target in each cell; invites collapse (see :func:`normalise_cells`).
        decoder_min_width: Least channels of the decoder. Planned: what its head has to produce, see
            :class:`ReconstructionDecoder`; None = 8, the bound of stages whose plans do not say.
    """

    position_ratio: float = 0.25
    patch_ratio: float = 0.5
    modality_mask: bool = True
    fill: str = "zero"
    fill_start: float = 0.0
    foreground_only: bool = True
    norm_pix: bool = False
    decoder_min_width: int | None = None

    def __post_init__(self) -> None:
        for name in ("position_ratio", "patch_ratio"):
            require(0.0 <= getattr(self, name) < 1.0, f"{name} must be in [0, 1), not {getattr(self, name)}")
        require(self.fill in FILLS, f"fill must be one of {', '.join(FILLS)}, not '{self.fill}'")
        width = self.decoder_min_width
        require(width is None or width >= 1, f"decoder_min_width must be at least 1, not {width}")


@dataclass(frozen=True, kw_only=True)
class MaskedViewConfig(MaskedModellingConfig):
    """Settings of methods that show the encoder masked patches of one scale, see :class:`MaskedView`.

    Attributes:
        sparse_encoder: Run the encoder on visible voxels only: masked positions are empty after every layer, and instance
            normalisations take their statistics of the visible ones, as in SparK (arXiv 2301.03580). Without effect on a
            Primus, into whose blocks visible tokens alone enter.
        mask_channel: Give the encoder the mask as well, one more input channel per modality (1 = hidden). Its filters belong to
            the SSL stage and are not transferred.
    """

    sparse_encoder: bool = False
    mask_channel: bool = False


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


def draw_hybrid_mask(
    config: MaskedModellingConfig, grid: Sequence[int], generator: torch.Generator, present: Tensor
) -> Tensor:
    """The hybrid mask pattern of one sample, (1, C, *G) bool, with the modalities that are not there hidden as well.

    Args:
        config: Settings.
        grid: Cells per axis.
        generator: CPU generator of the sample.
        present: (C,) bool.
    """
    masked = hybrid_mask(
        1,
        len(present),
        grid,
        position_ratio=config.position_ratio,
        patch_ratio=config.patch_ratio,
        modality_mask=config.modality_mask,
        generator=generator,
        present=present,
    )
    return with_missing(masked, present)


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
        decoder_class = TokenDecoder if isinstance(encoder, PrimusEncoder) else ReconstructionDecoder
        decoder = decoder_class(
            encoder.output_channels, encoder.strides, num_modalities, encoder.conv_op, self.config.decoder_min_width
        )
        start = torch.full((num_modalities,), self.config.fill_start)
        return decoder, nn.Parameter(start) if self.config.fill == "learned" else None

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


class ViewWeights(NamedTuple):
    """The weights that :meth:`MaskedView.reconstruct` needs; the method keeps them.

    Attributes:
        encoder: The encoder of the method.
        decoder: The decoder, see :meth:`MaskedModelling.new_weights`.
        fill: The fill value, see :meth:`MaskedModelling.new_weights`.
        mask_stem: The filters of the mask channels, see :meth:`MaskedView.new_mask_stem`.
    """

    encoder: PlannedEncoder
    decoder: nn.Module
    fill: Tensor | None
    mask_stem: nn.Module | None = None


class MaskedView(MaskedModelling):
    """Masked modelling of a patch of which cells are hidden: one encoder pass per view.

    Args:
        config: Settings.
        hidden_features: Whether the method needs features where everything is hidden: a Primus is given those tokens then.
    """

    def __init__(self, config: MaskedViewConfig, *, hidden_features: bool = False) -> None:
        super().__init__(config)
        self.view_config = config
        self.hidden_features = hidden_features

    def new_mask_stem(self, encoder: PlannedEncoder, num_modalities: int) -> nn.Module | None:
        """The filters of the mask channels, where the encoder is given the mask."""
        return mask_stem(encoder, num_modalities) if self.view_config.mask_channel else None

    @contextmanager
    def _told_what_is_hidden(self, weights: ViewWeights, masked: Tensor) -> Iterator[None]:
        """The encoder is given the mask, (N, C, *G) bool, and passes over what is hidden, where the settings say so."""
        with ExitStack() as stack:
            if weights.mask_stem is not None:
                hidden = cells_to_voxels(masked, self.config.cell_size).float()
                stack.enter_context(added_to_stem(weights.encoder, weights.mask_stem(hidden)))
            if self._is_sparse(weights.encoder):
                visible = cells_to_voxels(~masked.all(1, keepdim=True), self.config.cell_size)
                stack.enter_context(visible_only(weights.encoder, visible, every_layer=True))
            yield

    def _is_sparse(self, encoder: PlannedEncoder) -> bool:
        return not self.hidden_features if isinstance(encoder, PrimusEncoder) else self.view_config.sparse_encoder

    def encode(self, image: Tensor, masked: Tensor, weights: ViewWeights) -> tuple[Tensor, list[Tensor]]:
        """The image with its ``masked`` cells, (N, C, *G) bool, filled in, and the stage outputs for it."""
        masked_image = fill_in(image, cells_to_voxels(masked, self.config.cell_size), weights.fill)
        with self._told_what_is_hidden(weights, masked):
            return masked_image, weights.encoder(masked_image)

    def reconstruct(
        self, image: Tensor, foreground: Tensor, masked: Tensor, present: Tensor, weights: ViewWeights
    ) -> tuple[MethodOutput, list[Tensor]]:
        """Mask one view of each sample, encode and reconstruct it.

        Args:
            image: (N, C, *P) float.
            foreground: (N, 1, *P) bool.
            masked: (N, C, *G) bool, True = the cell is masked.
            present: (N, C) bool, the modalities that count.
            weights: The weights of the method.

        Returns:
            The complete output of a method whose loss is the reconstruction, and the stage outputs for the masked image.
        """
        masked_image, features = self.encode(image, masked, weights)
        prediction = weights.decoder(features)
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
