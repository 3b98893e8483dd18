"""Bootstrap intervals, which show how much a score would change with other patients, cases or seeds."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

LEVEL = 0.95


def bootstrap_interval(
    statistic: Callable[[np.random.Generator], np.ndarray], resamples: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Compute percentile intervals of statistics at a level of 95 % (Efron and Tibshirani 1993, chapter 13).

    Args:
        statistic: Draws a sample with replacement from the generator it gets, and returns (N,) float statistics of it, NaN
            where undefined.
        resamples: Number of samples to draw.
        seed: Seed of the generator.

    Returns:
        The lower ends (N,) and the upper ends (N,) of the intervals; NaN where a statistic is undefined in all samples.
    """
    rng = np.random.default_rng(seed)
    samples = np.array([statistic(rng) for _ in range(resamples)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a statistic that is undefined in all samples
        low, high = np.nanquantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high
