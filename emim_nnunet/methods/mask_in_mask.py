"""MiM (arXiv 2404.15580): mask in mask. The masked part of a volume is looked at again, enlarged and masked in its turn.

Three levels (:mod:`.mask_in_mask_levels`) are fed to the same encoder at the network's patch size. Every level reconstructs;
adjacent levels are aligned, the child with what its parent imagines in the child's place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emim_nnunet.losses import cosine_alignment, info_nce_rows
from emim_nnunet.masking import voxels_to_cells
from emim_nnunet.methods.base import MethodOutput, Reconstruction, SSLMethod
from emim_nnunet.methods.mask_in_mask_levels import MIN_FOREGROUND, Levels, LevelsConfig, geometry
from emim_nnunet.methods.masked_modelling import MaskedModelling, MaskedPatches, fill_in
from emim_nnunet.networks import MLP, PlannedEncoder, PrimusEncoder, in_parts, visible_only
from emim_nnunet.settings.block import require
from emim_nnunet.views.boxes import adaptive_pool, take_blocks

ALIGNMENTS = ("cosine", "infonce")


@dataclass(frozen=True, kw_only=True)
class MaskInMaskConfig(LevelsConfig):
    """Settings of MiM.

    Attributes:
        norm_pix: Standardise the target in each mask cell, as the authors do; with a floor, see ``norm_pix_floor``.
        norm_pix_floor: Least variance of a cell, as a share of the variance of its patch, in [0, 1].
        level_weights: Weights of the three reconstruction losses.
        alignment: ``infonce`` against the other regions of the batch, or ``cosine`` (2 - 2 cos), whose loss fell to
            nothing in our runs before anything was reconstructed.
        alignment_regions: Regions per axis of a child that are aligned one by one. 1 aligns the averages over whole children,
            which instance normalisation makes almost constant (for stages that were begun with it).
        alignment_weight: Weight of the mean of both alignment losses; 0 leaves them out.
        temperature: Divides the similarities of ``infonce``.
        masked_convolution: Keep masked positions empty between the stages, see :func:`emim_nnunet.networks.visible_only`; a
            Primus always takes visible tokens only.
        patches_at_once: At most this many patches are in memory at once; the others are computed again in the backward pass.
            None = all.
    """

    without_effect: ClassVar[tuple[str, ...]] = ("mask_ratio",)
    formerly: ClassVar[dict[str, Any]] = {"alignment": "cosine", "alignment_regions": 1}
    norm_pix: bool = True
    norm_pix_floor: float = 0.01
    level_weights: tuple[float, ...] = (1.0, 1.0, 1.0)
    alignment: str = "infonce"
    alignment_regions: int = 2
    alignment_weight: float = 0.1
    temperature: float = 0.2
    masked_convolution: bool = False
    patches_at_once: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.patches_at_once is None or self.patches_at_once >= 1,
            f"patches_at_once must be at least 1, not {self.patches_at_once}",
        )
        require(
            len(self.level_weights) == 3 and min(self.level_weights) > 0,
            f"level_weights must be three positive numbers, not {list(self.level_weights)}",
        )
        require(self.alignment in ALIGNMENTS, f"alignment must be one of {', '.join(ALIGNMENTS)}")
        require(self.alignment_regions >= 1, f"alignment_regions must be at least 1, not {self.alignment_regions}")
        require(self.alignment_weight >= 0, f"alignment_weight must be at least 0, not {self.alignment_weight}")
        require(self.temperature > 0, f"temperature must be positive, not {self.temperature}")
        require(0 <= self.norm_pix_floor <= 1, f"norm_pix_floor must be in [0, 1], not {self.norm_pix_floor}")


class MaskInMask(SSLMethod[MaskInMaskConfig]):
    """MiM on a planned encoder.

    Args:
        encoder: Planned encoder that returns all stage outputs.
        num_modalities: C.
        patch_size: Voxels per axis.
        config: Settings.
    """

    config_class: ClassVar[type] = MaskInMaskConfig
    paper: ClassVar[str] = "MiM: arXiv 2404.15580"

    def __init__(
        self, encoder: PlannedEncoder, num_modalities: int, patch_size: Sequence[int], config: MaskInMaskConfig
    ) -> None:
        self.check(config, patch_size, encoder.strides)
        super().__init__(encoder, num_modalities, patch_size, config)
        self.levels = Levels(config, patch_size, num_modalities)
        self.modelling = MaskedModelling(config, floor=config.norm_pix_floor)
        self.decoder, self.fill = self.modelling.new_weights(encoder, num_modalities)
        width = self.decoder.width
        pairs = ("12", "23") if config.alignment_weight > 0 else ()
        self.parent_heads = nn.ModuleDict({pair: MLP(width, 2 * width, width) for pair in pairs})
        self.child_heads = nn.ModuleDict({pair: MLP(width, 2 * width, width) for pair in pairs})

    @classmethod
    def check(cls, config: MaskInMaskConfig, patch_size: Sequence[int], strides: Sequence[int | Sequence[int]]) -> None:
        """See :meth:`SSLMethod.check`."""
        MaskedModelling.check(config, patch_size, strides)
        Levels.check(config, patch_size)

    @classmethod
    def crop_size(cls, config: MaskInMaskConfig, patch_size: Sequence[int]) -> tuple[int, ...]:
        """The wide crop: ``parent_factor`` patches."""
        return tuple(p * f for p, f in zip(patch_size, geometry(config, patch_size).octants, strict=True))

    def draw(self, generator: torch.Generator, present: Tensor | None = None) -> dict[str, Tensor]:
        """See :meth:`Levels.draw`."""
        return self.levels.draw(generator, self.all_or(present))

    def forward(self, image: Tensor, foreground: Tensor, draws: dict[str, Tensor]) -> MethodOutput:
        """Reconstruction losses of the three levels + weight * mean alignment of levels 1-2 and 2-3.

        Arguments and return value are those of :class:`SSLMethod`; the wide crop is ``image``.
        """
        wide, octants = self.levels.first(image, foreground, draws)
        detail, places = self.levels.second(image, foreground, octants, draws)
        close = self.levels.third(detail, places, draws)
        levels = (wide, detail, close)
        decoded, masked_image, prediction = self._encode_decode(levels)
        losses = [self.modelling.loss(*parts) for parts in zip(levels, prediction, strict=True)]
        weighted = [weight * part for weight, part in zip(self.config.level_weights, losses, strict=True)]
        loss = sum(weighted[1:], start=weighted[0])
        terms = {f"reconstruction_{number}": part.detach() for number, part in enumerate(losses, 1)}
        if self.config.alignment_weight > 0:
            aligned = self._alignment(decoded, octants, places, detail, close)
            loss = loss + self.config.alignment_weight * torch.stack(list(aligned.values())).mean()
            terms |= {key: value.detach() for key, value in aligned.items()}
        first_child = slice(None, None, self.config.level2_children)
        shown = self.modelling.shown(detail, masked_image[1], prediction[1])
        shown = Reconstruction(*(part[first_child] for part in shown))
        return MethodOutput(loss, terms, reconstruction=shown)

    def _encode_decode(self, levels: Sequence[MaskedPatches]) -> tuple[tuple[Tensor, ...], ...]:
        """Decoded features, masked images and predictions, each per level."""
        hidden = torch.cat([level.hidden for level in levels])
        masked_image = fill_in(torch.cat([level.image for level in levels]), hidden, self.fill)
        decoded, prediction = in_parts(self._run_network, self.config.patches_at_once, masked_image, hidden)
        sizes = [len(level.image) for level in levels]
        return decoded.split(sizes), masked_image.split(sizes), prediction.split(sizes)

    def _run_network(self, masked_image: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.masked_convolution or isinstance(self.encoder, PrimusEncoder):
            with visible_only(self.encoder, ~hidden.all(1, keepdim=True)):
                features = self.encoder(masked_image)
        else:
            features = self.encoder(masked_image)
        decoded = self.decoder.decode(features)
        return decoded, self.decoder.predict(decoded)

    def _alignment(
        self, decoded: Sequence[Tensor], octants: Tensor, places: Tensor, detail: MaskedPatches, close: MaskedPatches
    ) -> dict[str, Tensor]:
        """Each region of a child against what its parent decodes in the same place; no gradient into the parent's features."""
        shape, regions = self.levels.geometry, self.config.alignment_regions
        imagined = adaptive_pool(decoded[0].float(), [regions * count for count in shape.octants])
        cells = adaptive_pool(decoded[1].float(), [regions * count for count in shape.cells])
        for axis, (count, side) in enumerate(zip(shape.places, shape.child_cells, strict=True), start=2):
            cells = cells.narrow(axis, 0, regions * count * side)
        imagined_close = voxels_to_cells(cells, [regions * count for count in shape.places])
        pairs = {
            "12": (take_blocks(imagined, shape.octants, octants), decoded[1], detail),
            "23": (take_blocks(imagined_close, shape.places, places), decoded[2], close),
        }
        losses = {}
        for pair, (parent, child, patches) in pairs.items():
            child = adaptive_pool(child.float(), parent.shape[2:])
            weight = (adaptive_pool(patches.foreground.float(), parent.shape[2:]) >= MIN_FOREGROUND).float().flatten()
            a = self.parent_heads[pair](_rows(parent.detach()))
            b = self.child_heads[pair](_rows(child))
            if self.config.alignment == "cosine":
                losses[f"alignment_{pair}"] = cosine_alignment(a, b, weight)
            else:
                query, key = (F.normalize(x.float(), dim=1) for x in (b, a))
                losses[f"alignment_{pair}"] = info_nce_rows(query, key, weight, self.config.temperature)
        return losses


def _rows(regions: Tensor) -> Tensor:
    """(B, D, *R) -> (B * R, D), a row per region."""
    return regions.flatten(2).transpose(1, 2).flatten(0, 1)
