"""One evaluation of a network on a probe set: accumulates over batches what the other modules here compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from emim_nnunet.diagnostics.baselines import (
    baseline_losses,
    constant_losses,
    depth_sums,
    mask_losses,
    mask_sums,
    position_sums,
    sample_sums,
)
from emim_nnunet.diagnostics.hypersphere import alignment, uniformity
from emim_nnunet.diagnostics.reconstruction import (
    reconstruction_scores,
    reconstruction_sums,
    within_ratios,
    within_sums,
)
from emim_nnunet.diagnostics.spectrum import CovarianceSums, cell_grid, foreground_rows, stage_scores
from emim_nnunet.distributed import gather_objects
from emim_nnunet.masking import voxels_to_cells
from emim_nnunet.randomness import Stream, seeded_generator

PAIRS_PER_PATCH = 16  # rows of a patch that uniformity and alignment use


class CollapseProbe:
    """Accumulates sums over the patches of a probe set; the result does not depend on batch size and number of ranks.

    Args:
        mask_grid: Cells of the mask per axis, over which features are averaged.
        channel_names: The names of the C modalities.
        seed: Seed of the choice of the cells that uniformity and alignment use.
        cell_size: Voxels of a mask cell per axis, to measure the losses of predictions without image content too; None = they
            are not measured. They take three float64 values per voxel and modality of a patch and depend on the patches and
            masks alone.
    """

    def __init__(
        self,
        mask_grid: Sequence[int],
        channel_names: Sequence[str],
        seed: int,
        cell_size: Sequence[int] | None = None,
    ) -> None:
        self.mask_grid = tuple(mask_grid)
        self.channel_names = list(channel_names)
        self.seed = seed
        self.cell_size = cell_size
        self._stages: list[CovarianceSums] = []
        self._pairs: list[dict[int, tuple[Tensor, Tensor]]] = []
        self._sums: dict[str, Tensor] = {}
        self._num_patches = 0

    def update_features(
        self,
        indices: Sequence[int],
        foreground: Tensor,
        features: Sequence[Tensor],
        masked_features: Sequence[Tensor] | None = None,
        hidden: Tensor | None = None,
    ) -> None:
        """Add the features of patches.

        Args:
            indices: The number of each patch in the probe set.
            foreground: (B, 1, *P) bool, True inside the body.
            features: Output (B, C_s, *S_s) of each stage for the unmasked patch, which is what a downstream network will get.
            masked_features: Output (B, C_s, *S_s) of each stage for the masked patch, for the alignment of both; None = not
                measured.
            hidden: (B, C, *P) bool, True where the masked patch is masked; None = nowhere.
        """
        self._num_patches += len(indices)
        if not self._stages:
            self._stages = [CovarianceSums.of(torch.empty((0, f.shape[1]))) for f in features]
            self._pairs = [{} for _ in features]
        visible = None if hidden is None else ~hidden.all(1, keepdim=True)
        for stage, output in enumerate(features):
            rows, present = foreground_rows(output, foreground, self.mask_grid)
            self._stages[stage] = self._stages[stage].merged(CovarianceSums.of(rows))
            others = None
            if masked_features is not None:
                others, _ = foreground_rows(masked_features[stage], foreground, self.mask_grid)
            usable = present
            if visible is not None:
                grid = cell_grid(output.shape[2:], self.mask_grid)
                usable = present & (voxels_to_cells(visible.float(), grid).flatten(1) >= 0.5)
            self._keep_pairs(self._pairs[stage], indices, present, usable, rows, others)

    def _keep_pairs(
        self, kept: dict, indices: Sequence[int], present: Tensor, usable: Tensor, rows: Tensor, others: Tensor | None
    ) -> None:
        """Keep some rows of each patch from both views; without a second view, no rows of it."""
        starts = [0, *present.sum(1).cumsum(0).tolist()]
        for index, start, here, use in zip(indices, starts, present.cpu(), usable.cpu(), strict=False):
            candidates = use[here].nonzero().flatten()
            generator = seeded_generator(self.seed, Stream.PROBE, index)
            chosen = candidates[torch.randperm(len(candidates), generator=generator)[:PAIRS_PER_PATCH]] + start
            chosen = chosen.to(rows.device)
            kept[index] = (rows[chosen].cpu(), (rows[:0] if others is None else others[chosen]).cpu())

    def update_reconstruction(
        self,
        prediction: Tensor,
        target: Tensor,
        counted: Tensor,
        foreground: Tensor,
        indices: Sequence[int] = (),
    ) -> None:
        """Add the reconstruction of patches.

        Args:
            prediction: See :func:`reconstruction_sums`.
            target: See there.
            counted: See there.
            foreground: See there.
            indices: Number of each patch in the probe set; needed where there is a ``cell_size``.
        """
        parts = {
            "reconstruction": reconstruction_sums(prediction, target, counted, foreground),
            "within": within_sums(prediction, target, counted, foreground, self.mask_grid),
        }
        if self.cell_size is not None:
            parts |= {
                "positions": position_sums(target, counted),
                "samples": sample_sums(target, counted),
                "depths": depth_sums(target, counted, foreground),
                "masks": mask_sums(target, counted, foreground, self.mask_grid, self.seed, indices),
            }
        self._sums = _sum_of([self._sums, parts])

    def measure(self) -> dict[str, Any]:
        """Compute all scores of what was added on all ranks, as plain numbers.

        Returns:
            ``num_patches``; ``reconstruction``, of :func:`reconstruction_scores` with ``within`` of :func:`within_ratios`, or
            None for a network that reconstructs nothing; ``stages``, a dict of :func:`stage_scores` each, with ``uniformity``
            and ``alignment`` of the centred features besides (alignment NaN without masked features); where asked for,
            ``constant_losses``, ``baselines`` and ``mask_losses``, see :mod:`.baselines`.

        Raises:
            ValueError: No patch was added on any rank.
        """
        pieces = gather_objects((self._num_patches, self._stages, self._pairs, self._sums))
        pieces = [piece for piece in pieces if piece[0]]
        if not pieces:
            raise ValueError("a probe needs at least one patch")
        stages = []
        for parts in zip(*(piece[1] for piece in pieces), strict=True):
            total = parts[0]
            for part in parts[1:]:
                total = total.merged(part)
            stages.append(total)
        pairs = [
            {k: v for part in parts for k, v in part.items()} for parts in zip(*(p[2] for p in pieces), strict=True)
        ]
        sums = _sum_of([piece[3] for piece in pieces])
        return self._without_content(sums) | {
            "num_patches": sum(piece[0] for piece in pieces),
            "reconstruction": self._reconstruction(sums),
            "stages": [self._stage(*stage) for stage in zip(stages, pairs, strict=True)],
        }

    def _reconstruction(self, sums: dict[str, Tensor]) -> dict[str, dict[str, float]] | None:
        if "reconstruction" not in sums:
            return None
        within = within_ratios(sums["within"], self.channel_names)
        scores = reconstruction_scores(sums["reconstruction"], self.channel_names)
        return {name: values | {"within": within[name]} for name, values in scores.items()}

    def _without_content(self, sums: dict[str, Tensor]) -> dict[str, Any]:
        """Losses of predictions that know no image content, where they were asked for."""
        if "positions" not in sums:
            return {}
        assert self.cell_size is not None  # they are summed only then
        return {
            "constant_losses": constant_losses(sums["positions"], self.cell_size),
            "baselines": baseline_losses(sums["depths"], sums["samples"], self.channel_names),
            "mask_losses": mask_losses(sums["masks"]),
        }

    @staticmethod
    def _stage(sums: CovarianceSums, pairs: dict[int, tuple[Tensor, Tensor]]) -> dict[str, Any]:
        ordered = [pairs[index] for index in sorted(pairs)]
        a, b = (torch.cat([pair[view] for pair in ordered]) - sums.mean for view in (0, 1))
        return stage_scores(sums) | {"uniformity": uniformity(a), "alignment": alignment(a[: len(b)], b)}


def _sum_of(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Sums of what has the same name."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: torch.stack([part[name] for part in parts if name in part]).sum(0) for name in names}
