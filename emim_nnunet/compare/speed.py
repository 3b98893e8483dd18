"""How fast the fine-tuning learns, by the Dice that nnU-Net logs after every epoch."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from emim_nnunet.checkpoints.io import read_checkpoint
from emim_nnunet.compare.arms import SCRATCH
from emim_nnunet.compare.protocol import decisive
from emim_nnunet.training.checkpoint import FINAL

TARGET = 0.9  # share of scratch's Dice at its end
SMOOTH = "ema_fg_dice"  # nnU-Net's moving average of the pseudo Dice, in its logging


def read_curves(files: Sequence[tuple[dict[str, Any], Path]]) -> list[dict[str, Any]]:
    """Read the curves of the fine-tunings from nnU-Net's final checkpoints.

    Args:
        files: See :meth:`Commands.score_files`.

    Returns:
        A row per training of the evaluation that is :func:`.decisive` whose checkpoint is still there: the keys of the dict,
        and ``dice``, nnU-Net's moving average of the pseudo Dice (on patches of the test cases) after each epoch.
    """
    rows = []
    evaluation = decisive({about["evaluation"] for about, _ in files})
    for about, file in files:
        checkpoint = file.parent.parent / FINAL
        if about["evaluation"] == evaluation and checkpoint.is_file():
            values = read_checkpoint(checkpoint, mapped=True)["logging"][SMOOTH]
            rows.append(about | {"dice": [float(value) for value in values]})
    return rows


def share_until(curve: Sequence[float], target: float) -> float:
    """Share of the epochs after which a curve first reaches a target; infinite where it never does."""
    reached = np.flatnonzero(np.asarray(curve) >= target)
    return (int(reached[0]) + 1) / len(curve) if len(reached) else float("inf")


def speed_rows(curves: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compute how fast each arm reaches 90 % of the Dice at the end of scratch's training of the same draw.

    Args:
        curves: The rows of :func:`read_curves`.

    Returns:
        A row per number of labelled cases and arm: ``quarter``, ``half`` and ``end``, the mean Dice there; where scratch was
        run, ``share`` of the epochs in the median draw (infinite: not reached in most) and ``reached`` of how many ``draws``.
    """
    ends = {(row["labelled"], row["draw"]): row["dice"][-1] for row in curves if row["arm"] == SCRATCH}
    rows = []
    for labelled, arm in dict.fromkeys((row["labelled"], row["arm"]) for row in curves):
        own = [row for row in curves if (row["labelled"], row["arm"]) == (labelled, arm)]
        row = {"labelled": labelled, "arm": arm, "draws": len(own)}
        for name, share in (("quarter", 0.25), ("half", 0.5), ("end", 1.0)):
            row[name] = float(np.mean([curve["dice"][ceil(share * len(curve["dice"])) - 1] for curve in own]))
        paired = [(c["dice"], ends[labelled, c["draw"]]) for c in own if (labelled, c["draw"]) in ends]
        if paired:
            shares = [share_until(dice, TARGET * end) for dice, end in paired]
            row |= {"share": float(np.quantile(shares, 0.5, method="inverted_cdf")), "draws": len(paired)}
            row["reached"] = int(np.isfinite(shares).sum())
        rows.append(row)
    return rows
