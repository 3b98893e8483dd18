"""Plain masked image modelling: the baseline of every comparison, and the part that E-MIM builds on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from emim_nnunet.distributed import all_reduce_sum
from emim_nnunet.losses import masked_mse, normalise_cells
from emim_nnunet.masking import cells_to_voxels, grid_size, masked_fraction, position_mask
from emim_nnunet.methods.base import MethodOutput, Reconstruction, SSLConfig, SSLMethod
from emim_nnunet.networks import PlannedEncoder, ReconstructionDecoder
from emim_nnunet.settings.block import require

FILLS = ("zero", "learned")


@dataclass(frozen=True, kw_only=True)
class MIMConfig(SSLConfig):
    """Settings of plain masked image modelling.

    Attributes:
        mask_ratio: Share of cells masked in all modalities; None = the masked fraction of E-MIM's hybrid mask, so that the
            two are compared at equal masked fraction.
        position_ratio: Of the hybrid mask; here it only sets the equal fraction.
        patch_ratio: Likewise.
        modality_mask: Likewise.
        fill: What masked voxels are replaced with: ``zero``, or one ``learned`` number per modality (starts at 0).
        foreground_only: Count only voxels inside the body. Background and padding are constant 0: they would dilute the
            loss by a share that depends on the field of view and reward learning the outline.
        norm_pix: Standardise the target in each cell; invites collapse (see :func:`normalise_cells`).
    """

    mask_ratio: float | None = None
    position_ratio: float = 0.25
    patch_ratio: float = 0.5
    modality_mask: bool = True
    fill: str = "zero"
    foreground_only: bool = True
    norm_pix: bool = False

    def __post_init__(self) -> None:
        for name in ("position_ratio", "patch_ratio"):
            require(0.0 <= getattr(self, name) < 1.0, f"{name} must be in [0, 1), not {getattr(self, name)}")
        require(
            self.mask_ratio is None or 0.0 < self.mask_ratio < 1.0, f"mask_ratio must be in (0, 1): {self.mask_ratio}"
        )
        require(self.fill in FILLS, f"fill must be one of {', '.join(FILLS)}, not '{self.fill}'")


Config = TypeVar("Config", bound=MIMConfig)


class MIM(SSLMethod[Config]):
    """Masked image modelling with one random position mask.

    Args:
        encoder: Planned encoder that returns all stage outputs.
        num_modalities: C.
        patch_size: Voxels per axis.
        config: Settings.
    """

    config_class: ClassVar[type] = MIMConfig
    paper: ClassVar[str] = "Masked autoencoders: arXiv 2111.06377"
    fill: Tensor

    def __init__(self, encoder: PlannedEncoder, num_modalities: int, patch_size: Sequence[int], config: Config) -> None:
        self.check(config, patch_size, encoder.strides)
        super().__init__(encoder, num_modalities, patch_size, config)
        self.grid = grid_size(patch_size, config.cell_size)
        self.decoder = ReconstructionDecoder(encoder.output_channels, encoder.strides, num_modalities, encoder.conv_op)
        if config.fill == "learned":
            self.fill = nn.Parameter(torch.zeros(num_modalities))
        else:
            self.register_buffer("fill", torch.zeros(num_modalities), persistent=False)

    @classmethod
    def check(cls, config: Config, patch_size: Sequence[int], strides: Sequence[int | Sequence[int]]) -> None:
        """See :meth:`SSLMethod.check`."""
        try:
            grid_size(patch_size, config.cell_size)
        except ValueError as error:
            require(False, str(error))
        require(len(strides) >= 2, f"an encoder of at least 2 stages is needed, the plans have {len(strides)}")

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
        """Mask, encode, reconstruct.

        Args:
            image: (B, C, *P) float, z-scored inside the body, 0 outside.
            foreground: (B, 1, *P) bool, True inside the body.
            draws: Of :meth:`draw`, concatenated over the batch.

        Returns:
            Loss, terms and what the monitor needs.
        """
        masked_image, features = self.encode_masked(image, draws["masked"])
        return self.reconstruct(image, foreground, draws["masked"], masked_image, features, draws["present"])

    def encode_masked(self, image: Tensor, masked: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The masked image (B, C, *P) and the stage outputs of the encoder for it."""
        masked_image = self.fill_in(image, cells_to_voxels(masked, self.config.cell_size))
        return masked_image, self.encoder(masked_image)

    def fill_in(self, image: Tensor, hidden: Tensor) -> Tensor:
        """The image (B, C, *P) with the fill value in its ``hidden`` voxels, (B, C or 1, *P) bool."""
        fill = self.fill.view(1, -1, *[1] * (image.ndim - 2)).to(image.dtype)
        return torch.where(hidden, fill, image)

    def reconstruct(
        self,
        image: Tensor,
        foreground: Tensor,
        masked: Tensor,
        masked_image: Tensor,
        features: list[Tensor],
        present: Tensor,
    ) -> MethodOutput:
        """The reconstruction part of the loss, as a complete output; only modalities that are ``present`` (B, C) count."""
        prediction = self.decoder(features)
        hidden = cells_to_voxels(masked, self.config.cell_size)
        counted = hidden & foreground if self.config.foreground_only else hidden
        counted = counted & present.view(*present.shape, *[1] * len(self.patch_size))
        inside = foreground if self.config.foreground_only else None
        target = normalise_cells(image, self.config.cell_size, inside) if self.config.norm_pix else image
        loss = masked_mse(prediction, target, counted)
        everywhere = masked.all(1)
        counts = [masked.sum(), everywhere.sum(), torch.tensor(masked.numel(), device=masked.device)]
        num_masked, num_everywhere, num_cells = all_reduce_sum(torch.stack(counts).float()).unbind()
        terms = {
            "reconstruction": loss.detach(),
            "masked_fraction": num_masked / num_cells,
            "fully_masked_fraction": num_everywhere / num_cells * self.num_modalities,
        }
        parts = (image, foreground, masked_image.detach(), prediction.detach(), target.detach(), hidden, counted)
        return MethodOutput(loss, terms, [f.detach() for f in features], reconstruction=Reconstruction(*parts))


def with_missing(masked: Tensor, present: Tensor) -> Tensor:
    """A mask (1, C, *G) bool that hides modalities that are not there, too.

    Args:
        masked: (1, C, *G) bool.
        present: (C,) bool.
    """
    return masked | ~present.view(1, -1, *[1] * (masked.ndim - 2))
