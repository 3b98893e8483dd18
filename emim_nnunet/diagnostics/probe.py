"""One evaluation of a network on a probe set: accumulates over batches what the other modules here compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from emim_nnunet.diagnostics.hypersphere import alignment, uniformity
from emim_nnunet.diagnostics.reconstruction import (
    constant_losses,
    position_sums,
    reconstruction_scores,
    reconstruction_sums,
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
        cell_size: Voxels of a mask cell per axis, to measure the losses of constant predictions too; None = they are not
            measured. They take three float64 values per voxel and modality of a patch and depend on the patches and masks
            alone.
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
        self._sums: Tensor | None = None
        self._positions: Tensor | None = None
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

    def update_reconstruction(self, prediction: Tensor, target: Tensor, counted: Tensor, foreground: Tensor) -> None:
        """Add the reconstruction of patches; the arguments are those of :func:`reconstruction_sums`."""
        sums = reconstruction_sums(prediction, target, counted, foreground)
        self._sums = sums if self._sums is None else self._sums + sums
        if self.cell_size is not None:
            positions = position_sums(target, counted)
            self._positions = positions if self._positions is None else self._positions + positions

    def measure(self) -> dict[str, Any]:
        """Compute all scores of what was added on all ranks, as plain numbers.

        Returns:
            ``num_patches``; ``reconstruction``, see :func:`reconstruction_scores`, or None for a network that reconstructs
            nothing; ``stages``, for each the scores of :func:`stage_scores` with ``uniformity`` and ``alignment`` of the
            centred features (alignment is NaN without masked features); ``constant_losses``, see :func:`constant_losses`, where
            they were asked for.

        Raises:
            ValueError: No patch was added on any rank.
        """
        pieces = gather_objects((self._num_patches, self._stages, self._pairs, self._sums, self._positions))
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
        sums, positions = (sum_of([piece[i] for piece in pieces]) for i in (3, 4))
        constants = {}
        if positions is not None:
            assert self.cell_size is not None  # positions are summed only then
            constants = {"constant_losses": constant_losses(positions, self.cell_size)}
        return constants | {
            "num_patches": sum(piece[0] for piece in pieces),
            "reconstruction": None if sums is None else reconstruction_scores(sums, self.channel_names),
            "stages": [self._stage(*stage) for stage in zip(stages, pairs, strict=True)],
        }

    @staticmethod
    def _stage(sums: CovarianceSums, pairs: dict[int, tuple[Tensor, Tensor]]) -> dict[str, Any]:
        ordered = [pairs[index] for index in sorted(pairs)]
        a, b = (torch.cat([pair[view] for pair in ordered]) - sums.mean for view in (0, 1))
        return stage_scores(sums) | {"uniformity": uniformity(a), "alignment": alignment(a[: len(b)], b)}


def sum_of(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Sum of the tensors that are not None; None where there are none."""
    present = [part for part in parts if part is not None]
    return torch.stack(present).sum(0) if present else None
