"""The embedded demo data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from emim_nnunet.phantom import ENHANCING, MODALITIES, NECROSIS, OEDEMA, make_phantom, write_brats2023

SHAPE = (32, 32, 32)


def test_same_seed_same_phantom_other_seed_other_phantom() -> None:
    for first, second in zip(make_phantom(3, SHAPE), make_phantom(3, SHAPE), strict=True):
        assert np.array_equal(first, second)
    assert not np.array_equal(make_phantom(3, SHAPE)[0], make_phantom(4, SHAPE)[0])


def test_background_is_zero_and_lesions_lie_in_the_brain() -> None:
    for seed in range(6):
        images, label = make_phantom(seed, SHAPE)
        brain = images[0] > 0
        assert images.shape == (4, *SHAPE)
        assert all(np.array_equal(image > 0, brain) for image in images)
        assert 0.15 < brain.mean() < 0.5
        assert not brain[0].any()
        assert not brain[-1].any()
        assert set(np.unique(label)) == {0, NECROSIS, OEDEMA, ENHANCING}
        assert brain[label > 0].all()


def test_contrasts_are_those_of_the_modalities() -> None:
    means = {m: [] for m in MODALITIES}
    for seed in range(6):
        images, label = make_phantom(seed)
        for modality, image in zip(MODALITIES, images, strict=True):
            healthy = image[(image > 0) & (label == 0)].mean()
            means[modality].append([image[label == v].mean() / healthy for v in (NECROSIS, OEDEMA, ENHANCING)])
    mean = {m: np.mean(v, axis=0) for m, v in means.items()}
    assert mean["t1c"][2] > 1.2 > mean["t1n"][2]  # enhancement shows in t1c only
    assert mean["t2f"][1] > 1.2
    assert mean["t2w"][1] > 1.2  # oedema is bright in both
    assert mean["t2f"][0] < 1 < mean["t2w"][0]  # necrosis is fluid


def test_written_in_the_layout_of_brats_2023(tmp_path: Path) -> None:
    cases = write_brats2023(tmp_path, 1, 1, seed=0, shape=SHAPE, first_case=7)
    assert cases == ["BraTS-GLI-00007-000", "BraTS-GLI-00008-000"]
    labelled = sorted(p.name for p in tmp_path.rglob("BraTS-GLI-00007-000-*"))
    assert labelled == [f"BraTS-GLI-00007-000-{s}.nii.gz" for s in ("seg", "t1c", "t1n", "t2f", "t2w")]
    assert len(list(tmp_path.rglob("BraTS-GLI-00008-000-*"))) == 4
    image = sitk.ReadImage(str(next(tmp_path.rglob("*00007-000-t2f.nii.gz"))))
    assert image.GetSpacing() == (1.0, 1.0, 1.0)
    assert image.GetPixelID() == sitk.sitkInt16
