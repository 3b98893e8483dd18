"""What pretraining is worth in labelled cases: where the curve of training from scratch reaches the Dice of another arm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.isotonic import isotonic_regression

from emim_nnunet.bootstrap import bootstrap_interval
from emim_nnunet.compare.arms import SCRATCH
from emim_nnunet.compare.protocol import decisive
from emim_nnunet.compare.scores import RESAMPLES, mean_dice


def labelled_equivalents(dice: np.ndarray, scratch: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Find the numbers of labelled cases with which training from scratch reaches each Dice.

    The curve of scratch is made to rise (isotonic regression) and is interpolated on the logarithm of the number.

    Args:
        dice: (...) the Dice to reach.
        scratch: (counts,) the Dice of training from scratch.
        counts: Numbers of labelled cases, rising, at least two.

    Returns:
        (...) the numbers; half the smallest of ``counts`` where the Dice lies below the curve, twice the largest where it lies
        above; NaN where a Dice is undefined.
    """
    if not np.isfinite(scratch).all():
        return np.full(np.shape(dice), np.nan)
    curve, places = isotonic_regression(scratch), np.log2(counts)
    after = np.searchsorted(curve, dice)  # the first that reaches it
    right, left = np.clip(after, 1, len(curve) - 1), np.clip(after - 1, 0, len(curve) - 2)
    with np.errstate(invalid="ignore", divide="ignore"):  # where the curve is level, which is not looked at
        found = places[left] + (places[right] - places[left]) * (dice - curve[left]) / (curve[right] - curve[left])
    found = np.where(after == 0, places[0], found)
    found = np.where(dice < curve[0], places[0] - 1, np.where(dice > curve[-1], places[-1] + 1, found))
    return np.where(np.isfinite(dice), np.exp2(found), np.nan)


def worth(scores: Sequence[dict[str, Any]], counts: Sequence[int], seed: int = 0) -> list[dict[str, Any]]:
    """Compute what the labelled cases of each pretrained arm are worth from scratch, with 95 % intervals.

    Draws and test cases are drawn with replacement, the same ones for all arms and numbers.

    Args:
        scores: The rows of :func:`read_scores`.
        counts: The numbers of labelled cases, rising.
        seed: Seed of the bootstrap.

    Returns:
        A row per pretrained arm and number of labelled cases, of the evaluation that is :func:`.decisive`: ``arm``,
        ``labelled``, ``worth``, ``low``, ``high``, see :func:`labelled_equivalents`. None without scratch or with a single
        number.
    """
    evaluation = decisive({row["evaluation"] for row in scores})
    arms = list(dict.fromkeys(row["arm"] for row in scores if row["evaluation"] == evaluation))
    if evaluation is None or SCRATCH not in arms or len(counts) < 2:
        return []
    tables = np.array([[mean_dice(scores, evaluation, count, arm) for count in counts] for arm in arms])
    _, _, draws, cases = tables.shape
    reference, others = arms.index(SCRATCH), [place for place, arm in enumerate(arms) if arm != SCRATCH]

    def equivalents(chosen: np.ndarray) -> np.ndarray:
        known = np.isfinite(chosen)
        with np.errstate(invalid="ignore"):  # no test case in this sample
            means = np.where(known, chosen, 0).sum((2, 3)) / known.sum((2, 3))
        return np.log2(labelled_equivalents(means[others].ravel(), means[reference], counts))

    def resampled(rng: np.random.Generator) -> np.ndarray:
        chosen = tables[:, :, rng.integers(draws, size=draws)]
        return equivalents(chosen[..., rng.integers(cases, size=cases)])

    if not others:
        return []
    numbers = np.exp2([equivalents(tables), *bootstrap_interval(resampled, RESAMPLES, seed)]).T
    about = [(arms[place], count) for place in others for count in counts]
    return [
        {"arm": arm, "labelled": count, "worth": float(middle), "low": float(low), "high": float(high)}
        for (arm, count), (middle, low, high) in zip(about, numbers, strict=True)
    ]
