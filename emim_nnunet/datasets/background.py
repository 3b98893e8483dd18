"""The background of an image. Voxels that are 0 in all channels count as outside of the body, everywhere in this package.

Where the background is not 0, preprocessing looks for the body: :mod:`~emim_nnunet.datasets.body`.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd
from typing import NamedTuple

import numpy as np

DOMINATES = 1 / 3  # of the voxels have one value: that is no anatomy
# Noise: voxels that are nearly as dark as it gets and yet not 0. Images whose background is 0 have up to 4 % of them (open_ms,
# BraTS: fluid, edges), whole heads in noise 15 to 70 %; anatomy that fills the image has few of them at its border.
DARK, DARK_IN_IMAGE, DARK_AT_BORDER = 0.1, 1 / 4, 1 / 10
SAMPLE = 200_000


class Background(NamedTuple):
    """A background that is not 0.

    Attributes:
        value: That most voxels have; None = noise.
        share: Of the voxels that have it, or are noise.
    """

    value: float | None
    share: float

    def __str__(self) -> str:
        return f"{'noise' if self.value is None else f'{self.value:g}'} in {self.share:.0%} of the voxels"


def wrong_background(voxels: np.ndarray) -> Background | None:
    """A constant other than 0, or noise, around the body.

    Args:
        voxels: Image of two or three axes.

    Returns:
        None where the background is 0, or where there is none.
    """
    value = dominating_value(voxels)
    if value is not None and value != 0:
        return Background(value, float(np.mean(voxels == value)))
    low, high = np.percentile(_sample(voxels), (1, 99))
    dark = low + DARK * (high - low)
    share, at_border = (float(np.mean((part < dark) & (part != 0))) for part in (_sample(voxels), _border(voxels)))
    return Background(None, share) if share > DARK_IN_IMAGE and at_border > DARK_AT_BORDER else None


def dominating_value(voxels: np.ndarray) -> float | None:
    """The value that more than a third of the voxels have.

    Args:
        voxels: Array of any shape, not empty.

    Returns:
        The value; None where no value is so frequent.
    """
    sample = _sample(voxels)
    values, counts = np.unique(sample, return_counts=True)
    value = values[counts.argmax()]
    return value.item() if np.count_nonzero(voxels == value) > DOMINATES * voxels.size else None


def outside_value(voxels: np.ndarray) -> float:
    """What belongs where an image ends: the value that dominates it, or its border; otherwise its darkest.

    Args:
        voxels: Image of two or three axes.

    Returns:
        A value that occurs in the image.
    """
    for part in (voxels, _border(voxels)):
        value = dominating_value(part)
        if value is not None:
            return value
    return voxels.min().item()


def background_remark(found: Mapping[str, Background], num_images: int) -> str:
    """One line about images whose background is not 0.

    Args:
        found: Name of an image -> its background; at least one.
        num_images: Number of images that were looked at, at least as many.
    """
    worst = max(found, key=lambda name: found[name].share)
    return (
        f"the background of {len(found)} of {num_images} images is not 0 (most in {worst}: {found[worst]}), so air counts in "
        f"normalisation and segmentation, and in crops, masks and losses where preprocessing does not find the body"
    )


def _sample(voxels: np.ndarray) -> np.ndarray:
    """Evenly spaced voxels, in steps that meet all places of every axis."""
    step = max(1, voxels.size // SAMPLE)
    while any(gcd(step, n) > 1 for n in voxels.shape):
        step += 1
    return voxels.reshape(-1)[::step]


def _border(voxels: np.ndarray) -> np.ndarray:
    """The outermost voxels; axes of one or two voxels (slices) have none."""
    axes = [axis for axis, n in enumerate(voxels.shape) if n > 2]
    faces = [np.take(voxels, place, axis).reshape(-1) for axis in axes for place in (0, -1)]
    return np.concatenate(faces) if faces else voxels.reshape(-1)
