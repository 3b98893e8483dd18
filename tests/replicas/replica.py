"""What a miniature data set is, and images for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

SHAPE = (6, 7, 8)  # z, y, x


def write(
    path: Path,
    voxels: np.ndarray | int = 1,
    *,
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0),
    origin: tuple[float, ...] = (0.0, -239.0, 0.0),
    shape: tuple[int, ...] = SHAPE,
) -> None:
    """An image whose voxels are a number everywhere inside (0 at the first plane), or an array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(voxels, int):
        voxels = inside(shape, voxels)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    sitk.WriteImage(image, str(path))


def inside(shape: tuple[int, ...], number: int) -> np.ndarray:
    """A number everywhere but in the first plane, which is 0."""
    voxels = np.zeros(shape, dtype=np.int16)
    voxels[1:] = number
    return voxels


def label(values: list[int], kind: Any = np.uint8, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """A segmentation that holds these values besides 0."""
    voxels = np.zeros(shape, dtype=kind)
    for number, value in enumerate(values):
        voxels[2 + number % 4, 2:5, 2:5] = value
    return voxels


@dataclass
class Replica:
    """A miniature data set.

    Attributes:
        build: Writes it into a folder.
        labelled: Case id -> values in the converted segmentation.
        unlabelled: Case ids.
        channels: Number that stands in the image of each channel of every case.
        options: Of the command.
        patients: Whether splits by patient must be there.
    """

    build: Callable[[Path], None]
    labelled: dict[str, list[int]] = field(default_factory=dict)
    unlabelled: list[str] = field(default_factory=list)
    channels: list[int] = field(default_factory=lambda: [1, 2, 3, 4])
    options: list[str] = field(default_factory=list)
    patients: bool = False


def suffixed(
    folder: Path, case: str, suffixes: dict[str, int | np.ndarray], separator: str, ending: str = ".nii.gz"
) -> None:
    for suffix, voxels in suffixes.items():
        write(folder / f"{case}{separator}{suffix}{ending}", voxels)
