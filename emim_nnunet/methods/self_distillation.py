"""Masked self-distillation: data2vec (arXiv 2202.03555) beside the reconstruction, as SMIT (arXiv 2205.10342) mixes them.

The student sees the masked patch and predicts, at the cells that are hidden from it, the features that a teacher has of the
whole patch. The teacher is a momentum copy of the encoder. Against collapse: targets are normalised over the cells of a sample,
so that a constant has a loss of about 1 until the teacher has collapsed altogether, and pyramid Barlow twins hold the columns
of the student apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emim_nnunet.distributed import all_reduce_sum
from emim_nnunet.losses import masked_mse
from emim_nnunet.masking import foreground_cells, grid_size, voxels_to_cells
from emim_nnunet.methods.base import MethodOutput, SSLMethod
from emim_nnunet.methods.masked_modelling import MaskedView, ViewWeights, draw_hybrid_mask
from emim_nnunet.methods.pyramid_barlow import PyramidBarlowConfig, PyramidBarlowTwins, require_line_up
from emim_nnunet.networks import MLP, PlannedEncoder, momentum_copy, momentum_update_, visible_moments
from emim_nnunet.settings.block import require

EPS = 1e-5  # of nnU-Net's instance normalisation


@dataclass(frozen=True, kw_only=True)
class MaskedSelfDistillationConfig(PyramidBarlowConfig):
    """Settings of masked self-distillation.

    Attributes:
        fill: A learned number per modality by default, as E-MIM has it.
        sparse_encoder: On by default: on real heads, frozen features of stages without it were worse than untrained ones.
        distillation_weight: Weight of the distillation beside the reconstruction, whose weight is 1; more than 0.
        distillation_stages: The targets are the outputs of this many stages, the deepest ones, at least 1; None = the deeper
            half, rounded up, as data2vec takes the upper half of its blocks.
        teacher_momentum: Share of the teacher that each step keeps, in [0, 1]. 0.999 belongs to runs of many thousand steps.
    """

    without_effect: ClassVar[tuple[str, ...]] = ("mask_ratio",)
    fill: str = "learned"
    sparse_encoder: bool = True
    distillation_weight: float = 1.0
    distillation_stages: int | None = None
    teacher_momentum: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.distillation_weight > 0, f"distillation_weight must be more than 0, not {self.distillation_weight}"
        )
        stages = self.distillation_stages
        require(stages is None or stages >= 1, f"distillation_stages must be at least 1, not {stages}")
        require(0 <= self.teacher_momentum <= 1, f"teacher_momentum must be in [0, 1], not {self.teacher_momentum}")


class MaskedSelfDistillation(SSLMethod[MaskedSelfDistillationConfig]):
    """Masked self-distillation on a planned encoder.

    Args:
        encoder: Planned encoder that returns all stage outputs; the student, and what is transferred.
        num_modalities: C.
        patch_size: Voxels per axis.
        config: Settings.
    """

    config_class: ClassVar[type] = MaskedSelfDistillationConfig
    paper: ClassVar[str] = "data2vec: arXiv 2202.03555; SMIT: arXiv 2205.10342; E-MIM: arXiv 2407.10377"

    def __init__(
        self,
        encoder: PlannedEncoder,
        num_modalities: int,
        patch_size: Sequence[int],
        config: MaskedSelfDistillationConfig,
    ) -> None:
        self.check(config, patch_size, encoder.strides)
        super().__init__(encoder, num_modalities, patch_size, config)
        self.grid = grid_size(patch_size, config.cell_size)
        self.modelling = MaskedView(config, hidden_features=True)
        self.decoder, self.fill = self.modelling.new_weights(encoder, num_modalities)
        self.pyramid = PyramidBarlowTwins(config, patch_size, encoder.strides)
        self.projectors = self.pyramid.new_projectors(encoder)
        self.num_stages = _num_stages(config, len(encoder.strides))
        width = sum(encoder.output_channels[-self.num_stages :])
        self.head = MLP(width, width, width)
        self.mask_stem = self.modelling.new_mask_stem(encoder, num_modalities)
        self.teacher = momentum_copy(cast(nn.Module, encoder))

    @classmethod
    def check(
        cls,
        config: MaskedSelfDistillationConfig,
        patch_size: Sequence[int],
        strides: Sequence[int | Sequence[int]],
    ) -> None:
        """See :meth:`SSLMethod.check`."""
        MaskedView.check(config, patch_size, strides)
        PyramidBarlowTwins.check(config, patch_size, strides)
        total = len(strides)
        stages = _num_stages(config, total)
        require(stages <= total, f"distillation_stages {stages} are more than the encoder has, which is {total}")
        for stage in range(total - stages, total):
            require_line_up(config.cell_size, patch_size, strides, stage, "stage")

    def draw(self, generator: torch.Generator, present: Tensor | None = None) -> dict[str, Tensor]:
        """``masked`` (1, C, *G) bool, ``present`` (1, C) bool, and what :meth:`PyramidBarlowTwins.draw` returns."""
        present = self.all_or(present)
        masked = draw_hybrid_mask(self.config, self.grid, generator, present)
        return {"masked": masked, "present": present[None]} | self.pyramid.draw(generator)

    def forward(self, image: Tensor, foreground: Tensor, draws: dict[str, Tensor]) -> MethodOutput:
        """Reconstruction + weight * distillation + weight * mean over levels of Barlow twins with the teacher's view.

        Arguments and return value are those of :class:`SSLMethod`.
        """
        original = self._teach(image)  # first, so that what it needs is free again when the student's pass begins
        masked = draws["masked"]
        weights = ViewWeights(self.encoder, self.decoder, self.fill, self.mask_stem)
        output, features = self.modelling.reconstruct(image, foreground, masked, draws["present"], weights)
        hidden = masked.all(1, keepdim=True)
        distillation, variation = self.distil(features, original, hidden, foreground)
        loss = output.loss + self.config.distillation_weight * distillation
        terms = output.terms | {"distillation": distillation.detach(), "target_variation": variation}
        output = output._replace(loss=loss, terms=terms)
        if not self.pyramid.levels:
            return output
        barlow = self.pyramid.losses(features, original, ~hidden, foreground, draws, self.projectors)
        return self.pyramid.added_to(output, barlow)

    @torch.no_grad()
    def _teach(self, image: Tensor) -> list[Tensor]:
        """The teacher's stage outputs for the unmasked image; those that are used on the cells, averaged over them already."""
        outputs = self.teacher(image)
        used = {*self.pyramid.levels, *range(len(outputs) - self.num_stages, len(outputs))}
        empty = image.new_zeros(())
        return [self._at_most_cells(f) if stage in used else empty for stage, f in enumerate(outputs)]

    def _at_most_cells(self, features: Tensor) -> Tensor:
        """A stage's output, averaged over cells where it is finer than they are: float32, (B, D, *G) or coarser."""
        return voxels_to_cells(features.float(), tuple(map(min, features.shape[2:], self.grid)))

    def distil(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], hidden: Tensor, foreground: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Squared error of the teacher's features of hidden cells of the body, as predicted from the student's.

        data2vec averages the normalised outputs of several blocks; the stages of a U-Net differ in width, so their columns
        stand side by side. They are normalised over the cells of the body of each sample (data2vec's choice where neighbouring
        positions are alike, as in speech), without which a column that hardly varies would count for nothing.

        Args:
            student: Stage outputs of the masked view.
            teacher: Stage outputs of the original view.
            hidden: (B, 1, *G) bool, cells that are masked in all modalities.
            foreground: (B, 1, *P) bool.

        Returns:
            () float32, about 1 for a constant; and the share of the mean square of the teacher's features, before their
            normalisation, that is variance between the cells of a sample, () in [0, 1]: 0 = the teacher has collapsed.
        """
        body = foreground_cells(foreground, self.grid)
        predicted = self.head(_rows(self._on_cells(student)))
        with torch.autocast(foreground.device.type, enabled=False):
            target = self._on_cells(teacher)
            mean, variance = visible_moments(target, body.float())
            power = all_reduce_sum(torch.stack([variance.sum(), (variance + mean.square()).sum()]))
            target = _rows((target - mean) * torch.rsqrt(variance + EPS))
            counted = _rows((hidden & body).float()).expand_as(target)
            return masked_mse(predicted, target, counted), power[0] / power[1].clamp_min(EPS)

    def _on_cells(self, features: Sequence[Tensor]) -> Tensor:
        """The deepest stages' outputs side by side on the grid of cells, (B, columns, *G) float32: finer ones averaged."""
        stages = [self._at_most_cells(stage) for stage in features[-self.num_stages :]]
        return torch.cat([F.interpolate(stage, size=self.grid, mode="nearest") for stage in stages], dim=1)

    @torch.no_grad()
    def after_step(self, state: dict[str, Tensor] | None) -> None:
        """The teacher follows the student; alike on all ranks, whose students are equal."""
        momentum_update_(self.teacher, cast(nn.Module, self.encoder), self.config.teacher_momentum)


def _num_stages(config: MaskedSelfDistillationConfig, total: int) -> int:
    return (total + 1) // 2 if config.distillation_stages is None else config.distillation_stages


def _rows(cells: Tensor) -> Tensor:
    """(B, D, *G) -> (B * cells, D)."""
    return cells.flatten(2).transpose(1, 2).flatten(0, 1)
