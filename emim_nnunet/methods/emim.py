"""E-MIM (arXiv 2407.10377): masked image modelling + hybrid mask pattern (HMP) + pyramid Barlow twins (PBT).

HMP works against *complete collapse* (the output ignores the input), PBT against *dimensional collapse* (features span few
dimensions).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from emim_nnunet.masking import grid_size
from emim_nnunet.methods.base import MethodOutput, SSLMethod
from emim_nnunet.methods.masked_modelling import MaskedView, ViewWeights, draw_hybrid_mask
from emim_nnunet.methods.pyramid_barlow import PyramidBarlowConfig, PyramidBarlowTwins
from emim_nnunet.networks import PlannedEncoder, first_stages
from emim_nnunet.settings.block import require

SECOND_VIEWS = ("original", "masked")


@dataclass(frozen=True, kw_only=True)
class EMIMConfig(PyramidBarlowConfig):
    """Settings of E-MIM.

    Attributes:
        fill: A learned number per modality by default: in z-scored, skull-stripped data 0 is the background, so filling
            with 0 would hide what is masked.
        second_view: PBT compares the masked patch with the ``original`` one, or with a second, independently ``masked`` view,
            which is reconstructed as well.
        original_view_gradient: Whether gradients flow through the original view.
    """

    without_effect: ClassVar[tuple[str, ...]] = ("mask_ratio",)
    fill: str = "learned"
    second_view: str = "original"
    original_view_gradient: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.second_view in SECOND_VIEWS, f"second_view must be one of {', '.join(SECOND_VIEWS)}")


class EMIM(SSLMethod[EMIMConfig]):
    """E-MIM on a planned encoder.

    Args:
        encoder: Planned encoder that returns all stage outputs.
        num_modalities: C.
        patch_size: Voxels per axis.
        config: Settings.
    """

    config_class: ClassVar[type] = EMIMConfig
    paper: ClassVar[str] = "E-MIM: arXiv 2407.10377"

    def __init__(
        self, encoder: PlannedEncoder, num_modalities: int, patch_size: Sequence[int], config: EMIMConfig
    ) -> None:
        self.check(config, patch_size, encoder.strides)
        super().__init__(encoder, num_modalities, patch_size, config)
        self.grid = grid_size(patch_size, config.cell_size)
        self.modelling = MaskedView(config, hidden_features=config.barlow_masked_cells)
        self.decoder, self.fill = self.modelling.new_weights(encoder, num_modalities)
        self.pyramid = PyramidBarlowTwins(config, patch_size, encoder.strides)
        self.projectors = self.pyramid.new_projectors(encoder)
        self.mask_stem = self.modelling.new_mask_stem(encoder, num_modalities)

    @classmethod
    def check(cls, config: EMIMConfig, patch_size: Sequence[int], strides: Sequence[int | Sequence[int]]) -> None:
        """See :meth:`SSLMethod.check`."""
        MaskedView.check(config, patch_size, strides)
        PyramidBarlowTwins.check(config, patch_size, strides)

    def draw(self, generator: torch.Generator, present: Tensor | None = None) -> dict[str, Tensor]:
        """``masked`` (1, C, *G) bool, ``masked_second`` if asked for, a score per cell and level that picks the rows, and
        ``present`` (1, C) bool.
        """
        present = self.all_or(present)
        draws = {"masked": draw_hybrid_mask(self.config, self.grid, generator, present), "present": present[None]}
        if self.config.second_view == "masked":
            draws["masked_second"] = draw_hybrid_mask(self.config, self.grid, generator, present)
        return draws | self.pyramid.draw(generator)

    def forward(self, image: Tensor, foreground: Tensor, draws: dict[str, Tensor]) -> MethodOutput:
        """Reconstruction loss of the masked view + weight * mean over levels of Barlow twins with the second view.

        Arguments and return value are those of :class:`SSLMethod`.
        """
        original_features = (
            self._encode_original(image) if self.pyramid.levels and self.config.second_view == "original" else None
        )
        masked, present = draws["masked"], draws["present"]
        weights = ViewWeights(self.encoder, self.decoder, self.fill, self.mask_stem)
        output, features = self.modelling.reconstruct(image, foreground, masked, present, weights)
        if not self.pyramid.levels:
            return output
        visible = ~masked.all(1, keepdim=True)
        if original_features is None:
            masked_second = draws["masked_second"]
            second, second_features = self.modelling.reconstruct(image, foreground, masked_second, present, weights)
            output = output._replace(loss=0.5 * (output.loss + second.loss))
            visible = visible & ~masked_second.all(1, keepdim=True)
        else:
            second_features = original_features
            if not self.training:
                output = output._replace(original_features=[f.detach() for f in original_features])
        barlow = self.pyramid.losses(features, second_features, visible, foreground, draws, self.projectors)
        return self.pyramid.added_to(output, barlow)

    def _encode_original(self, image: Tensor) -> list[Tensor]:
        """Stage outputs for the unmasked image, in training up to the deepest pyramid level.

        Computed before the masked view: without a gradient it then never adds to what that view keeps for its own.
        """
        count = max(self.pyramid.levels) + 1 if self.training else len(self.encoder.strides)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.original_view_gradient):
            return first_stages(self.encoder, image, count)
