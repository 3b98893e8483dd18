"""The three levels of MiM: which parts of a wide crop are looked at, and what of each is hidden.

A wide crop that is reduced (level 1), *octants* of it at full resolution (level 2), and parts of these, enlarged (level 3), all
of the size of the patch. Children come from masked regions of their parent only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from emim_nnunet.masking import cells_to_voxels, hybrid_mask_of, hybrid_scores, top_cells, voxels_to_cells
from emim_nnunet.methods.masked_modelling import MaskedModellingConfig, MaskedPatches, hide
from emim_nnunet.settings.block import require
from emim_nnunet.views.boxes import resize, take_blocks, take_boxes, unravel

MIN_FOREGROUND = 0.1  # children with less of the body are avoided, and not aligned
QUARTER = 4


@dataclass(frozen=True, kw_only=True)
class LevelsConfig(MaskedModellingConfig):
    """Settings of the levels.

    Attributes:
        parent_factor: Size of the wide crop in patches, per axis, 1 or 2: level 1 has one mask cell (an octant) per 2 x 2 x 2.
            Empty = 2 on every axis.
        level1_ratio: Share of octants that is masked, in (0, 1).
        level2_ratio: Share of cells that is masked in a child of level 2, in (0, 1).
        level3_ratio: Share of cells that is masked in a child of level 3, in (0, 1).
        level2_children: Number of children of each wide crop.
        level3_children: Number of children of each child.
        level3_cells: Side of a level-3 child in cells; None = the number nearest to a quarter of the patch; 1 = the paper's.
        level2_hybrid: Use E-MIM's hybrid mask pattern in level 2 (``position_ratio``, ``patch_ratio``, ``modality_mask``)
            instead of masking positions.
    """

    parent_factor: tuple[int, ...] = ()
    level1_ratio: float = 0.5
    level2_ratio: float = 0.6
    level3_ratio: float = 0.5
    level2_children: int = 2
    level3_children: int = 1
    level3_cells: int | None = None
    level2_hybrid: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("level1_ratio", "level2_ratio", "level3_ratio"):
            require(0.0 < getattr(self, name) < 1.0, f"{name} must be in (0, 1), not {getattr(self, name)}")
        for name in ("level2_children", "level3_children", "level3_cells"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} must be at least 1, not {value}")
        require(all(f in (1, 2) for f in self.parent_factor), f"parent_factor must be 1 or 2: {self.parent_factor}")


class Geometry(NamedTuple):
    """How the levels divide a patch.

    Attributes:
        octants: Mask cells of level 1 per axis, which is also the wide crop in patches.
        octant_size: Voxels of an octant per axis, at level 1.
        cells: Mask cells of levels 2 and 3 per axis.
        child_cells: Side of a level-3 child in cells, per axis.
        places: Number of places where a level-3 child can be, per axis.
    """

    octants: tuple[int, ...]
    octant_size: tuple[int, ...]
    cells: tuple[int, ...]
    child_cells: tuple[int, ...]
    places: tuple[int, ...]


def geometry(config: LevelsConfig, patch_size: Sequence[int]) -> Geometry:
    """The geometry of a patch.

    Args:
        config: Settings.
        patch_size: Voxels per axis.

    Raises:
        UserError: The patch cannot be divided like that; the message names the key.
    """
    octants = config.parent_factor or (2,) * len(patch_size)
    require(
        len(octants) == len(patch_size) and prod(octants) > 1,
        f"parent_factor {list(octants)} must have one entry per axis of the patch {list(patch_size)}, and a 2 among them",
    )
    require(
        all(p % f == 0 for p, f in zip(patch_size, octants, strict=True)),
        f"parent_factor {list(octants)} must divide the patch {list(patch_size)}: set 1 on odd axes",
    )
    cells = tuple(p // c for p, c in zip(patch_size, config.cell_size, strict=True))
    wanted = config.level3_cells
    child = tuple(min(g, max(1, int(g / QUARTER + 0.5)) if wanted is None else wanted) for g in cells)
    return Geometry(
        octants=tuple(octants),
        octant_size=tuple(p // f for p, f in zip(patch_size, octants, strict=True)),
        cells=cells,
        child_cells=child,
        places=tuple(g // c for g, c in zip(cells, child, strict=True)),
    )


class Levels:
    """Cuts the patches of the three levels out of wide crops.

    Args:
        config: Settings.
        patch_size: Voxels per axis.
        num_modalities: C.
    """

    def __init__(self, config: LevelsConfig, patch_size: Sequence[int], num_modalities: int) -> None:
        self.config = config
        self.patch_size = tuple(patch_size)
        self.num_modalities = num_modalities
        self.geometry = geometry(config, patch_size)

    @staticmethod
    def check(config: LevelsConfig, patch_size: Sequence[int]) -> None:
        """See :meth:`SSLMethod.check`."""
        shape = geometry(config, patch_size)
        masked = round(config.level1_ratio * prod(shape.octants))
        require(
            1 <= config.level2_children <= masked < prod(shape.octants),
            f"level2_children {config.level2_children} must be at most the number of masked octants, which is {masked} of "
            f"{prod(shape.octants)} (level1_ratio)",
        )
        ratio = config.position_ratio if config.level2_hybrid else config.level2_ratio
        name = "position_ratio" if config.level2_hybrid else "level2_ratio"
        masked, needed = round(ratio * prod(shape.cells)), config.level3_children * prod(shape.child_cells)
        require(
            needed <= masked and config.level3_children <= prod(shape.places),
            f"level3_children {config.level3_children} of {list(shape.child_cells)} cells do not fit into the {masked} cells "
            f"that {name} {ratio} masks",
        )

    def draw(self, generator: torch.Generator, present: Tensor) -> dict[str, Tensor]:
        """Scores in [0, 1) that decide, together with where the body is, what is masked and which children are taken.

        Args:
            generator: CPU generator of the sample.
            present: (C,) bool, the modalities that the sample has.

        Returns:
            ``octants``, ``octant_children`` (1, octants); ``positions`` (1, K2, cells), ``patches`` (1, K2, C, cells),
            ``modality`` (1, K2, C) bool, ``child_places`` (1, K2, places); ``positions_3`` (1, K2 * K3, cells); ``present``
            (1, C) bool.
        """
        config, shape = self.config, self.geometry
        octants, cells = prod(shape.octants), prod(shape.cells)
        second, third = config.level2_children, config.level2_children * config.level3_children
        positions, patches, modality = hybrid_scores(second, self.num_modalities, shape.cells, generator, present)
        return {
            "present": present[None],
            "octants": torch.rand((1, octants), generator=generator),
            "octant_children": torch.rand((1, octants), generator=generator),
            "positions": positions[None],
            "patches": patches[None],
            "modality": modality[None],
            "child_places": torch.rand((1, second, prod(shape.places)), generator=generator),
            "positions_3": torch.rand((1, third, cells), generator=generator),
        }

    def first(self, image: Tensor, foreground: Tensor, draws: dict[str, Tensor]) -> tuple[MaskedPatches, Tensor]:
        """The reduced wide crop, some of its octants masked; and which of these have children, (B, K2) octant numbers."""
        config, shape = self.config, self.geometry
        masked = top_cells(draws["octants"], round(config.level1_ratio * prod(shape.octants)))
        body = voxels_to_cells(foreground.float(), shape.octants).flatten(1) >= MIN_FOREGROUND
        preference = draws["octant_children"] + 2 * masked + 1 * body
        children = preference.topk(config.level2_children, dim=1).indices
        reduced = voxels_to_cells(image, self.patch_size)
        inside = voxels_to_cells(foreground.float(), self.patch_size) >= 0.5
        cells = masked.view(-1, 1, *shape.octants)
        return hide(reduced, inside, cells, draws["present"], shape.octant_size), children

    def second(
        self, image: Tensor, foreground: Tensor, octants: Tensor, draws: dict[str, Tensor]
    ) -> tuple[MaskedPatches, Tensor]:
        """The chosen octants at full resolution, masked; and where their own children are, (B * K2, K3) place numbers."""
        config, shape = self.config, self.geometry
        detail, inside = (take_blocks(t, shape.octants, octants) for t in (image, foreground))
        span = [n * c * s for n, c, s in zip(shape.places, shape.child_cells, config.cell_size, strict=True)]
        covered = inside.float()
        for axis, length in enumerate(span, start=2):
            covered = covered.narrow(axis, 0, length)
        body = voxels_to_cells(covered, shape.places).flatten(1) >= MIN_FOREGROUND
        places = (draws["child_places"].flatten(0, 1) + 1 * body).topk(config.level3_children, dim=1).indices
        raised = self._cells_of(places).float()
        positions, patches = draws["positions"].flatten(0, 1) + raised, draws["patches"].flatten(0, 1)
        if config.level2_hybrid:
            ratios = {"position_ratio": config.position_ratio, "patch_ratio": config.patch_ratio}
            modality = draws["modality"].flatten(0, 1)
            masked = hybrid_mask_of(
                positions, patches, modality, shape.cells, **ratios, modality_mask=config.modality_mask
            )
        else:
            masked = top_cells(positions, round(config.level2_ratio * prod(shape.cells))).view(-1, 1, *shape.cells)
        present = draws["present"].repeat_interleave(config.level2_children, 0)
        return hide(detail, inside, masked, present, config.cell_size), places

    def third(self, detail: MaskedPatches, places: Tensor, draws: dict[str, Tensor]) -> MaskedPatches:
        """The chosen parts of the children of level 2, enlarged to the patch and masked."""
        config, shape = self.config, self.geometry
        size = [n * s for n, s in zip(shape.child_cells, config.cell_size, strict=True)]
        lower = (unravel(places, shape.places) * places.new_tensor(size)).flatten(0, 1)
        parents = [t.repeat_interleave(config.level3_children, 0) for t in (detail.image, detail.foreground)]
        image, inside = (take_boxes(parent, lower, size) for parent in parents)
        image = resize(image, self.patch_size)
        inside = resize(inside.float(), self.patch_size) >= 0.5
        cells = round(config.level3_ratio * prod(shape.cells))
        masked = top_cells(draws["positions_3"].flatten(0, 1), cells).view(-1, 1, *shape.cells)
        present = draws["present"].repeat_interleave(config.level2_children * config.level3_children, 0)
        return hide(image, inside, masked, present, config.cell_size)

    def _cells_of(self, places: Tensor) -> Tensor:
        """(N, cells) bool: the mask cells that level-3 children at these places, (N, K3), consist of."""
        shape = self.geometry
        taken = torch.zeros((len(places), prod(shape.places)), dtype=torch.bool, device=places.device)
        taken = taken.scatter(1, places, True).view(-1, 1, *shape.places)
        taken = cells_to_voxels(taken, shape.child_cells)
        rest = [g - t for g, t in zip(shape.cells, taken.shape[2:], strict=True)]
        return F.pad(taken, [n for r in reversed(rest) for n in (0, r)]).flatten(1)


def has_body(patches: MaskedPatches) -> Tensor:
    """(N,) float32, 1 = enough of the body is in the patch."""
    return (patches.foreground.float().flatten(1).mean(1) >= MIN_FOREGROUND).float()
