"""Bootstrap intervals: how much a score would change with other patients, cases or seeds."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

LEVEL = 0.95


def bootstrap_interval(
    statistic: Callable[[np.random.Generator], np.ndarray], resamples: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of statistics at a level of 95 % (Efron and Tibshirani 1993, chapter 13).

    Args:
        statistic: Draws a sample with replacement and gives (N,) float, NaN where it is undefined.
        resamples: How often it is asked.
        seed: Of the generator that it is given.

    Returns:
        Lower and upper ends, (N,) each; NaN where the statistic is never defined.
    """
    rng = np.random.default_rng(seed)
    samples = np.array([statistic(rng) for _ in range(resamples)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # never defined
        low, high = np.nanquantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high
