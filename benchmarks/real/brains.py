"""MRI of brains with known truth, as many as wanted: four contrasts drawn on real anatomies (maps of SynthSeg, Apache-2.0).

    python benchmarks/real/brains.py FOLDER      80 subjects in the files that run.py takes with --data FOLDER

The shapes are those of 20 adults, so that a network has to learn anatomy; what is drawn on them is random: tissue brightness
around real relations, texture that all contrasts share in part, partial volume, bias field, noise, deformation, sides. White
matter lesions are those of the maps, and more are added where such lesions lie. Cite Billot et al., Medical Image Analysis
2023, 10.1016/j.media.2023.102789, for the maps and for the idea of drawing images on them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter, map_coordinates, zoom
from tqdm import tqdm

from emim_nnunet.storage.files import write_json

MAPS = Path(__file__).resolve().parents[3] / "shared" / "data" / "synthseg_maps"
CONTRASTS = ("T1", "T1ce", "T2", "FLAIR")
LESION = "lesion"
# brightness of T1, T1ce, T2, FLAIR; their order within a contrast is that of textbooks (lesions: bright in T2 and FLAIR)
TISSUES: dict[str, tuple[float, float, float, float]] = {
    "white matter": (900, 900, 330, 430),
    "grey matter": (600, 620, 520, 590),
    "deep grey matter": (690, 700, 440, 520),
    "pallidum": (800, 800, 300, 420),
    "brain stem": (820, 820, 380, 470),
    "cerebellar cortex": (580, 610, 500, 560),
    "fluid": (180, 180, 1000, 130),
    "vessel": (450, 1100, 300, 350),
    LESION: (560, 580, 760, 950),
    "head": (650, 680, 420, 480),
}
IDS = {
    "white matter": (2, 7, 41, 46, 85),
    "grey matter": (3, 17, 18, 42, 53, 54),
    "deep grey matter": (10, 11, 12, 26, 28, 49, 50, 51, 58, 60),
    "pallidum": (13, 52),
    "brain stem": (16,),
    "cerebellar cortex": (8, 47),
    "fluid": (4, 5, 14, 15, 24, 43, 44, 72, 136, 137, 163, 164),
    "vessel": (30, 31, 62),
    LESION: (25, 57),
}
NAMES = list(TISSUES)
CEREBRAL_WHITE_MATTER = (2, 41)
VENTRICLES = (4, 5, 43, 44)
OF_A_SUBJECT = 0.06  # standard deviation of a tissue's brightness between subjects, as a share of it
TEXTURE, SHARED = 0.05, 0.7  # within a tissue, and the part of its variance that all contrasts have in common
BIAS, NOISE = 0.15, 0.03  # of the logarithm; of the brightness of white matter in T1
DISPLACEMENT, SMOOTHNESS = 3.0, 14.0  # of the elastic deformation, mm
NEAR_VENTRICLES = 14.0  # voxels, where lesions are added
ADDED_LESIONS = 6  # at most
PER_ANATOMY = 4
IN_PLANE, PER_SLICE = 2.0, 3  # mm; voxels of that size that a slice is thick


def main() -> None:
    """Draw subjects on every label map."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write; subjects that are there stay")
    parser.add_argument("--maps", type=Path, default=MAPS, help="label maps (default: ../shared/data/synthseg_maps)")
    arguments = parser.parse_args()
    files = sorted(arguments.maps.glob("*.nii.gz"))
    if not files:
        parser.error(f"no label maps in {arguments.maps}: give the folder with --maps")
    for anatomy, file in enumerate(tqdm(files, mininterval=5), start=1):
        labels = read_map(file)
        for number in range(PER_ANATOMY):
            write_subject(labels, PER_ANATOMY * anatomy + number, f"drawn_{anatomy:02d}_{number}", arguments.folder)


def write_subject(
    labels: np.ndarray, seed: int, name: str, folder: Path, *, spacing: float = IN_PLANE, per_slice: int = PER_SLICE
) -> None:
    """Draw a subject and write it in the layout of the LGG patients, see :func:`data.prepare`; in thick slices, as theirs are.

    Args:
        labels: See :func:`make_brain`.
        seed: Likewise.
        name: The name of the subject, ``drawn_<anatomy>_<number>``.
        folder: Gets a folder of that name with the files ``<name>_<contrast>.nii.gz`` and ``<name>_mask.nii.gz``, and the
            volume of the ventricles in ``about.json``.
        spacing: Voxel size in mm.
        per_slice: Voxels of that size that a slice is thick.
    """
    target = folder / name
    if target.is_dir():
        return
    partial = target.with_name(f"{name}.part")
    partial.mkdir(parents=True, exist_ok=True)
    labels = _around_brain(labels)
    image, lesion = make_brain(labels, seed, spacing=spacing)
    voxels = dict(zip(CONTRASTS, image, strict=True)) | {"mask": lesion.astype(np.float32)}
    for kind, volume in voxels.items():
        whole = volume[: len(volume) // per_slice * per_slice]
        slices = whole.reshape(-1, per_slice, *volume.shape[1:]).mean(1)
        written = sitk.GetImageFromArray((slices > 0.5).astype(np.uint8) if kind == "mask" else slices)
        written.SetSpacing((spacing, spacing, spacing * per_slice))
        sitk.WriteImage(written, partial / f"{name}_{kind}.nii.gz")
    ventricles = np.isin(anatomy(labels, seed)[0], VENTRICLES).sum() / 1000  # voxels are 1 mm
    write_json(partial / "about.json", {"ventricles_ml": float(ventricles)})
    partial.rename(target)


def read_map(file: Path) -> np.ndarray:
    """A label map of the shared data, (z, y, x) int."""
    return sitk.GetArrayFromImage(sitk.ReadImage(file)).astype(np.int16)


def make_brain(
    labels: np.ndarray, seed: int, *, spacing: float = 1.0, skull: bool = False, displacement: float = DISPLACEMENT
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a subject on a label map.

    Args:
        labels: (z, y, x) FreeSurfer ids at 1 mm.
        seed: Seed of everything random.
        spacing: Voxel size in mm, at least 1: voxels are averages of what they hold (partial volume).
        skull: Whether the head around the brain is drawn, with noise around it; if not, everything outside the brain is 0.
        displacement: Standard deviation of the elastic deformation, in mm.

    Returns:
        Image (4, *shape) float32 >= 0, in the order of :data:`CONTRASTS`, and lesions (*shape) uint8, 0 or 1.
    """
    labels, rng = anatomy(labels, seed, displacement)
    tissue = _tissues(labels)
    _add_lesions(tissue, labels, rng)
    brain = (tissue >= 0) & (tissue != NAMES.index("head"))
    drawn = tissue >= 0 if skull else brain
    brightness = np.array(list(TISSUES.values())).T  # contrasts x tissues
    brightness = brightness * (1 + OF_A_SUBJECT * rng.standard_normal(brightness.shape))
    common = _field(tissue.shape, 1.0, rng)
    shape = [max(1, round(size / spacing)) for size in tissue.shape]
    body = resampled(drawn.astype(np.float32), shape) > 0.5
    channels = []
    for values in brightness:
        texture = np.sqrt(SHARED) * common + np.sqrt(1 - SHARED) * _field(tissue.shape, 1.0, rng)
        image = np.where(drawn, values[tissue] * (1 + TEXTURE * texture), 0.0)
        image = resampled(image.astype(np.float32), shape)
        image *= np.exp(BIAS * _field(image.shape, 40 / spacing, rng))
        noise = NOISE * TISSUES["white matter"][0] * rng.standard_normal((2, *image.shape))
        image = np.hypot(image + noise[0], noise[1])  # magnitude images: Rician noise
        channels.append(image if skull else image * body)
    lesions = resampled((tissue == NAMES.index(LESION)).astype(np.float32), shape) > 0.5
    return np.stack(channels).astype(np.float32), (lesions & body).astype(np.uint8)


def anatomy(
    labels: np.ndarray, seed: int, displacement: float = DISPLACEMENT
) -> tuple[np.ndarray, np.random.Generator]:
    """The label map that :func:`make_brain` draws a subject on, and the generator that draws the rest; arguments are its."""
    rng = np.random.default_rng(seed)
    return _deformed(labels[:, :, ::-1] if rng.random() < 0.5 else labels, displacement, rng), rng


def _around_brain(labels: np.ndarray) -> np.ndarray:
    """The part of a map that holds the brain wherever the deformation moves it; heads have much around it."""
    tissue = _tissues(labels)
    places = np.argwhere((tissue >= 0) & (tissue != NAMES.index("head")))
    low, high = places.min(0), places.max(0) + 1
    margin = round(4 * DISPLACEMENT)
    return labels[tuple(slice(max(0, a - margin), b + margin) for a, b in zip(low, high, strict=True))]


def _tissues(labels: np.ndarray) -> np.ndarray:
    """Index into :data:`NAMES` of every voxel, -1 outside the head."""
    tissue = np.where(labels > 0, NAMES.index("head"), -1).astype(np.int8)
    for name, ids in IDS.items():
        tissue[np.isin(labels, ids)] = NAMES.index(name)
    return tissue


def _deformed(labels: np.ndarray, displacement: float, rng: np.random.Generator) -> np.ndarray:
    """The labels after a smooth random displacement of that standard deviation."""
    places = np.stack(np.meshgrid(*map(np.arange, labels.shape), indexing="ij")).astype(np.float32)
    for axis in range(3):
        places[axis] += displacement * _field(labels.shape, SMOOTHNESS, rng)
    return map_coordinates(labels, places, order=0, mode="constant")


def _add_lesions(tissue: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> None:
    """Ellipsoids with ragged borders in the white matter of the cerebrum, near the ventricles, as such lesions lie."""
    white = np.isin(labels, CEREBRAL_WHITE_MATTER)
    candidates = binary_erosion(white, iterations=2)
    fluid = np.isin(labels, (4, 43))
    if fluid.any():
        candidates &= distance_transform_edt(~fluid) < NEAR_VENTRICLES
    places = np.argwhere(candidates)
    if not len(places):
        return
    for _ in range(rng.integers(ADDED_LESIONS + 1)):
        middle, radii = places[rng.integers(len(places))], rng.uniform(2.0, 7.0, 3)
        box = tuple(slice(max(0, int(m - 2 * r)), int(m + 2 * r) + 1) for m, r in zip(middle, radii, strict=True))
        axes = [np.arange(b.start, b.start + n) for b, n in zip(box, tissue[box].shape, strict=True)]
        grid = np.meshgrid(*axes, indexing="ij")
        away = sum(((g - m) / r) ** 2 for g, m, r in zip(grid, middle, radii, strict=True))
        inside = away + 0.4 * _field(away.shape, 1.5, rng) < 1
        tissue[box][inside & white[box]] = NAMES.index(LESION)


def _field(shape: Sequence[int], smoothness: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth random field of mean 0 and standard deviation 1, drawn on a coarser grid where it is very smooth."""
    factor = max(1.0, smoothness / 2)
    coarse = [max(4, round(size / factor)) for size in shape]
    field = gaussian_filter(rng.standard_normal(coarse), smoothness / factor)
    field = zoom(
        field, [size / c for size, c in zip(shape, coarse, strict=True)], order=1, grid_mode=True, mode="nearest"
    )
    return ((field - field.mean()) / max(field.std(), 1e-6)).astype(np.float32)


def resampled(image: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Coarser voxels, each the weighted average of those that it covers."""
    factors = [size / new for size, new in zip(image.shape, shape, strict=True)]
    if max(factors) <= 1:
        return image
    blurred = gaussian_filter(image, [0.4 * factor if factor > 1 else 0 for factor in factors])
    return zoom(blurred, [1 / factor for factor in factors], order=1, grid_mode=True, mode="nearest")


if __name__ == "__main__":
    main()
