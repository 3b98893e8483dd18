"""VICReg (arXiv 2105.04906) on cells: invariance to intensity, variance and covariance of the features of small blocks.

Two views of the same patch differ in their intensities only, so a cell of one view and the cell at the same place of the other
one belong together. Cells are the samples because a 3D batch of two has no statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from emim_nnunet.distributed import all_reduce_sum, weighted_moments
from emim_nnunet.masking import choose_rows, foreground_cells, take_rows, voxels_to_cells
from emim_nnunet.methods.base import MethodOutput, SSLConfig, SSLMethod
from emim_nnunet.networks import PlannedEncoder, Projector, in_parts, stage_grids
from emim_nnunet.settings.block import require
from emim_nnunet.views.intensity import change_intensity, draw_intensity, draw_noise

VIEWS = ("a", "b")


@dataclass(frozen=True, kw_only=True)
class VICRegConfig(SSLConfig):
    """Settings of VICReg on cells; the weights are the paper's.

    Attributes:
        vicreg_stage: Encoder stage that it acts on; -1 = the deepest that has at least as many positions as the patch has cells
            of ``cell_size``.
        vicreg_width: Columns of the projector.
        invariance_weight: Weight of the squared distance of the two views.
        variance_weight: Weight of the hinge on the standard deviation of each column.
        covariance_weight: Weight of the squared covariances of different columns.
        cells_per_sample: At most this many foreground cells of each sample are rows.
        patches_at_once: At most this many patches (a sample has two views) are in memory at once; the others are computed again
            in the backward pass.
    """

    vicreg_stage: int = -1
    vicreg_width: int = 512
    invariance_weight: float = 25.0
    variance_weight: float = 25.0
    covariance_weight: float = 1.0
    cells_per_sample: int = 512
    patches_at_once: int | None = None

    def __post_init__(self) -> None:
        require(self.vicreg_stage >= -1, f"vicreg_stage must be at least -1, not {self.vicreg_stage}")
        require(self.vicreg_width >= 2, f"vicreg_width must be at least 2, not {self.vicreg_width}")
        for name in ("cells_per_sample", "patches_at_once"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} must be at least 1, not {value}")
        for name in ("invariance_weight", "variance_weight", "covariance_weight"):
            require(getattr(self, name) >= 0, f"{name} must be at least 0, not {getattr(self, name)}")


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
        self.projector = Projector(encoder.output_channels[self.stage], config.vicreg_width)

    @classmethod
    def check(cls, config: VICRegConfig, patch_size: Sequence[int], strides: Sequence[int | Sequence[int]]) -> None:
        """See :meth:`SSLMethod.check`."""
        require(
            config.vicreg_stage < len(strides),
            f"vicreg_stage {config.vicreg_stage} must be a stage of the encoder, which has {len(strides)}",
        )

    def draw(self, generator: torch.Generator, present: Tensor | None = None) -> dict[str, Tensor]:
        """Per view ``intensity_VIEW`` (1, C, 5) and ``noise_VIEW`` (1, C, *P); ``scores`` (1, cells) that pick the rows."""
        draws = {"scores": torch.rand((1, prod(self.grid)), generator=generator)}
        device = next(self.encoder.parameters()).device
        for view in VIEWS:
            intensity = draw_intensity(self.num_modalities, generator, self.all_or(present))
            noise = draw_noise((1, self.num_modalities, *self.patch_size), intensity, generator, device)
            draws |= {f"intensity_{view}": intensity, f"noise_{view}": noise}
        return draws

    def forward(self, image: Tensor, foreground: Tensor, draws: dict[str, Tensor]) -> MethodOutput:
        """Weighted sum of invariance, variance and covariance terms, see :class:`SSLMethod`."""
        usable = foreground_cells(foreground, self.grid).flatten(1)
        chosen, weight = choose_rows(usable, draws["scores"], self.config.cells_per_sample)
        views = [
            change_intensity(image, foreground, draws[f"intensity_{view}"], draws[f"noise_{view}"]) for view in VIEWS
        ]
        features = in_parts(lambda patches: tuple(self.encoder(patches)), self.config.patches_at_once, torch.cat(views))
        rows = [
            self.projector(take_rows(voxels_to_cells(view, self.grid), chosen), weight)
            for view in features[self.stage].split(len(image))
        ]
        kept = [f[: len(image)].detach() for f in features]
        terms = vicreg_terms(rows[0], rows[1], weight)
        weights = {name: getattr(self.config, f"{name}_weight") for name in terms}
        loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        return MethodOutput(loss, {name: term.detach() for name, term in terms.items()}, features=kept)


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
