"""Plain masked image modelling: the baseline of every comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from emim_nnunet.masking import grid_size, masked_fraction, position_mask
from emim_nnunet.methods.base import MethodOutput, SSLMethod
from emim_nnunet.methods.masked_modelling import MaskedView, MaskedViewConfig, ViewWeights, with_missing
from emim_nnunet.networks import PlannedEncoder
from emim_nnunet.settings.block import require


@dataclass(frozen=True, kw_only=True)
class MIMConfig(MaskedViewConfig):
    """Settings of plain masked image modelling.

    Attributes:
        mask_ratio: Share of cells masked in all modalities, in (0, 1); None = the masked fraction of the hybrid mask, so that
            this method and E-MIM are compared at equal masked fraction.
    """

    mask_ratio: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.mask_ratio is None or 0.0 < self.mask_ratio < 1.0, f"mask_ratio must be in (0, 1): {self.mask_ratio}"
        )


class MIM(SSLMethod[MIMConfig]):
    """Masked image modelling with one random position mask.

    Args:
        encoder: Planned encoder that returns all stage outputs.
        num_modalities: C.
        patch_size: Voxels per axis.
        config: Settings.
    """

    config_class: ClassVar[type] = MIMConfig
    paper: ClassVar[str] = "Masked autoencoders: arXiv 2111.06377"

    def __init__(
        self, encoder: PlannedEncoder, num_modalities: int, patch_size: Sequence[int], config: MIMConfig
    ) -> None:
        self.check(config, patch_size, encoder.strides)
        super().__init__(encoder, num_modalities, patch_size, config)
        self.grid = grid_size(patch_size, config.cell_size)
        self.modelling = MaskedView(config)
        self.decoder, self.fill = self.modelling.new_weights(encoder, num_modalities)
        self.mask_stem = self.modelling.new_mask_stem(encoder, num_modalities)

    @classmethod
    def check(cls, config: MIMConfig, patch_size: Sequence[int], strides: Sequence[int | Sequence[int]]) -> None:
        """See :meth:`SSLMethod.check`."""
        MaskedView.check(config, patch_size, strides)

    def draw(self, generator: torch.Generator, present: Tensor | None = None) -> dict[str, Tensor]:
        """``masked`` (1, C, *G) bool, the same in all modalities that are there; ``present`` (1, C) bool."""
        present = self.all_or(present)
        config = self.config
        ratio = config.mask_ratio
        if ratio is None:
            ratio = masked_fraction(
                self.num_modalities,
                position_ratio=config.position_ratio,
                patch_ratio=config.patch_ratio,
                modality_mask=config.modality_mask,
            )
        masked = position_mask(1, self.grid, ratio, generator)
        return {
            "masked": with_missing(masked.expand(1, self.num_modalities, *self.grid), present),
            "present": present[None],
        }

    def forward(self, image: Tensor, foreground: Tensor, draws: dict[str, Tensor]) -> MethodOutput:
        """Mask, encode, reconstruct; see :class:`SSLMethod`."""
        weights = ViewWeights(self.encoder, self.decoder, self.fill, self.mask_stem)
        return self.modelling.reconstruct(image, foreground, draws["masked"], draws["present"], weights)[0]
