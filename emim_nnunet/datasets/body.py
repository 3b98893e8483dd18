"""The body in images whose background is not 0: nnU-Net takes all of such an image for it.

A mask per case, made once at preprocessing and kept beside the preprocessed cases, see
:func:`~emim_nnunet.datasets.preprocessed.body_folder`. Images with a background of 0 need none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import blosc2
import numpy as np
from scipy.ndimage import binary_dilation, binary_erosion, binary_fill_holes, generate_binary_structure, label
from skimage.filters import threshold_otsu

from emim_nnunet.datasets.preprocessed import OUTSIDE, body_file, open_case
from emim_nnunet.errors import listed

# Otsu's threshold halves the way between air and bright tissue; what is darker than that is mostly still tissue
SHARE_OF_OTSU = 0.6
MIN_SHARE, MAX_SHARE = 0.05, 0.95  # of the volume; what is found beyond is no body
RADIUS = 1 / 64  # of closing and opening, in shorter sides of a slice: gaps and specks of noise are smaller


def find_body(image: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The body: the largest bright region in the sum of all channels, without holes.

    Each channel is scaled to 0 .. 1 between its percentiles 1 and 99. Of the sum, what is above 0.6 of Otsu's threshold (IEEE
    Trans SMC 1979) is closed and opened in each slice, and the largest component is kept. Holes are filled before the
    opening, which tears the thin skin before a sinus, and at the end; in each slice, because the ends of the volume open many
    of them.

    Args:
        image: (C, *shape) float, three axes, the first across the slices.
        inside: (*shape) bool, what nnU-Net takes for the body; nothing else is looked at.

    Returns:
        (*shape) bool, nowhere beyond ``inside``; empty where nothing stands out.
    """
    total = np.zeros(inside.shape, dtype=np.float32)
    for channel in image:
        low, high = np.percentile(channel[inside], (1, 99)) if inside.any() else (0.0, 0.0)
        if high > low:  # otherwise the channel is missing
            total += np.clip((channel - low) / (high - low), 0, 1)
    values = total[inside]
    if values.size == 0 or values.min() == values.max():
        return np.zeros_like(inside)
    body = _opened(_filled(_closed((total > SHARE_OF_OTSU * _otsu(values)) & inside)))
    regions, count = label(body)
    if count > 1:
        body = regions == 1 + np.bincount(regions.ravel())[1:].argmax()
    return _filled(body) & inside


def _otsu(values: np.ndarray) -> float:
    """Otsu's threshold as the middle between the means of both classes: scikit-image takes the lowest of equally good ones,
    which is the brightest noise where few voxels are between noise and tissue.
    """
    bright = values > threshold_otsu(values)
    return float(values[bright].mean() + values[~bright].mean()) / 2


def _filled(body: np.ndarray) -> np.ndarray:
    return np.stack([binary_fill_holes(part) for part in body])


def _closed(body: np.ndarray) -> np.ndarray:
    return _eroded(_dilated(body))


def _opened(body: np.ndarray) -> np.ndarray:
    return _dilated(_eroded(body))


def _dilated(body: np.ndarray) -> np.ndarray:
    return binary_dilation(body, _in_slice(), _radius(body))


def _eroded(body: np.ndarray) -> np.ndarray:
    return binary_erosion(body, _in_slice(), _radius(body), border_value=1)  # a body goes on beyond the image


def _in_slice() -> np.ndarray:
    return generate_binary_structure(2, 1)[None]


def _radius(body: np.ndarray) -> int:
    return max(1, round(RADIUS * min(body.shape[1:])))


def write_body(folder: Path, identifier: str) -> float:
    """Find the body of a preprocessed case, and keep it if it is one.

    Args:
        folder: Of preprocessed cases.
        identifier: Case id.

    Returns:
        Share of the volume that was found; nothing is written below 0.05 and above 0.95.
    """
    image, seg = open_case(folder, identifier)
    body = find_body(np.asarray(image), np.asarray(seg)[0] != OUTSIDE)
    share = float(body.mean())
    if is_sensible(share):
        file = body_file(folder, identifier)
        file.parent.mkdir(parents=True, exist_ok=True)
        layout = {"chunks": seg.chunks, "blocks": seg.blocks} if isinstance(seg, blosc2.NDArray) else {}
        blosc2.asarray(body[None], urlpath=str(file), mode="w", cparams={"nthreads": 1}, **layout)
    return share


def is_sensible(share: float) -> bool:
    """Whether a body may fill this share of the volume."""
    return MIN_SHARE <= share <= MAX_SHARE


def body_remarks(shares: Mapping[str, float]) -> list[str]:
    """What was found, in one line or two.

    Args:
        shares: Case id -> share of the volume, of all cases in which a body was looked for.
    """
    found = sorted(share for share in shares.values() if is_sensible(share))
    without = sorted(case for case, share in shares.items() if not is_sensible(share))
    lines = []
    if found:
        lines.append(
            f"The body was found in {len(found)} of {len(shares)} cases whose background is not 0; it fills {found[0]:.0%} to "
            f"{found[-1]:.0%} of the volume (median {found[len(found) // 2]:.0%}), and SSL stages count nothing else"
        )
    if without:
        lines.append(
            f"WARNING: no body was found in {len(without)} of {len(shares)} cases whose background is not 0 (what stands out "
            f"is less than {MIN_SHARE:.0%} or more than {MAX_SHARE:.0%} of the volume), so everything counts there: "
            f"{listed(without)}"
        )
    return lines
