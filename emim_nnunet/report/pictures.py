"""The reconstructions of a stage: each picture that it left is cut into its panels, which the page lays on each other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.image import imread
from scipy.ndimage import find_objects, label

from emim_nnunet.report.content import Flicker
from emim_nnunet.report.figures import jpeg_of

FILE = re.compile(r"epoch_(?P<epoch>\d+)_(?P<case>.+)\.png")
STATES = ("input", "masked input", "reconstruction", "input + reconstruction", "error")  # columns of such a picture
SMALLEST_PANEL = 24  # pixels
MAX_CASES = 6


def reconstruction_files(folder: Path) -> dict[int, dict[str, Path]]:
    """The pictures in the folder ``reconstructions`` of a stage: epoch -> case -> file."""
    found: dict[int, dict[str, Path]] = {}
    for file in sorted((folder / "reconstructions").glob("epoch_*.png")):
        match = FILE.fullmatch(file.name)
        if match:
            found.setdefault(int(match["epoch"]), {})[match["case"]] = file
    return found


def flickers_of(files: dict[str, Path], channels: Sequence[str], name_of: dict[str, str]) -> list[Flicker]:
    """The pictures of one epoch as states that can be laid on each other.

    Args:
        files: Case -> file.
        channels: Names of the modalities.
        name_of: Case -> what it is called on the page.

    Returns:
        One per case, of the first few; a picture that cannot be cut (of another version) is left out.
    """
    flickers = []
    for case, file in list(files.items())[:MAX_CASES]:
        rows = panels(imread(file)[..., :3])
        if len(rows) == len(channels):
            named = [(name, [jpeg_of(panel) for panel in row]) for name, row in zip(channels, rows, strict=True)]
            flickers.append(Flicker(name_of[case], named, STATES))
    return flickers


def panels(picture: np.ndarray) -> list[list[np.ndarray]]:
    """Cut a picture of :func:`emim_nnunet.training.plots.plot_reconstruction` into its panels.

    Panels are the large full rectangles on its background; whatever is written around them is neither large nor full.

    Args:
        picture: (H, W, 3) float in [0, 1].

    Returns:
        A list per modality with a panel (h, w, 3) per state, all of one size; empty where the picture is not as expected.
    """
    background = picture[0, 0]
    regions, _ = label(np.abs(picture - background).max(-1) > 1e-3)
    boxes = []
    for number, box in enumerate(find_objects(regions), 1):
        height, width = (part.stop - part.start for part in box)
        if min(height, width) >= SMALLEST_PANEL and (regions[box] == number).mean() > 0.9:
            boxes.append((box[0].start, box[1].start, height, width))
    if not boxes:
        return []
    # the scale of the errors is as high as a panel, but narrow
    widest = max(width for *_, width in boxes)
    boxes = sorted(box for box in boxes if box[3] > 0.7 * widest)
    if len(boxes) % len(STATES):
        return []
    rows = [sorted(boxes[i : i + len(STATES)], key=lambda b: b[1]) for i in range(0, len(boxes), len(STATES))]
    height, width = min(box[2] for box in boxes), min(box[3] for box in boxes)
    edge = 1  # pixels at the edge are mixed with the background
    return [[picture[y + edge : y + height - edge, x + edge : x + width - edge] for y, x, _, _ in row] for row in rows]
