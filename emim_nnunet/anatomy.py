"""Brains drawn by code, for the demo: folded cortex, ventricles, nuclei, cerebellum and gliomas in the contrasts of BraTS.

Every structure is a signed distance in mm, so its share of a voxel (the partial volume) follows from how far its surface is.
Sulci are the zeros of random waves of one wavelength, whose pattern looks like that of gyri. Nothing is copied from anybody's
scan: the shapes are textbook proportions, and a network that has learnt them knows nothing of patients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.ndimage import gaussian_filter

SHAPE, SPACING = (48, 60, 48), 3.0  # voxels (z, y, x), and their size in mm
NECROSIS, OEDEMA, ENHANCING = 1, 2, 3  # labels of BraTS 2023
# brightness in T1n, T1c, T2w, T2f; their order within a contrast is that of textbooks
TISSUES: dict[str, tuple[float, float, float, float]] = {
    "white matter": (900, 910, 420, 500),
    "grey matter": (620, 650, 660, 690),
    "deep grey matter": (700, 730, 570, 620),
    "pallidum": (820, 840, 380, 470),
    "fluid": (260, 270, 1300, 180),
    "vessel": (420, 1150, 260, 300),
    "necrosis": (420, 440, 1080, 480),
    "oedema": (640, 650, 930, 960),
    "enhancing": (630, 1180, 770, 800),
}
NAMES = list(TISSUES)
OF_A_SUBJECT = 0.05  # standard deviation of a tissue's brightness between subjects, as a share of it
TEXTURE, SHARED = 0.06, 0.7  # within a tissue, and the part of its variance that all contrasts have in common
BIAS, NOISE = 0.12, 0.03  # of the logarithm; of the brightness of white matter in T1n
DOME = (65, 81, 65)  # radii of the cerebrum, mm
CORTEX, SULCUS = 4.2, 0.9  # thickness of the grey matter and half the width of a sulcus, mm
# of each hemisphere: tissue, centre and radii in mm (left-right, front-back, down-up; 0 is the middle of the brain)
NUCLEI = (
    ("deep grey matter", (13, -24, 9), (5, 12, 8)),  # caudate
    ("deep grey matter", (26, -6, 1), (6, 17, 10)),  # putamen
    ("pallidum", (19, -3, -1), (4, 9, 7)),
    ("deep grey matter", (10.5, 15, 4), (8.5, 14, 9)),  # thalamus
)
# middle line of a lateral ventricle with its radius: frontal horn, body, atrium, occipital horn; atrium, temporal horn
VENTRICLES = (
    ((5.5, -34, 7, 4.0), (7, -14, 16, 5.0), (12, 12, 19, 5.0), (23, 32, 8, 6.5), (21, 52, 2, 2.5)),
    ((23, 32, 8, 6.0), (32, 14, -14, 3.0), (31, -8, -20, 2.5)),
)


def make_brain(
    seed: int, shape: tuple[int, int, int] = SHAPE, spacing: float = SPACING
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the skull-stripped brain of a patient with one or two gliomas.

    Args:
        seed: Seed of everything random.
        shape: Number of voxels (D, H, W) = down-up, front-back, left-right. 144 x 180 x 144 mm hold every brain.
        spacing: Voxel size in mm.

    Returns:
        The images (4, D, H, W) float32 in the order of :data:`.phantom.MODALITIES`, >= 1 in the brain and 0 outside, and the
        label (D, H, W) uint8: 0 background, 1 necrotic core, 2 oedema, 3 enhancing tumour.
    """
    rng = np.random.default_rng(seed)
    axes = [(np.arange(n, dtype=np.float32) - (n - 1) / 2) * spacing for n in shape]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    size = rng.normal(1, 0.025, 3).clip(0.95, 1.05).reshape(3, 1, 1, 1)
    places = (np.stack([x, y, z]) / size).astype(np.float32)
    brain = _parts(_mirrored(places))["hull"] < 1.5
    places = places[:, brain]  # (3, voxels of the brain) from here on
    bent = places + np.stack([1.5 * make_waves(rng, 90, 6)(places) for _ in range(3)])  # makes sides differ a little
    drawing = _Drawing(spacing, np.zeros((len(NAMES), places.shape[1]), dtype=np.float32))
    _draw_cerebrum(drawing, bent, rng)
    _draw_deep(drawing, bent, rng)
    _draw_below(drawing, bent, rng)
    label = np.zeros(shape, dtype=np.uint8)
    label[brain] = _draw_gliomas(drawing, places, rng)
    return _images(drawing, places, brain, rng), label


class Waves:
    """A random field of mean 0 and standard deviation 1: a sum of plane waves of one wavelength in random directions.

    Args:
        vectors: (n, 3) wave vectors in 1/mm.
        phases: (n,) phases.
    """

    def __init__(self, vectors: np.ndarray, phases: np.ndarray) -> None:
        self.vectors, self.phases = vectors, phases

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """The field at places (3, n) in mm."""
        return np.cos(self._angles(places)).sum(0) * math.sqrt(2 / len(self.phases))

    def distance(self, places: np.ndarray) -> np.ndarray:
        """About how far in mm the places (3, n) are from where the field is 0: its value over its slope."""
        angles = self._angles(places)
        slope = np.sqrt(((self.vectors.T @ np.sin(angles)) ** 2).sum(0))
        usual = math.sqrt(len(self.phases) / 2) * float(np.linalg.norm(self.vectors[0]))
        return np.abs(np.cos(angles).sum(0)) / np.maximum(slope, 0.4 * usual)

    def _angles(self, places: np.ndarray) -> np.ndarray:
        return self.vectors @ places + self.phases[:, None]


def make_waves(rng: np.random.Generator, wavelength: float, number: int = 12) -> Waves:
    """Draw waves of a wavelength in mm."""
    vectors = rng.standard_normal((number, 3))
    vectors *= 2 * np.pi / wavelength / np.linalg.norm(vectors, axis=1, keepdims=True)
    return Waves(vectors.astype(np.float32), rng.uniform(0, 2 * np.pi, number).astype(np.float32))


@dataclass
class _Drawing:
    """Shares of the tissues in every voxel; what is drawn later covers what is there."""

    spacing: float
    shares: np.ndarray  # (tissues, voxels)

    def draw(self, tissue: str, distance: np.ndarray, within: np.ndarray | float = 1.0) -> None:
        """Draw a tissue where a signed distance in mm is negative, in those shares of the voxels only."""
        share = within * np.clip(0.5 - distance / self.spacing, 0, 1)
        self.shares *= 1 - share
        self.shares[NAMES.index(tissue)] += share

    def share(self, *tissues: str) -> np.ndarray:
        """The share of some tissues together."""
        return self.shares[[NAMES.index(tissue) for tissue in tissues]].sum(0)


def ellipsoid(places: np.ndarray, centre: Sequence[float], radii: Sequence[float]) -> np.ndarray:
    """About the signed distance in mm from the surface of an ellipsoid, negative inside."""
    away = [(p - c) / r for p, c, r in zip(places, centre, radii, strict=True)]
    norm = np.sqrt(sum(a**2 for a in away))
    slope = np.sqrt(sum((a / r) ** 2 for a, r in zip(away, radii, strict=True)))
    smallest = 1e-4  # the middle has no direction
    return (norm - 1) * np.maximum(norm, smallest) / np.maximum(slope, smallest / max(radii))


def tube(places: np.ndarray, line: Sequence[Sequence[float]], scale: float = 1.0) -> np.ndarray:
    """Signed distance in mm from a tube along a line of points with radii, which are multiplied by ``scale``."""
    shape = (3, *[1] * (places.ndim - 1))
    distance = np.full(places.shape[1:], np.inf, dtype=np.float32)
    for (*start, first), (*end, last) in pairwise(line):
        begin, along = (np.array(v, dtype=np.float32).reshape(shape) for v in (start, np.subtract(end, start)))
        part = (((places - begin) * along).sum(0) / (along**2).sum()).clip(0, 1)
        away = np.sqrt(((places - begin - along * part) ** 2).sum(0)) - scale * (first + (last - first) * part)
        distance = np.minimum(distance, away)
    return distance


def _joined(first: np.ndarray, second: np.ndarray, width: float) -> np.ndarray:
    """The union of two shapes with a rounded seam (Quilez's polynomial smooth minimum)."""
    mixed = np.clip(0.5 + 0.5 * (second - first) / width, 0, 1)
    return second + (first - second) * mixed - width * mixed * (1 - mixed)


def _mirrored(places: np.ndarray) -> np.ndarray:
    """The places on one side: both hemispheres are drawn at once."""
    return np.concatenate([np.abs(places[:1]), places[1:]])


def _parts(side: np.ndarray) -> dict[str, np.ndarray]:
    """Signed distances from the smooth surfaces of the parts; of ``lobes`` without the cut at the base."""
    dome, temporal = ellipsoid(side, (0, 1, 0), DOME), ellipsoid(side, (40, -8, -22), (23, 42, 20))
    base = -16 - 0.12 * side[1] - side[2]  # the floor of the skull rises to the front
    cerebrum = _joined(-_joined(-dome, -base, 14), temporal, 12)
    cerebellum = ellipsoid(side, (21, 47, -38), (30, 29, 22))
    stem = tube(side, ((0, 12, -8, 16), (0, 18, -34, 15), (0, 27, -55, 9)))
    hull = _joined(_joined(cerebrum, cerebellum, 14), stem, 6)
    lobes = _joined(dome, temporal, 12)
    return {"cerebrum": cerebrum, "lobes": lobes, "cerebellum": cerebellum, "stem": stem, "hull": hull}


def _draw_cerebrum(drawing: _Drawing, places: np.ndarray, rng: np.random.Generator) -> None:
    """Draw white matter, and a ribbon of cortex along the surface, the sulci and the fissures."""
    side = _mirrored(places)
    x, y, z = side
    parts = _parts(side)
    inside = -parts["cerebrum"]
    winding = side + np.stack([5 * make_waves(rng, 55, 6)(side) for _ in range(3)])
    winding = winding + np.stack([2 * make_waves(rng, 45, 6)(places) for _ in range(3)])  # gyri of the sides differ
    radius = np.sqrt(((winding / np.array(DOME, dtype=np.float32)[:, None]) ** 2).sum(0))
    onto = winding / np.maximum(radius, 0.3)  # the place on the surface: sulci go straight down from there
    deep = -parts["lobes"] - (rng.normal(17, 1) + 5 * make_waves(rng, 45)(onto))
    sulci = np.hypot(make_waves(rng, rng.normal(29, 1.5), 16).distance(onto), np.maximum(0, deep))
    callosum = ellipsoid(side, (0, -2, 6), (60, 38, 21))
    between = np.hypot(x, np.maximum(0, -callosum))
    ends = np.hypot(np.maximum(0, 38 - x), np.maximum(0, np.abs(y + 8) - 28))
    lateral = np.hypot(z + 8 - 0.2 * (y + 10), ends)  # the fissure above the temporal lobe
    surface = np.minimum.reduce([inside, sulci, between, lateral])
    drawing.draw("fluid", parts["hull"] - 10)
    drawing.draw("grey matter", SULCUS - surface)
    drawing.draw("white matter", SULCUS + CORTEX - surface)
    drawing.draw("vessel", tube(side, ((0, -70, 36, 2), (0, -20, 63, 2.5), (0, 50, 51, 3), (0, 80, 6, 3))))


def _draw_deep(drawing: _Drawing, places: np.ndarray, rng: np.random.Generator) -> None:
    """Draw the nuclei and the ventricles."""
    side = _mirrored(places)
    for tissue, centre, radii in NUCLEI:
        drawing.draw(tissue, ellipsoid(side, centre, radii))
    size = float(rng.uniform(0.8, 1.35))
    ventricles = np.minimum.reduce([tube(side, line, size) for line in VENTRICLES])
    drawing.draw("fluid", np.maximum(ventricles, 1.5 - side[0]))
    drawing.draw("fluid", ellipsoid(side, (0, 8, 0), (1.5 + size, 14, 9)))  # third ventricle
    drawing.draw("vessel", tube(side, ((14, 18, 16, 1.5), (23, 30, 6, 2.2))))  # choroid plexus


def _draw_below(drawing: _Drawing, places: np.ndarray, rng: np.random.Generator) -> None:
    """Draw brain stem and cerebellum, whose leaves lie across."""
    side = _mirrored(places)
    parts = _parts(side)
    drawing.draw("white matter", parts["stem"] + 1)
    around = np.hypot(side[1] - 30, side[2] + 34) + 2 * make_waves(rng, 40)(side)  # leaves fan out from the middle
    leaves = np.abs((np.arctan2(side[2] + 34, side[1] - 25) * 6 / math.pi * 2 + 0.02 * around) % 1 - 0.5) * 9
    drawing.draw("fluid", parts["cerebellum"] - 0.5)
    drawing.draw("grey matter", parts["cerebellum"] + 1)
    drawing.draw("white matter", np.maximum(parts["cerebellum"] + 5, leaves - 1.2))
    drawing.draw("white matter", ellipsoid(side, (16, 38, -37), (15, 12, 9)))
    drawing.draw("fluid", ellipsoid(side, (0, 31, -34), (7, 5, 10)))  # fourth ventricle


def _draw_gliomas(drawing: _Drawing, places: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw one or two gliomas that begin in white matter of the cerebrum; the label of each voxel."""
    parts, label = _parts(_mirrored(places)), np.zeros(places.shape[1], dtype=np.uint8)
    white, solid = drawing.share("white matter"), 1 - drawing.share("fluid")
    begins = np.flatnonzero((white > 0.6) & (np.abs(places[0]) > 16) & (parts["cerebrum"] < -12) & (places[2] > -8))
    for number in range(int(rng.integers(1, 3))):
        centre = places[:, [rng.choice(begins)]]
        radius = float(rng.uniform(11, 17) if number == 0 else rng.uniform(7, 10))
        stretch = rng.uniform(0.8, 1.25, (3, 1)).astype(np.float32)
        away = np.sqrt((((places - centre) * stretch) ** 2).sum(0))
        away = away + 0.16 * radius * make_waves(rng, 1.8 * radius)(places)
        fingers = away - radius * float(rng.uniform(1.6, 2.0)) + 2.5 * make_waves(rng, 22)(places)
        necrosis = away - radius * float(rng.uniform(0.45, 0.65))
        core = away - radius
        drawing.draw("oedema", fingers, white)  # swelling runs along white matter
        drawing.draw("enhancing", core, solid)
        drawing.draw("necrosis", necrosis, solid)
        label[(fingers < 0) & (white > 0.5) & (label == 0)] = OEDEMA
        label[(core < 0) & (solid > 0.5)] = ENHANCING
        label[(necrosis < 0) & (solid > 0.5)] = NECROSIS
    return label


def _images(drawing: _Drawing, places: np.ndarray, brain: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The four contrasts of what is drawn."""
    values = np.array(list(TISSUES.values()), dtype=np.float32).T
    values = values * (1 + OF_A_SUBJECT * rng.standard_normal(values.shape, dtype=np.float32))
    common = _texture(rng, brain)
    images = np.zeros((len(values), *brain.shape), dtype=np.float32)
    for image, contrast in zip(images, values, strict=True):
        texture = math.sqrt(SHARED) * common + math.sqrt(1 - SHARED) * _texture(rng, brain)
        drawn = (contrast @ drawing.shares) * (1 + TEXTURE * texture) * np.exp(BIAS * make_waves(rng, 220, 5)(places))
        noise = NOISE * TISSUES["white matter"][0] * rng.standard_normal((2, len(drawn)), dtype=np.float32)
        image[brain] = np.maximum(np.hypot(drawn + noise[0], noise[1]) * rng.uniform(0.7, 1.5), 1)  # Rician, gain
    return images


def _texture(rng: np.random.Generator, brain: np.ndarray) -> np.ndarray:
    """Fine noise of mean 0 and standard deviation 1 in the voxels of the brain."""
    noise = gaussian_filter(rng.standard_normal(brain.shape, dtype=np.float32), 0.7)
    return noise[brain] / float(noise.std())
