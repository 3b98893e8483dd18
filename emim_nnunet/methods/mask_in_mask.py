"""MiM (arXiv 2404.15580): mask in mask. The masked part of a volume is looked at again, enlarged and masked in its turn.

Three levels, all fed to the same encoder at the network's patch size: a wide crop that is reduced (level 1), *octants* of it
at full resolution (level 2), and parts of these, enlarged (level 3). Children come from masked regions of their parent only.
Every level reconstructs; adjacent levels are aligned, the child with what its parent imagines in the child's place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emim_nnunet.losses import cosine_alignment, info_nce_rows, masked_mse, normalise_cells
from emim_nnunet.masking import cells_to_voxels, hybrid_mask_of, hybrid_scores, top_cells, voxels_to_cells
from emim_nnunet.methods.base import MethodOutput, Reconstruction
from emim_nnunet.methods.mim import MIM, MIMConfig
from emim_nnunet.networks import MLP, PlannedEncoder, in_parts, visible_only
from emim_nnunet.settings.block import require
from emim_nnunet.views.boxes import adaptive_pool, resize, take_blocks, take_boxes, unravel

ALIGNMENTS = ("cosine", "infonce")
MIN_FOREGROUND = 0.1  # children with less of the body are avoided, and not aligned
QUARTER = 4


@dataclass(frozen=True, kw_only=True)
class MaskInMaskConfig(MIMConfig):
    """Settings of MiM; ``cell_size``, ``fill``, ``foreground_only`` as in :class:`MIMConfig`, and the following.

    Attributes:
        norm_pix: Standardise the target in each mask cell, as the authors do; with a floor, see ``norm_pix_floor``.
        norm_pix_floor: Least variance of a cell, as a share of the variance of its patch.
        parent_factor: Size of the wide crop in patches, per axis, 1 or 2: level 1 has one mask cell (an octant) per 2 x 2 x 2.
            Empty = 2 on every axis.
        level1_ratio: Share of octants that is masked.
        level2_ratio: Share of cells that is masked in a child of level 2.
        level3_ratio: Likewise of level 3.
        level2_children: Children of each wide crop.
        level3_children: Children of each child.
        level3_cells: Side of a level-3 child in cells; None = the number nearest to a quarter of the patch; 1 = the paper's.
        level2_hybrid: Use E-MIM's hybrid mask pattern in level 2 (``position_ratio``, ``patch_ratio``, ``modality_mask``)
            instead of masking positions.
        level_weights: Of the three reconstruction losses.
        alignment: ``cosine`` (2 - 2 cos), or ``infonce`` against the other children of the batch.
        alignment_weight: Of the mean of both alignment losses; 0 leaves them out.
        temperature: Of ``infonce``.
        masked_convolution: Keep masked positions empty between the stages, see :func:`emim_nnunet.networks.visible_only`.
        patches_at_once: At most this many patches are in memory at once; the others are computed again in the backward pass.
            None = all.
    """

    without_effect: ClassVar[tuple[str, ...]] = ("mask_ratio",)
    norm_pix: bool = True
    norm_pix_floor: float = 0.01
    parent_factor: tuple[int, ...] = ()
    level1_ratio: float = 0.5
    level2_ratio: float = 0.6
    level3_ratio: float = 0.5
    level2_children: int = 2
    level3_children: int = 1
    level3_cells: int | None = None
    level2_hybrid: bool = False
    level_weights: tuple[float, ...] = (1.0, 1.0, 1.0)
    alignment: str = "cosine"
    alignment_weight: float = 0.1
    temperature: float = 0.2
    masked_convolution: bool = False
    patches_at_once: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("level1_ratio", "level2_ratio", "level3_ratio"):
            require(0.0 < getattr(self, name) < 1.0, f"{name} must be in (0, 1), not {getattr(self, name)}")
        for name in ("level2_children", "level3_children", "level3_cells", "patches_at_once"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} must be at least 1, not {value}")
        require(all(f in (1, 2) for f in self.parent_factor), f"parent_factor must be 1 or 2: {self.parent_factor}")
        require(
            len(self.level_weights) == 3 and min(self.level_weights) > 0,
            f"level_weights must be three positive numbers, not {list(self.level_weights)}",
        )
        require(self.alignment in ALIGNMENTS, f"alignment must be one of {', '.join(ALIGNMENTS)}")
        require(self.alignment_weight >= 0, f"alignment_weight must be at least 0, not {self.alignment_weight}")
        require(self.temperature > 0, f"temperature must be positive, not {self.temperature}")
        require(0 <= self.norm_pix_floor <= 1, f"norm_pix_floor must be in [0, 1], not {self.norm_pix_floor}")


class Geometry(NamedTuple):
    """How the levels divide a patch.

    Attributes:
        octants: Mask cells of level 1 per axis, which is also the wide crop in patches.
        octant_size: Voxels of an octant per axis, at level 1.
        cells: Mask cells of levels 2 and 3 per axis.
        child_cells: Side of a level-3 child in cells.
        places: Where it can be, per axis.
    """

    octants: tuple[int, ...]
    octant_size: tuple[int, ...]
    cells: tuple[int, ...]
    child_cells: tuple[int, ...]
    places: tuple[int, ...]


def geometry(config: MaskInMaskConfig, patch_size: Sequence[int]) -> Geometry:
    """The geometry of a patch.

    Args:
        config: Settings.
        patch_size: Voxels per axis.

    Raises:
        UserError: It does not come out even; names the key.
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


class Level(NamedTuple):
    """The patches of one level.

    Attributes:
        image: (N, C, *P).
        foreground: (N, 1, *P) bool.
        hidden: (N, C, *P) bool, True = masked.
        present: (N, C, 1, ...) bool, modalities that are there; the others are hidden everywhere and do not count.
        cell_size: Voxels of a mask cell per axis.
    """

    image: Tensor
    foreground: Tensor
    hidden: Tensor
    present: Tensor
    cell_size: tuple[int, ...]

    @property
    def has_body(self) -> Tensor:
        """(N,) float32, 1 = enough of the body is in the patch."""
        return (_shares(self.foreground) >= MIN_FOREGROUND).float()


class MaskInMask(MIM[MaskInMaskConfig]):
    """MiM on a planned encoder. Arguments as in :class:`MIM`."""

    config_class: ClassVar[type] = MaskInMaskConfig
    paper: ClassVar[str] = "MiM: arXiv 2404.15580"

    def __init__(
        self, encoder: PlannedEncoder, num_modalities: int, patch_size: Sequence[int], config: MaskInMaskConfig
    ) -> None:
        super().__init__(encoder, num_modalities, patch_size, config)
        self.geometry = geometry(config, patch_size)
        width = self.decoder.width
        pairs = ("12", "23") if config.alignment_weight > 0 else ()
        self.parent_heads = nn.ModuleDict({pair: MLP(width, 2 * width, width) for pair in pairs})
        self.child_heads = nn.ModuleDict({pair: MLP(width, 2 * width, width) for pair in pairs})

    @classmethod
    def check(cls, config: MaskInMaskConfig, patch_size: Sequence[int], strides: Sequence[int | Sequence[int]]) -> None:
        """See :meth:`SSLMethod.check`."""
        super().check(config, patch_size, strides)
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

    @classmethod
    def crop_size(cls, config: MaskInMaskConfig, patch_size: Sequence[int]) -> tuple[int, ...]:
        """The wide crop: ``parent_factor`` patches."""
        return tuple(p * f for p, f in zip(patch_size, geometry(config, patch_size).octants, strict=True))

    def draw(self, generator: torch.Generator, present: Tensor | None = None) -> dict[str, Tensor]:
        """Scores in [0, 1) that decide, together with where the body is, what is masked and which children are taken.

        ``octants``, ``octant_children`` (1, octants); ``positions`` (1, K2, cells), ``patches`` (1, K2, C, cells), ``modality``
        (1, K2, C) bool, ``child_places`` (1, K2, places); ``positions_3`` (1, K2 * K3, cells); ``present`` (1, C) bool.
        """
        present = self.all_or(present)
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

    def forward(self, image: Tensor, foreground: Tensor, draws: dict[str, Tensor]) -> MethodOutput:
        """Reconstruction losses of the three levels + weight * mean alignment of levels 1-2 and 2-3.

        Args and return value as in :class:`SSLMethod`; the wide crop is ``image``.
        """
        wide, octants = self.first_level(image, foreground, draws)
        detail, places = self.second_level(image, foreground, octants, draws)
        close = self.third_level(detail, places, draws)
        levels = (wide, detail, close)
        decoded, masked_image, prediction = self._encode_decode(levels)
        losses = [self._level_loss(*parts) for parts in zip(levels, prediction, strict=True)]
        weighted = [weight * part for weight, part in zip(self.config.level_weights, losses, strict=True)]
        loss = sum(weighted[1:], start=weighted[0])
        terms = {f"reconstruction_{number}": part.detach() for number, part in enumerate(losses, 1)}
        if self.config.alignment_weight > 0:
            aligned = self._alignment(decoded, octants, places, detail, close)
            loss = loss + self.config.alignment_weight * torch.stack(list(aligned.values())).mean()
            terms |= {key: value.detach() for key, value in aligned.items()}
        first_child = slice(None, None, self.config.level2_children)
        shown = Reconstruction(
            image=detail.image[first_child],
            foreground=detail.foreground[first_child],
            masked_image=masked_image[1][first_child].detach(),
            prediction=prediction[1][first_child].detach(),
            target=self._target(detail)[first_child],
            hidden=detail.hidden[first_child],
            counted=self._counted(detail)[first_child],
        )
        return MethodOutput(loss, terms, reconstruction=shown)

    # ------------------------------------------------------------------------------------------------- the levels

    def first_level(self, image: Tensor, foreground: Tensor, draws: dict[str, Tensor]) -> tuple[Level, Tensor]:
        """The reduced wide crop, some of its octants masked; and which of these have children, (B, K2) octant numbers."""
        config, shape = self.config, self.geometry
        masked = top_cells(draws["octants"], round(config.level1_ratio * prod(shape.octants)))
        body = voxels_to_cells(foreground.float(), shape.octants).flatten(1) >= MIN_FOREGROUND
        preference = draws["octant_children"] + 2 * masked + 1 * body
        children = preference.topk(config.level2_children, dim=1).indices
        hidden = cells_to_voxels(masked.view(-1, 1, *shape.octants), shape.octant_size)
        reduced = voxels_to_cells(image, self.patch_size)
        inside = voxels_to_cells(foreground.float(), self.patch_size) >= 0.5
        return _level(reduced, inside, hidden, draws["present"], shape.octant_size), children

    def second_level(
        self, image: Tensor, foreground: Tensor, octants: Tensor, draws: dict[str, Tensor]
    ) -> tuple[Level, Tensor]:
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
        hidden = cells_to_voxels(masked, config.cell_size)
        present = draws["present"].repeat_interleave(config.level2_children, 0)
        return _level(detail, inside, hidden, present, config.cell_size), places

    def third_level(self, detail: Level, places: Tensor, draws: dict[str, Tensor]) -> Level:
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
        hidden = cells_to_voxels(masked, config.cell_size)
        present = draws["present"].repeat_interleave(config.level2_children * config.level3_children, 0)
        return _level(image, inside, hidden, present, config.cell_size)

    def _cells_of(self, places: Tensor) -> Tensor:
        """(N, cells) bool: the mask cells that level-3 children at these places, (N, K3), consist of."""
        shape = self.geometry
        taken = torch.zeros((len(places), prod(shape.places)), dtype=torch.bool, device=places.device)
        taken = taken.scatter(1, places, True).view(-1, 1, *shape.places)
        taken = cells_to_voxels(taken, shape.child_cells)
        rest = [g - t for g, t in zip(shape.cells, taken.shape[2:], strict=True)]
        return F.pad(taken, [n for r in reversed(rest) for n in (0, r)]).flatten(1)

    # ------------------------------------------------------------------------------------------------- network and losses

    def _encode_decode(self, levels: Sequence[Level]) -> tuple[tuple[Tensor, ...], ...]:
        """Decoded features, masked images and predictions, each per level."""
        hidden = torch.cat([level.hidden for level in levels])
        masked_image = self.fill_in(torch.cat([level.image for level in levels]), hidden)
        decoded, prediction = in_parts(self._run_network, self.config.patches_at_once, masked_image, hidden)
        sizes = [len(level.image) for level in levels]
        return decoded.split(sizes), masked_image.split(sizes), prediction.split(sizes)

    def _run_network(self, masked_image: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.masked_convolution:
            with visible_only(self.encoder, ~hidden.all(1, keepdim=True)):
                features = self.encoder(masked_image)
        else:
            features = self.encoder(masked_image)
        decoded = self.decoder.decode(features)
        return decoded, self.decoder.predict(decoded)

    def _target(self, level: Level) -> Tensor:
        if not self.config.norm_pix:
            return level.image
        inside = level.foreground if self.config.foreground_only else None
        return normalise_cells(level.image, level.cell_size, inside, floor=self.config.norm_pix_floor)

    def _counted(self, level: Level) -> Tensor:
        counted = level.hidden & level.present
        return counted & level.foreground if self.config.foreground_only else counted

    def _level_loss(self, level: Level, prediction: Tensor) -> Tensor:
        return masked_mse(prediction, self._target(level), self._counted(level))

    def _alignment(
        self, decoded: Sequence[Tensor], octants: Tensor, places: Tensor, detail: Level, close: Level
    ) -> dict[str, Tensor]:
        """Each child's features against those that its parent decodes in the child's place; no gradient into the parent's."""
        shape = self.geometry
        imagined = adaptive_pool(decoded[0].float(), shape.octants).flatten(2)
        cells = adaptive_pool(decoded[1].float(), shape.cells)
        for axis, (count, side) in enumerate(zip(shape.places, shape.child_cells, strict=True), start=2):
            cells = cells.narrow(axis, 0, count * side)
        imagined_close = voxels_to_cells(cells, shape.places).flatten(2)
        pairs = {
            "12": (_pick(imagined, octants), decoded[1], detail.has_body),
            "23": (_pick(imagined_close, places), decoded[2], close.has_body),
        }
        losses = {}
        for pair, (parent, child, weight) in pairs.items():
            a = self.parent_heads[pair](parent.detach())
            b = self.child_heads[pair](child.float().flatten(2).mean(2))
            if self.config.alignment == "cosine":
                losses[f"alignment_{pair}"] = cosine_alignment(a, b, weight)
            else:
                query, key = (F.normalize(x.float(), dim=1) for x in (b, a))
                losses[f"alignment_{pair}"] = info_nce_rows(query, key, weight, self.config.temperature)
        return losses


def _level(image: Tensor, foreground: Tensor, hidden: Tensor, present: Tensor, cell_size: tuple[int, ...]) -> Level:
    """A level, modalities that are not there hidden."""
    present = present.view(*present.shape, *[1] * (image.ndim - 2))
    return Level(image, foreground, hidden | ~present, present, cell_size)


def _shares(foreground: Tensor) -> Tensor:
    """(N,) share of the body in each patch."""
    return foreground.float().flatten(1).mean(1)


def _pick(vectors: Tensor, numbers: Tensor) -> Tensor:
    """(B * K, D): of (B, D, N) the vectors that (B, K) numbers name."""
    index = numbers[:, None].expand(-1, vectors.shape[1], -1)
    return vectors.gather(2, index).transpose(1, 2).flatten(0, 1)
