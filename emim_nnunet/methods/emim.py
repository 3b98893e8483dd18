"""E-MIM (arXiv 2407.10377): masked image modelling + hybrid mask pattern (HMP) + pyramid Barlow twins (PBT).

HMP works against *complete collapse* (the output ignores the input), PBT against *dimensional collapse* (features span few
dimensions): Barlow twins between the masked and the original view at several encoder stages, with cells as samples because
a 3D batch of two has no batch statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor, nn

from emim_nnunet.losses import barlow_twins_loss
from emim_nnunet.masking import choose_rows, foreground_cells, grid_size, hybrid_mask, take_rows, voxels_to_cells
from emim_nnunet.methods.base import MethodOutput, SSLMethod
from emim_nnunet.methods.masked_modelling import MaskedModelling, MaskedModellingConfig, with_missing
from emim_nnunet.networks import PlannedEncoder, Projector, first_stages, stage_grids
from emim_nnunet.settings.block import require

SECOND_VIEWS = ("original", "masked")


@dataclass(frozen=True, kw_only=True)
class EMIMConfig(MaskedModellingConfig):
    """Settings of E-MIM.

    Attributes:
        fill: A learned number per modality by default: in z-scored, skull-stripped data 0 is the background, so filling
            with 0 would hide what is masked.
        barlow_weight: Weight of the PBT term; 0 leaves it (and its cost) out.
        barlow_kappa: Weight of off-diagonal correlations, see :func:`emim_nnunet.losses.barlow_twins_loss`.
        pyramid_levels: Encoder stages (from 0) on which PBT acts.
        projector_widths: Columns of each level's projector; 0 applies Barlow twins to the features themselves.
        cells_per_sample: At most this many foreground cells of each sample are rows of PBT.
        second_view: PBT compares the masked patch with the ``original`` one, or with a second, independently ``masked`` view,
            which is reconstructed as well.
        original_view_gradient: Whether gradients flow through the original view.
    """

    without_effect: ClassVar[tuple[str, ...]] = ("mask_ratio",)
    fill: str = "learned"
    barlow_weight: float = 0.1
    barlow_kappa: float = 20.0
    pyramid_levels: tuple[int, ...] = ()
    projector_widths: tuple[int, ...] = ()
    cells_per_sample: int = 512
    second_view: str = "original"
    original_view_gradient: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.barlow_weight >= 0, f"barlow_weight must be at least 0, not {self.barlow_weight}")
        require(self.barlow_kappa > 0, f"barlow_kappa must be positive, not {self.barlow_kappa}")
        require(self.cells_per_sample >= 1, f"cells_per_sample must be at least 1, not {self.cells_per_sample}")
        require(self.second_view in SECOND_VIEWS, f"second_view must be one of {', '.join(SECOND_VIEWS)}")
        require(
            self.barlow_weight == 0 or len(self.pyramid_levels) > 0,
            "pyramid_levels must name at least one encoder stage, or barlow_weight be 0",
        )
        require(
            len(self.projector_widths) == len(self.pyramid_levels),
            f"projector_widths {list(self.projector_widths)} must have one entry per pyramid level "
            f"{list(self.pyramid_levels)}",
        )
        require(all(w == 0 or w >= 2 for w in self.projector_widths), "projector_widths must be 0 or at least 2")


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
        self.modelling = MaskedModelling(config)
        self.decoder, self.fill = self.modelling.new_weights(encoder, num_modalities)
        self.levels = config.pyramid_levels if config.barlow_weight > 0 else ()
        grids = stage_grids(encoder.strides, patch_size)
        self.level_grids = [tuple(map(min, grids[level], self.grid)) for level in self.levels]
        self.projectors = nn.ModuleList(
            Projector(encoder.output_channels[level], width) if width else PassThrough()
            for level, width in zip(self.levels, config.projector_widths, strict=False)
        )

    @classmethod
    def check(cls, config: EMIMConfig, patch_size: Sequence[int], strides: Sequence[int | Sequence[int]]) -> None:
        """See :meth:`SSLMethod.check`."""
        MaskedModelling.check(config, patch_size, strides)
        levels, cells = config.pyramid_levels, grid_size(patch_size, config.cell_size)
        require(
            len(set(levels)) == len(levels) and all(0 <= level < len(strides) for level in levels),
            f"pyramid_levels {list(levels)} must be different stages of the encoder, which has {len(strides)} "
            f"(0 to {len(strides) - 1})",
        )
        for level, grid in enumerate(stage_grids(strides, patch_size)):
            fits = all(max(g, c) % min(g, c) == 0 for g, c in zip(grid, cells, strict=True))
            require(
                fits or level not in levels,
                f"cell_size {list(config.cell_size)} does not line up with pyramid level {level}, whose grid is "
                f"{list(grid)} in a patch of {list(patch_size)}",
            )

    def draw(self, generator: torch.Generator, present: Tensor | None = None) -> dict[str, Tensor]:
        """``masked`` (1, C, *G) bool, ``masked_second`` if asked for, a score per cell and level that picks the rows, and
        ``present`` (1, C) bool.
        """
        present = self.all_or(present)
        draws = {"masked": self._hybrid_mask(generator, present), "present": present[None]}
        if self.config.second_view == "masked":
            draws["masked_second"] = self._hybrid_mask(generator, present)
        for level, grid in zip(self.levels, self.level_grids, strict=True):
            draws[f"scores_{level}"] = torch.rand((1, prod(grid)), generator=generator)
        return draws

    def _hybrid_mask(self, generator: torch.Generator, present: Tensor) -> Tensor:
        config = self.config
        masked = hybrid_mask(
            1,
            self.num_modalities,
            self.grid,
            position_ratio=config.position_ratio,
            patch_ratio=config.patch_ratio,
            modality_mask=config.modality_mask,
            generator=generator,
            present=present,
        )
        return with_missing(masked, present)

    def forward(self, image: Tensor, foreground: Tensor, draws: dict[str, Tensor]) -> MethodOutput:
        """Reconstruction loss of the masked view + weight * mean over levels of Barlow twins with the second view.

        Arguments and return value are those of :class:`SSLMethod`.
        """
        original_features = (
            self._encode_original(image) if self.levels and self.config.second_view == "original" else None
        )
        masked, present = draws["masked"], draws["present"]
        weights = (self.encoder, self.decoder, self.fill)
        output, features = self.modelling.reconstruct(image, foreground, masked, present, *weights)
        if not self.levels:
            return output
        visible = ~masked.all(1, keepdim=True)
        if original_features is None:
            masked_second = draws["masked_second"]
            second, second_features = self.modelling.reconstruct(image, foreground, masked_second, present, *weights)
            output = output._replace(loss=0.5 * (output.loss + second.loss))
            visible = visible & ~masked_second.all(1, keepdim=True)
        else:
            second_features = original_features
            if not self.training:
                output = output._replace(original_features=[f.detach() for f in original_features])
        barlow = self.pyramid_barlow_twins(features, second_features, visible, foreground, draws)
        total = torch.stack(list(barlow.values())).mean()
        terms = output.terms | {"barlow": total.detach()} | {k: v.detach() for k, v in barlow.items()}
        return output._replace(loss=output.loss + self.config.barlow_weight * total, terms=terms)

    def _encode_original(self, image: Tensor) -> list[Tensor]:
        """Stage outputs for the unmasked image, in training up to the deepest pyramid level.

        Computed before the masked view: without a gradient it then never adds to what that view keeps for its own.
        """
        count = max(self.levels) + 1 if self.training else len(self.encoder.strides)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.original_view_gradient):
            return first_stages(self.encoder, image, count)

    def pyramid_barlow_twins(
        self,
        features_a: Sequence[Tensor],
        features_b: Sequence[Tensor],
        visible: Tensor,
        foreground: Tensor,
        draws: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Barlow twins at each level, over cells that are foreground and visible in the masked view(s).

        Args:
            features_a: Stage outputs of the masked view.
            features_b: Stage outputs of the other view.
            visible: (B, 1, *G) bool, cells with at least one visible modality.
            foreground: (B, 1, *P) bool.
            draws: Holds ``scores_LEVEL``, (B, cells of the level).

        Returns:
            A () loss per level.
        """
        usable = (visible & foreground_cells(foreground, self.grid)).float()
        losses = {}
        for level, grid, projector in zip(self.levels, self.level_grids, self.projectors, strict=True):
            usable_here = (voxels_to_cells(usable, grid) > 0).flatten(1)
            chosen, weight = choose_rows(usable_here, draws[f"scores_{level}"], self.config.cells_per_sample)
            rows = [take_rows(voxels_to_cells(f[level], grid), chosen) for f in (features_a, features_b)]
            z_a, z_b = (projector(r, weight) for r in rows)
            losses[f"barlow_stage{level}"] = barlow_twins_loss(z_a, z_b, weight, kappa=self.config.barlow_kappa)
        return losses


class PassThrough(nn.Module):
    """Projector of width 0: the rows themselves."""

    def forward(self, rows: Tensor, weight: Tensor) -> Tensor:
        """Return ``rows``."""
        return rows
