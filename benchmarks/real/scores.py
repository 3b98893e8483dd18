"""How an arm is compared with another one: in the draws that both have, patient by patient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import wilcoxon

from emim_nnunet.compare.scores import interval


def end_dice(group: Sequence[dict[str, Any]]) -> np.ndarray:
    """Dice at the end, (draws, test patients)."""
    return np.array([list(row["dice"].values())[-1] for row in sorted(group, key=lambda row: row["draw"])])


def steps_ratio(group: Sequence[dict[str, Any]], scratch: Sequence[dict[str, Any]]) -> float | None:
    """Share of the steps of scratch after which an arm's mean Dice is first that of scratch at the end.

    None = never, or no steps.
    """
    if group[0]["evaluation"] == "linear":
        return None
    steps = [int(step) for step in group[0]["dice"]]
    course = np.array([[np.mean(dice) for dice in row["dice"].values()] for row in group]).mean(0)
    wanted = np.mean([np.mean(list(row["dice"].values())[-1]) for row in scratch])
    reached = [step / scratch[0]["steps"] for step, dice in zip(steps, course, strict=True) if dice >= wanted]
    return min(reached, default=None)


def compared(group: Sequence[dict[str, Any]], scratch: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """An arm against scratch in the draws that both have.

    Args:
        group: The rows of the arm.
        scratch: Those of scratch.

    Returns:
        ``difference`` of the Dice at the end with the interval ``low`` to ``high`` (95 %, bootstrap over draws and test
        patients), ``draws``, ``seeds`` of pretraining, ``p`` (Wilcoxon, draws as pairs; None without any) and
        ``steps_ratio``, see :func:`steps_ratio`.
    """
    draws = sorted({row["draw"] for row in group} & {row["draw"] for row in scratch})
    ours, theirs = ([row for row in rows if row["draw"] in draws] for rows in (group, scratch))
    difference = end_dice(ours) - end_dice(theirs)
    mean, low, high = interval(difference)
    per_draw = difference.mean(1)
    p = float(wilcoxon(per_draw).pvalue) if len(draws) > 1 and per_draw.any() else None
    seeds = len({row["stage"] for row in ours})
    found = {"difference": mean, "low": low, "high": high, "draws": len(draws), "seeds": seeds, "p": p}
    return found | {"steps_ratio": steps_ratio(ours, theirs)}


def decimal(value: float | None, digits: int = 3) -> str:
    """A number of a table; n/a where there is none."""
    return "n/a" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"
