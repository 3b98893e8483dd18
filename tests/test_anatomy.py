"""The drawn brains of the demo: what a radiologist would look for, and what the demo needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import binary_erosion

from emim_nnunet.anatomy import ENHANCING, NECROSIS, OEDEMA, SHAPE, SPACING, ellipsoid, make_brain, make_waves, tube
from emim_nnunet.phantom import MODALITIES, write_brats2023

SEEDS = range(4)


@pytest.fixture(scope="module")
def brains() -> list[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Images by modality, over their mean in the brain, and label of some subjects."""
    drawn = [make_brain(seed) for seed in SEEDS]
    return [
        ({m: image / image[image > 0].mean() for m, image in zip(MODALITIES, images, strict=True)}, label)
        for images, label in drawn
    ]


def test_same_seed_same_brain_other_seed_other_brain() -> None:
    for first, second in zip(make_brain(3), make_brain(3), strict=True):
        assert np.array_equal(first, second)
    assert not np.array_equal(make_brain(3)[0], make_brain(4)[0])


def test_a_skull_stripped_brain_that_holds_its_lesions() -> None:
    for seed in SEEDS:
        images, label = make_brain(seed)
        brain = images[0] > 0
        assert images.shape == (4, *SHAPE)
        assert images.dtype == np.float32
        assert all(np.array_equal(image > 0, brain) for image in images)
        litres = brain.sum() * SPACING**3 / 1e6
        assert 1.0 < litres < 1.8  # of an adult
        for axis in range(3):
            assert not brain.take([0, -1], axis).any()
        assert set(np.unique(label)) <= {0, NECROSIS, OEDEMA, ENHANCING}
        assert brain[label > 0].all()
        assert (label == ENHANCING).sum() > 20
        assert (label == OEDEMA).sum() > 100


def test_left_and_right_are_alike_but_not_equal(brains: list[tuple[dict[str, np.ndarray], np.ndarray]]) -> None:
    same, different = [], []
    for (images, label), (others, _) in zip(brains, brains[1:] + brains[:1], strict=True):
        image = images["t2w"]
        healthy = (image > 0) & (image[..., ::-1] > 0) & (label == 0) & (label[..., ::-1] == 0)
        same.append(np.corrcoef(image[healthy], image[..., ::-1][healthy])[0, 1])
        both = healthy & (others["t2w"] > 0)
        different.append(np.corrcoef(image[both], others["t2w"][both])[0, 1])
    assert np.mean(different) + 0.1 < np.mean(same) < 0.95


def test_contrasts_are_those_of_textbooks(brains: list[tuple[dict[str, np.ndarray], np.ndarray]]) -> None:
    means = {m: np.mean([[i[m][lab == v].mean() for v in (0, 1, 2, 3)] for i, lab in brains], 0) for m in MODALITIES}
    assert means["t1c"][ENHANCING] > 1.2 > means["t1n"][ENHANCING]  # enhancement shows in t1c only
    assert means["t2f"][OEDEMA] > 1.25
    assert means["t2w"][OEDEMA] > 1.15
    for images, label in brains:
        inside = binary_erosion(images["t1n"] > 0, iterations=3) & (label == 0)
        fluid = inside & (images["t2w"] > 2 * images["t2w"][inside].mean())  # ventricles and sulci
        assert 100 < fluid.sum() < 0.1 * inside.sum()
        white = inside & (images["t1n"] > np.percentile(images["t1n"][inside], 70))
        assert images["t1n"][fluid].mean() < 0.6
        assert images["t2f"][fluid].mean() < 0.7  # FLAIR suppresses what T2 shows bright
        assert images["t1n"][label == OEDEMA].mean() < 0.9 * images["t1n"][white].mean()
        assert images["t2w"][white].mean() < 0.8 * images["t2w"][inside & ~white].mean()


def test_cortex_lies_around_white_matter(brains: list[tuple[dict[str, np.ndarray], np.ndarray]]) -> None:
    for images, label in brains:
        brain = images["t1n"] > 0
        core = binary_erosion(brain, iterations=6)
        rim = binary_erosion(brain, iterations=2) & ~binary_erosion(brain, iterations=4)
        upper = np.arange(SHAPE[0])[:, None, None] > SHAPE[0] // 2
        shell, middle = (images["t1n"][part & upper & (label == 0)] for part in (rim, core))
        assert np.median(shell) < 0.95 * np.median(middle)


def test_shapes_are_signed_distances() -> None:
    places = np.array([[0.0, 12, 20, 5], [0, 0, 0, 0], [0, 0, 0, 0]], dtype=np.float32)
    assert np.allclose(ellipsoid(places, (0, 0, 0), (10, 10, 10)), [-10, 2, 10, -5], atol=1e-3)
    assert np.allclose(tube(places, ((0, 0, 0, 2), (10, 0, 0, 4))), [-2, -2, 6, -3], atol=1e-5)
    waves = make_waves(np.random.default_rng(0), 30.0, 24)
    field = waves(np.random.default_rng(1).uniform(-500, 500, (3, 20000)).astype(np.float32))
    assert abs(field.mean()) < 0.05
    assert field.std() == pytest.approx(1, abs=0.1)
    line = np.stack([np.linspace(0, 300, 3001), *np.zeros((2, 3001))]).astype(np.float32)
    crossed = np.flatnonzero(np.diff(np.sign(waves(line))))
    assert 8 < len(crossed) < 30  # about two a wavelength, fewer where a wave runs across the line
    assert waves.distance(line)[crossed].max() < 0.1


def test_written_as_brats_writes_it(tmp_path: Path) -> None:
    write_brats2023(tmp_path, 1, 1, seed=5, draw=make_brain, spacing=SPACING)
    image = sitk.ReadImage(str(next(tmp_path.rglob("*00001-000-t1c.nii.gz"))))
    assert image.GetSpacing() == (SPACING,) * 3
    assert np.array_equal(sitk.GetArrayFromImage(image), make_brain(5)[0][1].round().astype(np.int16))
    assert len(list(tmp_path.rglob("*.nii.gz"))) == 9
