"""The reconstruction of each case: the sums of :mod:`.reconstruction`, kept apart by case."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from emim_nnunet.diagnostics.reconstruction import reconstruction_scores, reconstruction_sums
from emim_nnunet.distributed import gather_objects

CASE_SCORES = "case_scores.csv"  # the file that a stage leaves
KEPT = ("count", "loss", "collapsed_loss", "skill", "foreground_skill")


class CaseScores:
    """Accumulates over the batches of an evaluation; the result does not depend on batch size and number of ranks.

    The constant that skill is over is the best one for the case itself.

    Args:
        channel_names: The names of the C modalities.
    """

    def __init__(self, channel_names: Sequence[str]) -> None:
        self.channel_names = list(channel_names)
        self._sums: dict[str, list[Tensor]] = {}

    def add(self, cases: Sequence[str], prediction: Tensor, target: Tensor, counted: Tensor, body: Tensor) -> None:
        """Add a batch.

        Args:
            cases: Case id of each of the B samples.
            prediction: (B, C, *P) float, the reconstruction.
            target: (B, C, *P) float, what it is compared with.
            counted: (B, C, *P) bool, True where the loss counts a voxel.
            body: (B, 1, *P) bool, True inside the body.
        """
        for place, case in enumerate(cases):
            one = slice(place, place + 1)
            sums = reconstruction_sums(prediction[one], target[one], counted[one], body[one])
            self._sums.setdefault(case, []).append(sums)

    def rows(self) -> list[dict[str, Any]]:
        """The scores of what was added on all ranks, called on all of them: a row per case and modality, ``all`` = pooled."""
        total: dict[str, list[Tensor]] = {}
        for part in gather_objects(self._sums):
            for case, sums in part.items():
                total.setdefault(case, []).extend(sums)
        rows = []
        for case in sorted(total):
            scores = reconstruction_scores(torch.stack(total[case]).sum(0), self.channel_names)
            rows += [
                {"case": case, "modality": name} | {key: values[key] for key in KEPT} for name, values in scores.items()
            ]
        return rows
