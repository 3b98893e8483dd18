"""What a comparison could have seen: the paired differences of its draws, and the smallest effect that they would show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import optimize, stats

from emim_nnunet.compare.arms import SCRATCH
from emim_nnunet.compare.scores import mean_dice

LEVEL, POWER = 0.05, 0.8


def detectable(number: int) -> float:
    """Compute the smallest difference, in standard deviations, that a paired two-sided t-test at 5 % finds in 80 % of cases.

    With many pairs it is the root of 7.85 / number (Cohen 1988, chapter 2).

    Args:
        number: Number of pairs, at least 2.
    """
    threshold = stats.t.ppf(1 - LEVEL / 2, number - 1)

    def missing(effect: float) -> float:
        return stats.nct.sf(threshold, number - 1, effect * np.sqrt(number)) - POWER

    return float(optimize.brentq(missing, 0.0, 40.0))


def draw_differences(
    scores: Sequence[dict[str, Any]], evaluation: str, labelled: int, arm: str, reference: str
) -> np.ndarray:
    """Compute the paired difference of each draw: the mean over its test cases of the difference of Dice.

    Args:
        scores: The rows of :func:`read_scores`.
        evaluation: The evaluation.
        labelled: The number of labelled training cases.
        arm: The name of the arm.
        reference: The name of the arm that is subtracted.

    Returns:
        (draws,) float in [-1, 1], without draws in which no difference is defined.
    """
    difference = mean_dice(scores, evaluation, labelled, arm) - mean_dice(scores, evaluation, labelled, reference)
    return np.array([np.nanmean(row) for row in difference if np.isfinite(row).any()])


def power_rows(scores: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compute what each comparison of an arm with scratch could have seen.

    Args:
        scores: The rows of :func:`read_scores`.

    Returns:
        A row per evaluation, number of labelled cases and pretrained arm, where scratch was run and there are two draws:
        ``draws``, ``sd`` of the paired differences, ``detectable`` and ``by_seed``, the mean difference of each seed.
    """
    groups = dict.fromkeys((row["evaluation"], row["labelled"], row["arm"]) for row in scores)
    rows = []
    for evaluation, labelled, arm in groups:
        if arm == SCRATCH or (evaluation, labelled, SCRATCH) not in groups:
            continue
        differences = draw_differences(scores, evaluation, labelled, arm, SCRATCH)
        if len(differences) < 2:
            continue
        spread = float(differences.std(ddof=1))
        by_seed = {}
        for seed in sorted({row["seed"] for row in scores}):
            own = draw_differences([row for row in scores if row["seed"] == seed], evaluation, labelled, arm, SCRATCH)
            by_seed[seed] = float(np.mean(own)) if len(own) else float("nan")
        about = {"evaluation": evaluation, "labelled": labelled, "arm": arm, "draws": len(differences)}
        rows.append(about | {"sd": spread, "detectable": spread * detectable(len(differences)), "by_seed": by_seed})
    return rows
