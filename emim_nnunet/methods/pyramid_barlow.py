"""Pyramid Barlow twins (E-MIM, arXiv 2407.10377), a part of methods: two views of a patch at several encoder stages.

Cells are the samples because a 3D batch of two has no batch statistics. A method *has* a :class:`PyramidBarlowTwins`; the
projectors are the method's own, as ``projectors``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from emim_nnunet.losses import barlow_twins_loss
from emim_nnunet.masking import choose_rows, foreground_cells, grid_size, take_rows, voxels_to_cells
from emim_nnunet.methods.base import MethodOutput
from emim_nnunet.methods.masked_modelling import MaskedViewConfig
from emim_nnunet.networks import PlannedEncoder, Projector, stage_grids
from emim_nnunet.settings.block import require


@dataclass(frozen=True, kw_only=True)
class PyramidBarlowConfig(MaskedViewConfig):
    """Settings of a masked view with pyramid Barlow twins.

    Attributes:
        barlow_weight: Weight of the PBT term; 0 leaves it (and its cost) out.
        barlow_kappa: Weight of off-diagonal correlations, see :func:`emim_nnunet.losses.barlow_twins_loss`.
        barlow_masked_cells: Cells that are masked in all modalities are rows of PBT too, which then asks for context; by
            default it takes only what is visible in part.
        pyramid_levels: Encoder stages (from 0) on which PBT acts.
        projector_widths: Columns of each level's projector; 0 applies Barlow twins to the features themselves.
        cells_per_sample: At most this many foreground cells of each sample are rows of PBT.
    """

    barlow_weight: float = 0.1
    barlow_kappa: float = 20.0
    barlow_masked_cells: bool = False
    pyramid_levels: tuple[int, ...] = ()
    projector_widths: tuple[int, ...] = ()
    cells_per_sample: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.barlow_weight >= 0, f"barlow_weight must be at least 0, not {self.barlow_weight}")
        require(self.barlow_kappa > 0, f"barlow_kappa must be positive, not {self.barlow_kappa}")
        require(self.cells_per_sample >= 1, f"cells_per_sample must be at least 1, not {self.cells_per_sample}")
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


class PyramidBarlowTwins:
    """Barlow twins (arXiv 2103.03230) between two views at the pyramid's levels.

    Args:
        config: Settings.
        patch_size: Voxels per axis.
        strides: Stride of each encoder stage.

    Attributes:
        levels: Encoder stages on which it acts; empty where its weight is 0.
        grids: The rows' cells per axis at each level: the mask's grid, or the level's own where that is coarser.
    """

    def __init__(
        self, config: PyramidBarlowConfig, patch_size: Sequence[int], strides: Sequence[int | Sequence[int]]
    ) -> None:
        self.config = config
        self.levels = config.pyramid_levels if config.barlow_weight > 0 else ()
        self.cells = grid_size(patch_size, config.cell_size)
        grids = stage_grids(strides, patch_size)
        self.grids = [tuple(map(min, grids[level], self.cells)) for level in self.levels]

    @staticmethod
    def check(config: PyramidBarlowConfig, patch_size: Sequence[int], strides: Sequence[int | Sequence[int]]) -> None:
        """See :meth:`SSLMethod.check`."""
        levels = config.pyramid_levels
        require(
            len(set(levels)) == len(levels) and all(0 <= level < len(strides) for level in levels),
            f"pyramid_levels {list(levels)} must be different stages of the encoder, which has {len(strides)} "
            f"(0 to {len(strides) - 1})",
        )
        for level in levels:
            require_line_up(config.cell_size, patch_size, strides, level, "pyramid level")

    def new_projectors(self, encoder: PlannedEncoder) -> nn.ModuleList:
        """A projector for each level."""
        return nn.ModuleList(
            Projector(encoder.output_channels[level], width) if width else PassThrough()
            for level, width in zip(self.levels, self.config.projector_widths, strict=False)
        )

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """``scores_LEVEL`` (1, cells of the level) of one sample: a random number per cell, which picks the rows."""
        return {
            f"scores_{level}": torch.rand((1, prod(grid)), generator=generator)
            for level, grid in zip(self.levels, self.grids, strict=True)
        }

    def losses(
        self,
        features_a: Sequence[Tensor],
        features_b: Sequence[Tensor],
        visible: Tensor,
        foreground: Tensor,
        draws: dict[str, Tensor],
        projectors: nn.ModuleList,
    ) -> dict[str, Tensor]:
        """Barlow twins at each level, over cells that are foreground and, by default, visible in the masked view(s).

        Args:
            features_a: Stage outputs of the masked view.
            features_b: Stage outputs of the other view.
            visible: (B, 1, *G) bool, cells with at least one visible modality.
            foreground: (B, 1, *P) bool.
            draws: Holds what :meth:`draw` returned, (B, cells of the level).
            projectors: What :meth:`new_projectors` returned.

        Returns:
            A () loss per level.
        """
        usable = foreground_cells(foreground, self.cells)
        if not self.config.barlow_masked_cells:
            usable = usable & visible
        usable = usable.float()
        losses = {}
        for level, grid, projector in zip(self.levels, self.grids, projectors, strict=True):
            usable_here = (voxels_to_cells(usable, grid) > 0).flatten(1)
            chosen, weight = choose_rows(usable_here, draws[f"scores_{level}"], self.config.cells_per_sample)
            rows = [take_rows(voxels_to_cells(f[level], grid), chosen) for f in (features_a, features_b)]
            z_a, z_b = (projector(r, weight) for r in rows)
            losses[f"barlow_stage{level}"] = barlow_twins_loss(z_a, z_b, weight, kappa=self.config.barlow_kappa)
        return losses

    def added_to(self, output: MethodOutput, losses: dict[str, Tensor]) -> MethodOutput:
        """Add the weighted mean over levels to the loss of an output.

        Args:
            output: What a method put out.
            losses: What :meth:`losses` returned.

        Returns:
            The output with that loss, and with the mean and each level among its terms.
        """
        total = torch.stack(list(losses.values())).mean()
        terms = output.terms | {"barlow": total.detach()} | {k: v.detach() for k, v in losses.items()}
        return output._replace(loss=output.loss + self.config.barlow_weight * total, terms=terms)


class PassThrough(nn.Module):
    """Projector of width 0: the rows themselves."""

    def forward(self, rows: Tensor, weight: Tensor) -> Tensor:
        """Return ``rows``."""
        return rows


def require_line_up(
    cell_size: Sequence[int],
    patch_size: Sequence[int],
    strides: Sequence[int | Sequence[int]],
    stage: int,
    what: str,
) -> None:
    """Refuse an encoder stage whose positions neither divide the mask's cells nor consist of whole ones.

    Args:
        cell_size: Voxels of a cell per axis.
        patch_size: Voxels per axis.
        strides: Stride of each encoder stage.
        stage: The number of the stage, from 0.
        what: What the stage is for the method, for the message.

    Raises:
        UserError: They do not line up.
    """
    cells, grid = grid_size(patch_size, cell_size), stage_grids(strides, patch_size)[stage]
    require(
        all(max(g, c) % min(g, c) == 0 for g, c in zip(grid, cells, strict=True)),
        f"cell_size {list(cell_size)} does not line up with {what} {stage}, whose grid is {list(grid)} in a patch of "
        f"{list(patch_size)}",
    )
