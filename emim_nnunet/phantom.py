"""Phantoms of a brain with glioma-like lesions in four modalities, computed from a seed: quick data for tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

MODALITIES = ("t1n", "t1c", "t2w", "t2f")
TRAINING_FOLDER = "ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData"
VALIDATION_FOLDER = "ASNR-MICCAI-BraTS2023-GLI-Challenge-ValidationData"
NECROSIS, OEDEMA, ENHANCING = 1, 2, 3
ORIGIN = (0.0, -239.0, 0.0)  # of BraTS images

# mean intensities of white matter, grey matter, CSF, necrosis, oedema, enhancing tumour, vessel
CONTRAST = {
    "t1n": (900, 700, 350, 480, 640, 690, 700),
    "t1c": (900, 710, 350, 470, 640, 1200, 1150),
    "t2w": (480, 640, 1250, 1080, 860, 790, 420),
    "t2f": (560, 690, 240, 470, 900, 800, 560),
}
NOISE = 45.0


def make_phantom(
    seed: int, shape: tuple[int, int, int] = (48, 48, 48), noise: float = NOISE
) -> tuple[np.ndarray, np.ndarray]:
    """Make a phantom: folded grey and white matter, ventricles, one or two tumours, vessels, bias field, noise and gain.

    Args:
        seed: Seed of everything random.
        shape: Number of voxels (D, H, W), at least 24 each.
        noise: Standard deviation of the noise in units of intensity; about 200 is as strong as the signal.

    Returns:
        The images (4, D, H, W) float32 in the order of :data:`MODALITIES`, >= 1 in the brain and 0 outside, and the label (D,
        H, W) uint8: 0 background, 1 necrotic core, 2 oedema, 3 enhancing tumour.
    """
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    size = np.array(shape)
    radii = np.array([0.86, 0.9, 0.76]) * rng.uniform(0.94, 1.05, 3)
    depth = 1 - np.sqrt(((grid / radii[:, None, None, None]) ** 2).sum(0)) + 0.05 * _smooth_noise(rng, size, 7)
    brain = depth > 0
    folds = _smooth_noise(rng, size, 2.4)
    grey = brain & ((depth < 0.14 + 0.09 * folds) | ((folds > 0.8) & (depth < 0.45)))
    offset = rng.uniform(0.12, 0.17)
    ventricle = sum(
        np.exp(-(((grid[0] - 0.05) / 0.24) ** 2 + (grid[1] / 0.36) ** 2 + ((grid[2] - side * offset) / 0.09) ** 2))
        for side in (-1, 1)
    )
    csf = brain & ((ventricle > 0.5 + 0.08 * folds) | (depth < 0.035))
    tissue = np.where(csf, 2, np.where(grey, 1, 0))
    vessel = brain & ~csf & (np.abs(_smooth_noise(rng, size, 3.0)) < 0.035) & (depth < 0.45)
    label = _tumours(rng, grid, depth, size)
    tissue = np.where(vessel, 6, tissue)
    for value, kind in ((NECROSIS, 3), (OEDEMA, 4), (ENHANCING, 5)):
        tissue = np.where(label == value, kind, tissue)
    images = [_image(rng, CONTRAST[m], tissue, brain, size, noise) for m in MODALITIES]
    return np.stack(images), label


def _smooth_noise(rng: np.random.Generator, size: np.ndarray, voxels: float) -> np.ndarray:
    """Smooth noise of mean 0 and standard deviation 1; ``voxels`` is its scale in a volume of 48 voxels per axis."""
    noise = gaussian_filter(rng.standard_normal(size), voxels * size / 48, mode="wrap")
    return (noise - noise.mean()) / noise.std()


def _tumours(rng: np.random.Generator, grid: np.ndarray, depth: np.ndarray, size: np.ndarray) -> np.ndarray:
    label = np.zeros(tuple(size), dtype=np.uint8)
    candidates = np.argwhere((depth > 0.25) & (depth < 0.6))
    for number in range(int(rng.integers(1, 3))):
        centre = candidates[rng.integers(len(candidates))] / (size - 1) * 2 - 1
        radius = rng.uniform(0.2, 0.3) if number == 0 else rng.uniform(0.12, 0.18)
        stretch = rng.uniform(0.8, 1.25, 3)
        distance = np.sqrt((((grid - centre[:, None, None, None]) * stretch[:, None, None, None]) ** 2).sum(0)) / radius
        distance = distance + 0.16 * _smooth_noise(rng, size, 2.6)
        inside = depth > 0.03
        label[inside & (distance < rng.uniform(1.45, 1.8)) & (label == 0)] = OEDEMA
        label[inside & (distance < 1.0)] = ENHANCING
        label[inside & (distance < rng.uniform(0.5, 0.7))] = NECROSIS
    return label


def _image(
    rng: np.random.Generator,
    contrast: tuple[int, ...],
    tissue: np.ndarray,
    brain: np.ndarray,
    size: np.ndarray,
    noise: float,
) -> np.ndarray:
    means = np.array(contrast) * rng.normal(1, 0.05, len(contrast))
    image = gaussian_filter(means[tissue], 0.55)  # partial volume
    image = image * (1 + 0.07 * _smooth_noise(rng, size, 2.0)) + noise * rng.standard_normal(tuple(size))
    image = image * np.exp(0.12 * _smooth_noise(rng, size, 14)) * rng.uniform(0.7, 1.5)
    return np.where(brain, np.maximum(image, 1), 0).astype(np.float32)


def write_brats2023(
    folder: Path,
    num_labelled: int,
    num_unlabelled: int,
    *,
    seed: int,
    shape: tuple[int, int, int] = (48, 48, 48),
    first_case: int = 1,
    noise: float = NOISE,
    draw: Callable[[int], tuple[np.ndarray, np.ndarray]] | None = None,
    spacing: float = 1.0,
) -> list[str]:
    """Write phantoms in the layout of BraTS 2023 GLI: labelled ones as training data, the others as validation data.

    Args:
        folder: The folder to write to; it is made when needed.
        num_labelled: Number of cases with a segmentation.
        num_unlabelled: Number of cases without segmentation.
        seed: Seed of the first phantom; each following one has the next seed.
        shape: Number of voxels (D, H, W).
        first_case: Number in the id of the first case.
        noise: Standard deviation of the noise, see :func:`make_phantom`.
        draw: Draws images and label from a seed in place of :func:`make_phantom`, which alone takes shape and noise.
        spacing: Voxel size in mm.

    Returns:
        The case ids, labelled cases first.
    """
    cases = []
    for number in range(num_labelled + num_unlabelled):
        labelled = number < num_labelled
        case = f"BraTS-GLI-{first_case + number:05d}-000"
        target = folder / (TRAINING_FOLDER if labelled else VALIDATION_FOLDER) / case
        target.mkdir(parents=True)
        images, label = draw(seed + number) if draw else make_phantom(seed + number, shape, noise)
        for modality, image in zip(MODALITIES, images, strict=True):
            _write(image.round().astype(np.int16), target / f"{case}-{modality}.nii.gz", spacing)
        if labelled:
            _write(label, target / f"{case}-seg.nii.gz", spacing)
        cases.append(case)
    return cases


def _write(voxels: np.ndarray, path: Path, spacing: float) -> None:
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing([spacing] * 3)
    image.SetOrigin(ORIGIN)
    sitk.WriteImage(image, str(path))
