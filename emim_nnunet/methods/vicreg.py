"""VICReg (arXiv 2105.04906) on cells: invariance to views, variance and covariance of the features of small blocks.

Cells are the samples because a 3D batch of two has no statistics. The two views of a crop differ in their intensities, and each
is shifted and mirrored for itself: with a shared geometry both would see the same neighbours and the same border, and most of
the invariance would be given. Shifts are whole cells and mirroring maps cells to cells, so the cells that show the same place
are found exactly, without interpolation; rotation and scaling, which would need it, act on the crop, and both views share them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, prod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from emim_nnunet.distributed import all_reduce_sum, weighted_moments
from emim_nnunet.masking import choose_rows, foreground_cells, take_rows
from emim_nnunet.methods.base import MethodOutput, SSLConfig, SSLMethod
from emim_nnunet.networks import PlannedEncoder, Projector, in_parts, stage_grids
from emim_nnunet.settings.block import require
from emim_nnunet.views.augmentation import draw_flips, mirrored
from emim_nnunet.views.boxes import take_boxes
from emim_nnunet.views.intensity import change_intensity, draw_intensity, draw_noise, unchanged_share

VIEWS = ("a", "b")


@dataclass(frozen=True, kw_only=True)
class VICRegConfig(SSLConfig):
    """Settings of VICReg on cells; the weights are the paper's.

    Attributes:
        vicreg_stage: Encoder stage that it acts on; -1 = the deepest that has at least as many positions as the patch has cells
            of ``cell_size``.
        vicreg_deeper: Whether the outputs of deeper stages stand beside those of that stage, each repeated where it belongs;
            without them deeper stages learn nothing, and cannot be trained on several GPUs (for stages that were begun so).
        vicreg_width: Columns of the projector.
        invariance_weight: Weight of the squared distance of the two views.
        variance_weight: Weight of the hinge on the standard deviation of each column.
        covariance_weight: Weight of the squared covariances of different columns.
        cells_per_sample: At most this many foreground cells of each sample are rows.
        patches_at_once: At most this many patches (a sample has two views) are in memory at once; the others are computed again
            in the backward pass.
        view_probability: Probability of each of the five changes of a view's intensities; None = nnU-Net's own, 0.1 to 0.3.
        view_mirror: Mirror each view for itself, besides ``mirror``, which mirrors crops.
        view_overlap: Least share of a view that the other one covers too; 1 = views are not shifted.
    """

    formerly: ClassVar[dict[str, Any]] = {
        "view_probability": None,
        "view_mirror": False,
        "view_overlap": 1.0,
        "vicreg_deeper": False,
    }
    vicreg_stage: int = -1
    vicreg_deeper: bool = True
    vicreg_width: int = 512
    invariance_weight: float = 25.0
    variance_weight: float = 25.0
    covariance_weight: float = 1.0
    cells_per_sample: int = 512
    patches_at_once: int | None = None
    view_probability: float | None = 0.8
    view_mirror: bool = True
    view_overlap: float = 0.5

    def __post_init__(self) -> None:
        require(self.vicreg_stage >= -1, f"vicreg_stage must be at least -1, not {self.vicreg_stage}")
        require(self.vicreg_width >= 2, f"vicreg_width must be at least 2, not {self.vicreg_width}")
        for name in ("cells_per_sample", "patches_at_once"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} must be at least 1, not {value}")
        for name in ("invariance_weight", "variance_weight", "covariance_weight"):
            require(getattr(self, name) >= 0, f"{name} must be at least 0, not {getattr(self, name)}")
        probability = self.view_probability
        require(
            probability is None or 0 <= probability <= 1,
            f"view_probability must be null or in [0, 1], not {probability}",
        )
        require(0 < self.view_overlap <= 1, f"view_overlap must be in (0, 1], not {self.view_overlap}")


def _stage(config: VICRegConfig, patch_size: Sequence[int], strides: Sequence[int | Sequence[int]]) -> int:
    if config.vicreg_stage >= 0:
        return config.vicreg_stage
    cells = prod(p // c for p, c in zip(patch_size, config.cell_size, strict=True))
    return max(number for number, grid in enumerate(stage_grids(strides, patch_size)) if prod(grid) >= cells)


class VICReg(SSLMethod[VICRegConfig]):
    """VICReg on cells. Arguments as in :class:`SSLMethod`."""

    config_class: ClassVar[type] = VICRegConfig
    paper: ClassVar[str] = "VICReg: arXiv 2105.04906"

    def __init__(
        self, encoder: PlannedEncoder, num_modalities: int, patch_size: Sequence[int], config: VICRegConfig
    ) -> None:
        self.check(config, patch_size, encoder.strides)
        super().__init__(encoder, num_modalities, patch_size, config)
        self.stage = _stage(config, patch_size, encoder.strides)
        self.grid = stage_grids(encoder.strides, patch_size)[self.stage]
        self.cell = [p // g for p, g in zip(patch_size, self.grid, strict=True)]
        room = [c - p for c, p in zip(self.crop_size(config, patch_size), patch_size, strict=True)]
        self.room = [r // c for r, c in zip(room, self.cell, strict=True)]
        self.last = len(encoder.output_channels) if config.vicreg_deeper else self.stage + 1
        self.projector = Projector(sum(encoder.output_channels[self.stage : self.last]), config.vicreg_width)

    @classmethod
    def check(cls, config: VICRegConfig, patch_size: Sequence[int], strides: Sequence[int | Sequence[int]]) -> None:
        """See :meth:`SSLMethod.check`."""
        require(
            config.vicreg_stage < len(strides),
            f"vicreg_stage {config.vicreg_stage} must be a stage of the encoder, which has {len(strides)}",
        )

    @classmethod
    def crop_size(cls, config: VICRegConfig, patch_size: Sequence[int]) -> tuple[int, ...]:
        """The patch and room for shifts by whole cells, so that ``view_overlap`` of two views is shared whatever the shift."""
        share = 1.0 - config.view_overlap ** (1.0 / len(patch_size))
        return tuple(p + c * floor(p * share / c) for p, c in zip(patch_size, config.cell_size, strict=True))

    @property
    def field(self) -> list[int]:
        """Cells per axis of the part of a crop that views are taken of."""
        return [g + r for g, r in zip(self.grid, self.room, strict=True)]

    def draw(self, generator: torch.Generator, present: Tensor | None = None) -> dict[str, Tensor]:
        """``scores`` (1, cells of the crop) that pick the rows; per view ``intensity_VIEW`` (1, C, 5), ``noise_VIEW``
        (1, C, *P), ``lower_VIEW`` (1, axes) int64 in cells, and ``flips_VIEW`` (1, axes) bool."""
        config = self.config
        draws = {"scores": torch.rand((1, prod(self.field)), generator=generator)}
        device = next(self.encoder.parameters()).device
        for view in VIEWS:
            probability = config.view_probability
            intensity = draw_intensity(self.num_modalities, generator, self.all_or(present), probability=probability)
            noise = draw_noise((1, self.num_modalities, *self.patch_size), intensity, generator, device)
            draws |= {f"intensity_{view}": intensity, f"noise_{view}": noise}
        for view in VIEWS:  # after all that stages of earlier versions drew
            lower = [torch.randint(r + 1, (1,), generator=generator) for r in self.room]
            flips = draw_flips(len(self.grid), generator) & config.view_mirror
            draws |= {f"lower_{view}": torch.stack(lower, dim=1), f"flips_{view}": flips}
        return draws

    def forward(self, image: Tensor, foreground: Tensor, draws: dict[str, Tensor]) -> MethodOutput:
        """Weighted sum of invariance, variance and covariance terms, see :class:`SSLMethod`."""
        everywhere, inside = image.new_ones(len(image), 1, *self.grid), foreground
        seen = [self._on_field(everywhere, view, draws) for view in VIEWS]
        views = torch.cat([self._view(view, image, foreground, draws) for view in VIEWS])
        features = in_parts(lambda patches: (self._columns(patches),), self.config.patches_at_once, views)[0]
        for axis, (cells, size) in enumerate(zip(self.field, self.cell, strict=True), start=2):
            inside = inside.narrow(axis, 0, cells * size)
        usable = foreground_cells(inside, self.field) & (seen[0] * seen[1] > 0)
        chosen, weight = choose_rows(usable.flatten(1), draws["scores"], self.config.cells_per_sample)
        rows = [
            self.projector(take_rows(self._on_field(output, view, draws), chosen), weight)
            for view, output in zip(VIEWS, features.split(len(image)), strict=True)
        ]
        terms = vicreg_terms(rows[0], rows[1], weight)
        weights = {name: getattr(self.config, f"{name}_weight") for name in terms}
        loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        logged = {name: term.detach() for name, term in terms.items()}
        logged["unchanged_views_fraction"] = unchanged_share(*(draws[f"intensity_{view}"] for view in VIEWS))
        return MethodOutput(loss, logged)

    def _columns(self, patches: Tensor) -> Tensor:
        """(N, C, *P) -> (N, columns, *grid), the outputs of the stage and of deeper ones side by side."""
        outputs = self.encoder(patches)[self.stage : self.last]
        return torch.cat(
            [outputs[0], *(F.interpolate(deeper, size=self.grid, mode="nearest") for deeper in outputs[1:])], 1
        )

    def _view(self, view: str, image: Tensor, foreground: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """(B, C, *P), what the encoder sees of a view."""
        lower = draws[f"lower_{view}"]
        lower = lower * lower.new_tensor(self.cell)
        patch, inside = (take_boxes(t, lower, self.patch_size) for t in (image, foreground))
        patch = change_intensity(patch, inside, draws[f"intensity_{view}"], draws[f"noise_{view}"])
        return mirrored(patch, draws[f"flips_{view}"])

    def _on_field(self, cells: Tensor, view: str, draws: dict[str, Tensor]) -> Tensor:
        """(B, D, *G) of a view's cells -> (B, D, *field), each where it lies in the crop; 0 where the view does not reach."""
        lower = draws[f"lower_{view}"]
        padded = F.pad(
            mirrored(cells, draws[f"flips_{view}"]), [r for room in reversed(self.room) for r in (room, room)]
        )
        return take_boxes(padded, lower.new_tensor(self.room) - lower, self.field)


def vicreg_terms(rows_a: Tensor, rows_b: Tensor, weight: Tensor, eps: float = 1e-4) -> dict[str, Tensor]:
    """The three terms of VICReg over the rows of all ranks.

    Args:
        rows_a: (N, D) float.
        rows_b: (N, D) float.
        weight: (N,) float, 0 = the row does not count.
        eps: Added to variances before the root.

    Returns:
        ``invariance`` (mean squared difference), ``variance`` (mean hinge at standard deviation 1, both views), ``covariance``
        (squared off-diagonal covariances / D, both views), () float32 each.
    """
    with torch.autocast(rows_a.device.type, enabled=False):
        rows_a, rows_b, weight = rows_a.float(), rows_b.float(), weight.float()
        difference = all_reduce_sum(((rows_a - rows_b).square().mean(1) * weight).sum())
        variance, covariance = [], []
        for rows in (rows_a, rows_b):
            mean, spread, count = weighted_moments(rows, weight)
            variance.append(torch.relu(1.0 - (spread + eps).sqrt()).mean())
            centred = rows - mean
            matrix = all_reduce_sum((centred * weight[:, None]).T @ centred) / count
            covariance.append((matrix.square().sum() - matrix.diagonal().square().sum()) / rows.shape[1])
        return {
            "invariance": difference / count,
            "variance": torch.stack(variance).mean(),
            "covariance": torch.stack(covariance).sum(),
        }
