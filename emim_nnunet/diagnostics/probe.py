"""One evaluation of a network on a probe set: thin accumulators around the functions beside this file."""

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

PAIRS_PER_PATCH = 16  # rows of a patch that uniformity and alignment look at


class CollapseProbe:
    """Sums over the patches of a probe set; the result is the same for every batch size and number of ranks.

    Args:
        mask_grid: Cells of the mask per axis: features are averaged over them.
        channel_names: C names of the modalities.
        seed: Decides which cells uniformity and alignment look at.
        cell_size: Voxels of a mask cell per axis, to measure the losses of the constant predictions too; that takes three
            float64 values per voxel and modality of a patch, and the result depends on the patches and masks alone.
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
        """Add patches.

        Args:
            indices: Number of each patch in the probe set.
            foreground: (B, 1, *P) bool.
            features: Stage outputs for the whole patch, (B, C_s, *S_s) each: what a downstream network will see.
            masked_features: Likewise for the masked patch, for the alignment of both.
            hidden: (B, C, *P) bool, which voxels are masked there.
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
        """Keep some rows of each patch, in both views; of a missing second view none."""
        starts = [0, *present.sum(1).cumsum(0).tolist()]
        for index, start, here, use in zip(indices, starts, present.cpu(), usable.cpu(), strict=False):
            candidates = use[here].nonzero().flatten()
            generator = seeded_generator(self.seed, Stream.PROBE, index)
            chosen = candidates[torch.randperm(len(candidates), generator=generator)[:PAIRS_PER_PATCH]] + start
            chosen = chosen.to(rows.device)
            kept[index] = (rows[chosen].cpu(), (rows[:0] if others is None else others[chosen]).cpu())

    def update_reconstruction(self, prediction: Tensor, target: Tensor, counted: Tensor, foreground: Tensor) -> None:
        """Add the reconstruction of patches; arguments as in :func:`reconstruction_sums`."""
        sums = reconstruction_sums(prediction, target, counted, foreground)
        self._sums = sums if self._sums is None else self._sums + sums
        if self.cell_size is not None:
            positions = position_sums(target, counted)
            self._positions = positions if self._positions is None else self._positions + positions

    def measure(self) -> dict[str, Any]:
        """All scores of what was added, on all ranks, as plain numbers.

        Returns:
            ``num_patches``; ``reconstruction``, of :func:`reconstruction_scores`, or None for a network that reconstructs
            nothing; ``stages``, a dict of :func:`stage_scores` each, with ``uniformity`` and ``alignment`` of the centred
            features besides (alignment NaN without masked features); ``constant_losses`` where asked for.

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
    """Sum of what is there; None of nothing."""
    present = [part for part in parts if part is not None]
    return torch.stack(present).sum(0) if present else None
