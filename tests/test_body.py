"""The body of images whose background is not 0: found, kept beside nnU-Net's files, and all that SSL stages count."""

from __future__ import annotations

import logging
import shutil
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from torch.utils.data import default_collate

from emim_nnunet.classification.model import tiles
from emim_nnunet.dataloading.batch import Augmentation, prepare
from emim_nnunet.dataloading.crops import CropDataset
from emim_nnunet.dataloading.loader import BatchNumbers, CropBatches
from emim_nnunet.datasets.body import body_remarks, find_body, write_body
from emim_nnunet.datasets.checksums import case_digests, checksums_of, read_record, write_record
from emim_nnunet.datasets.dataset import PreprocessedDataset
from emim_nnunet.datasets.preprocessed import Case, body_file, body_folder
from emim_nnunet.errors import UserError
from emim_nnunet.phantom import make_phantom
from emim_nnunet.planners.preprocess import preprocess_cases
from emim_nnunet.planners.raw_data import look_at_backgrounds, look_at_raw_dataset
from emim_nnunet.storage.locks import acquire
from emim_nnunet.views.intensity import BRIGHTNESS, NEUTRAL, change_intensity
from tests.conftest import shared_data
from tests.pipeline import DATASET, PLANS
from tests.test_planner import plan

NOISE, CONSTANT = "noise", "negative constant"


@cache
def phantom(seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    return make_phantom(seed, shape)[0]


def whole_head(kind: str, seed: int = 0, shape: tuple[int, int, int] = (32, 48, 48)) -> tuple[np.ndarray, np.ndarray]:
    """A phantom (4, *shape) with noise or a negative constant around it, and where it is."""
    images = phantom(seed, shape).copy()
    head = images.any(0)
    if kind == NOISE:
        noise = np.random.default_rng(seed).rayleigh(40, images.shape).astype(np.float32)
        return np.where(head, images, noise), head
    inside = images[:, head]
    scored = (images - inside.mean(1)[:, None, None, None]) / inside.std(1)[:, None, None, None]
    return np.where(head, scored, np.float32(-4)), head


def scored(images: np.ndarray) -> np.ndarray:
    """Z-score of the whole volume, as nnU-Net's where it finds no background."""
    axes = (1, 2, 3)
    return (images - images.mean(axes, keepdims=True)) / images.std(axes, keepdims=True)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


# ---------------------------------------------------------------------------------------------------- finding it


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("flat", [False, True], ids=["3D", "2D"])
@pytest.mark.parametrize("kind", [NOISE, CONSTANT])
def test_the_head_is_found_in_noise_and_before_a_constant(kind: str, flat: bool, channels: int) -> None:
    for seed in (0, 3):  # with few voxels between noise and tissue
        images, head = whole_head(kind, seed)
        images, head = (images[:, 16:17], head[16:17]) if flat else (images, head)
        found = find_body(scored(images[:channels]), np.ones_like(head))
        assert dice(found, head) >= 0.95


def test_holes_belong_to_the_body_and_specks_do_not() -> None:
    images, head = whole_head(NOISE)
    images[:, 12:20, 20:28, 20:28] = 0  # as air in a sinus
    images[:, :, :3, :3] = images.max()  # as an artefact
    found = find_body(scored(images), np.ones_like(head))
    assert found[12:20, 20:28, 20:28].all()
    assert not found[:, :3, :3].any()


def test_the_body_lies_within_what_nnunet_takes_for_it() -> None:
    images, head = whole_head(NOISE)
    image, inside = scored(images), np.ones_like(head)
    inside[:, :, 24:] = False
    image[:, ~inside] = 50.0  # whatever is there is not looked at
    found = find_body(image, inside)
    assert not found[~inside].any()
    assert dice(found, head & inside) >= 0.95


def test_nothing_stands_out_of_an_empty_image() -> None:
    inside = np.ones((4, 16, 16), dtype=bool)
    assert not find_body(np.zeros((2, 4, 16, 16)), inside).any()
    ramp = np.arange(4 * 16 * 16.0).reshape(4, 16, 16)
    assert not find_body(np.stack([ramp, -ramp]), inside).any()
    assert not find_body(np.ones((2, 4, 16, 16)), ~inside).any()


def test_a_missing_channel_does_not_count() -> None:
    images, head = whole_head(NOISE)
    image = scored(images)
    without = np.concatenate([image, np.zeros_like(image[:1])])
    assert np.array_equal(find_body(without, np.ones_like(head)), find_body(image, np.ones_like(head)))


def test_bodies_of_real_heads_have_the_size_of_heads() -> None:
    folders = sorted(path for path in shared_data("lgg").iterdir() if path.is_dir())[:60:15]
    shares = []
    for folder in folders:
        files = [folder / f"{folder.name}_{sequence}.nii.gz" for sequence in ("T1", "FLAIR", "T1ce")]
        image = np.stack([sitk.GetArrayFromImage(sitk.ReadImage(file)) for file in files if file.is_file()])
        image = image.astype(np.float32)
        shares += list(find_body(scored(image), np.ones(image.shape[1:], dtype=bool)).mean((1, 2)))
    assert len(shares) > 100
    assert np.mean([0.26 <= share <= 0.64 for share in shares]) > 0.75  # the others are at the ends of the volumes
    assert 0.3 <= np.median(shares) <= 0.5


def test_what_was_found_is_said() -> None:
    assert body_remarks({}) == []
    (line,) = body_remarks({"a": 0.2, "b": 0.4, "c": 0.6})
    assert "3 of 3 cases" in line
    assert "20% to 60% of the volume (median 40%)" in line
    said, warned = body_remarks({"a": 0.3, "b": 0.04, "c": 0.96})
    assert "1 of 3" in said
    assert warned.startswith("WARNING: no body was found in 2 of 3 cases")
    assert warned.endswith("everything counts there: b, c")


# ---------------------------------------------------------------------------------------------------- preparation


@pytest.fixture
def dataset(nnunet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a planned data set of four phantoms: with 0, a head in noise and a speck in noise around it, and with no
    label a head in noise.
    """
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        shutil.copytree(nnunet / name / DATASET, tmp_path / name / DATASET)
        monkeypatch.setenv(name, str(tmp_path / name))
    raw = tmp_path / "nnUNet_raw" / DATASET
    _, head, speck, *others = sorted((raw / "labelsTr").iterdir())
    for label in others:
        for file in (label, *(raw / "imagesTr").glob(label.name.replace(".nii", "_*.nii"))):
            file.unlink()
    without_label = sorted((raw / "imagesUnlabelled").glob("*_0000.nii.gz"))
    for file in (raw / "imagesUnlabelled").glob(without_label[1].name.replace("_0000", "_*")):
        file.unlink()
    images = [f"imagesTr/{label.name.split('.')[0]}" for label in (head, speck)]
    images.append(f"imagesUnlabelled/{without_label[0].name[: -len('_0000.nii.gz')]}")
    for number, case in enumerate(images):
        for channel in range(4):
            file = raw / f"{case}_{channel:04d}.nii.gz"
            image = sitk.ReadImage(file)
            voxels = sitk.GetArrayFromImage(image)
            noise = np.random.default_rng(channel).rayleigh(40, voxels.shape)
            at = slice(10, 20)
            if number == 1:
                voxels = np.zeros_like(voxels)
                voxels[at, at, at] = 1000
            noisy = sitk.GetImageFromArray(np.where(voxels == 0, noise, voxels).astype(np.float32))
            noisy.CopyInformation(image)
            sitk.WriteImage(noisy, file)
    return DATASET


def test_preparation_finds_bodies_and_leaves_nnunets_files_alone(
    dataset: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "nnUNet_preprocessed" / dataset
    raw = look_at_raw_dataset(tmp_path / "nnUNet_raw" / dataset, place, None, 1)
    _, wrong = look_at_backgrounds(raw, 1)
    _, head, speck = raw.labelled
    (unlabelled,) = raw.unlabelled
    assert wrong == {head, speck, unlabelled}

    def preprocess(find_body: set[str]) -> None:
        with acquire(place, "it") as lock, caplog.at_level(logging.INFO):
            preprocess_cases(
                dataset, PLANS, ["3d_fullres"], raw.labelled_files, raw.unlabelled, 1, lock, find_body=find_body
            )

    folder = place / f"{PLANS}_3d_fullres"
    preprocess(set())
    stock = {file: file.read_bytes() for file in folder.iterdir()}
    digests = case_digests([Case(folder, case) for case in raw.labelled])
    assert not (place / "body").exists()

    preprocess(wrong)
    assert "body was found in 1 of 2 cases" in caplog.text
    assert "WARNING: no body was found in 1 of 2 cases" in caplog.text
    assert f"everything counts there: {speck}" in caplog.text
    files = sorted(str(file.relative_to(place / "body")) for file in (place / "body").rglob("*.*"))
    assert files == [f"{folder.name}/{head}.b2nd", f"{folder.name}_unlabelled/{unlabelled}.b2nd"]
    assert f"body/{head}.b2nd" in (read_record(folder) or {})
    assert 0.1 < np.asarray(blosc2.open(str(body_file(folder, head)))).mean() < 0.6
    now = case_digests([Case(folder, case) for case in raw.labelled])
    assert {case for case, digest in now.items() if digest != digests[case]} == {head}
    assert {file: file.read_bytes() for file in folder.iterdir()} == stock

    preprocess(set())  # --no_body
    assert case_digests([Case(folder, case) for case in raw.labelled]) == digests
    assert not (place / "body").exists()
    assert not list(place.glob(".*"))


def test_the_option_turns_it_off(nnunet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    module = "emim_nnunet.planners.plan_and_preprocess"
    monkeypatch.setattr(f"{module}.preprocess_cases", lambda *args, **kwargs: asked.append(kwargs["find_body"]) or {})
    monkeypatch.setattr(f"{module}.look_at_backgrounds", lambda *args: ("noise everywhere", {"case"}))
    monkeypatch.setattr(f"{module}._plan", lambda *args: PLANS)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    for options in ([], ["--no_body"]):
        shutil.copytree(nnunet / "nnUNet_preprocessed", tmp_path, dirs_exist_ok=True)
        assert plan(1, *options) == 0
    assert [list(cases) for cases in asked] == [["case"], []]


def test_phantoms_and_whatever_else_has_no_background_get_no_body(prepared: Path) -> None:
    dataset = prepared / "nnUNet_preprocessed" / DATASET
    assert not (dataset / "body").exists()
    for folder in dataset.glob(f"{PLANS}_*"):
        assert not body_folder(folder).exists()


# ---------------------------------------------------------------------------------------------------- its use


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two preprocessed cases with checksums; ``a`` has noise around the head and a body, ``b`` neither."""
    target = tmp_path / "dataset" / "nnUNetPlans_3d_fullres"
    target.mkdir(parents=True)
    for case, kind in (("a", NOISE), ("b", "")):
        images, head = whole_head(NOISE, 3)
        seg = np.zeros((1, *head.shape), dtype=np.int16)
        seg[0, :, :2] = -1
        if not kind:
            seg[0, ~head] = -1
        whole = {"chunks": seg.shape, "blocks": seg.shape}
        data = scored(images).astype(np.float32)
        nnUNetDatasetBlosc2.save_case(data, seg, {"class_locations": {}}, str(target / case), **whole)
    assert 0.05 < write_body(target, "a") < 0.95
    write_record(target, [checksums_of(target, case) for case in "ab"])
    return target


def cases(folder: Path) -> list[Case]:
    return [Case(folder, case) for case in "ab"]


def without_body(folder: Path) -> Path:
    """A copy as older versions prepared it."""
    return Path(shutil.copytree(folder, folder.parent.with_name("older") / folder.name))


@pytest.mark.parametrize("patch", [(16, 32, 32), (32, 32)], ids=["3D", "2D"])
def test_the_foreground_is_the_body_and_the_input_stays(folder: Path, patch: tuple[int, ...]) -> None:
    body = blosc2.open(str(body_file(folder, "a")))[0]
    head = whole_head(NOISE, 3)[1]
    assert dice(body, head) >= 0.95
    now, before = (CropDataset(cases(place), patch, 1) for place in (folder, without_body(folder)))
    seen = 0
    for index in range(12):
        new, old = now[index], before[index]
        assert "inside" not in old
        if new["case"] == "b":
            assert torch.equal(new["foreground"], old["foreground"])
        if not torch.equal(new["image"], old["image"]):
            continue  # drawn again: too little of the body in it
        seen += new["case"] == "a"
        assert torch.equal(new["inside"], old["foreground"])
        augmented = Augmentation(seed=index, p_rotation=1, p_scaling=1)
        for augmentation in (None, augmented):
            device, flags = torch.device("cpu"), [True, False, True, True]
            image, foreground = prepare(default_collate([new]), device, flags, augmentation)
            stock, everything = prepare(default_collate([old]), device, flags, augmentation)
            assert torch.equal(image, stock)
            assert foreground.shape == everything.shape
            assert not (foreground & ~everything).any()
            if new["case"] == "a":
                assert foreground.sum() < everything.sum()
    assert seen > 2
    crop = now[0] if now[0]["case"] == "a" else now[1]
    assert crop["foreground"].sum() == body_in(crop, folder)


def body_in(crop: dict[str, Any], folder: Path) -> int:
    """Voxels of the body in a crop, whose place is found by its content."""
    image = np.asarray(nnUNetDatasetBlosc2(str(folder), ["a"]).load_case("a")[0])[0]
    body = np.asarray(blosc2.open(str(body_file(folder, "a"))))[0]
    patch = crop["image"][0].numpy()
    patch = patch if patch.ndim == 3 else patch[None]
    (start,) = np.argwhere(image == patch[0, 0, 0])
    return int(body[tuple(slice(s, s + n) for s, n in zip(start, patch.shape, strict=True))].sum())


def test_cases_with_and_without_a_body_share_batches(folder: Path) -> None:
    batches = CropBatches(CropDataset(cases(folder), (8, 16, 16), 0), BatchNumbers(4), num_workers=0, pin_memory=False)
    for batch in islice(batches, 2):
        assert batch["inside"].shape == batch["foreground"].shape
        assert {*batch["case"]} == {"a", "b"}


def test_crops_are_drawn_where_the_body_is(tmp_path: Path) -> None:
    shape = (8, 64, 8)
    data = np.random.default_rng(0).rayleigh(40, (1, *shape)).astype(np.float32)
    data[:, :, 40:48] += 1000
    whole = {"chunks": (1, *shape), "blocks": (1, *shape)}
    seg = np.zeros((1, *shape), dtype=np.int16)
    target = tmp_path / "cases"
    target.mkdir()
    nnUNetDatasetBlosc2.save_case(data, seg, {"class_locations": {}}, str(target / "a"), **whole)
    assert write_body(target, "a") == pytest.approx(1 / 8, abs=0.02)
    crops = CropDataset([Case(target, "a")], (8, 8, 8), 0)
    assert np.mean([crops[i]["foreground"].float().mean() >= 0.1 for i in range(40)]) > 0.8


def test_the_same_body_gives_the_same_file_and_a_lost_one_is_missed(folder: Path) -> None:
    file = body_file(folder, "a")
    content = file.read_bytes()
    write_body(folder, "a")
    assert file.read_bytes() == content
    assert case_digests(cases(folder)).keys() == {"a", "b"}
    file.unlink()
    with pytest.raises(UserError, match=r"bodies of 1 preprocessed cases are not in .* \(a\): copy that folder too"):
        case_digests(cases(folder))


def test_a_changed_body_is_other_data(folder: Path) -> None:
    before = case_digests(cases(folder))
    older = case_digests(cases(without_body(folder)), before)
    assert older["b"] == before["b"]
    assert older["a"] != before["a"]
    crops = CropDataset(cases(folder), (8, 16, 16), 0)
    body_file(folder, "a").unlink()
    blosc2.asarray(np.ones((1, 32, 48, 48), dtype=bool), urlpath=str(body_file(folder, "a")))
    now = case_digests(cases(folder))
    assert now["b"] == before["b"]
    assert now["a"] not in (before["a"], older["a"])
    with pytest.raises(UserError, match=r"case a in .* has changed since this command began"):
        [crops[i] for i in range(2)]


@pytest.mark.parametrize("content", [None, b"no blosc2"], ids=["another shape", "damaged"])
def test_a_body_that_does_not_belong_to_the_case_is_named(content: bytes | None, folder: Path) -> None:
    body_file(folder, "a").unlink()
    if content is None:
        blosc2.asarray(np.ones((1, 4, 4, 4), dtype=bool), urlpath=str(body_file(folder, "a")))
    else:
        body_file(folder, "a").write_bytes(content)
    with pytest.raises(UserError, match="the preprocessed case a cannot be read"):
        CropDataset(cases(folder)[:1], (8, 8, 8), 0)[0]


def test_views_change_air_and_keep_zeros() -> None:
    foreground = torch.zeros(1, 1, 4, 6, 6, dtype=torch.bool)
    foreground[..., 2:4] = True
    image = torch.randn(1, 1, 4, 6, 6, generator=torch.Generator().manual_seed(0)) + 3 * foreground - 1
    image[..., 5] = 0
    parameters = torch.tensor(NEUTRAL).repeat(1, 1, 1)
    same = change_intensity(image, foreground, parameters, torch.zeros_like(image))
    assert torch.allclose(same, image, atol=1e-6)
    parameters[..., BRIGHTNESS] = 0.9
    changed = change_intensity(image, foreground, parameters, torch.zeros_like(image))
    assert torch.allclose(changed, 0.9 * image, atol=0.5)
    assert not torch.equal(changed[..., :2], image[..., :2])
    assert (changed[..., 5] == 0).all()


def test_a_classifier_averages_over_the_body(nnunet: Path) -> None:
    data = PreprocessedDataset.find(1, PLANS, "toy")
    case = data.labelled[0]
    before = list(tiles(data, case))
    shape = np.asarray(nnUNetDatasetBlosc2(str(case.folder), [case.identifier]).load_case(case.identifier)[1]).shape
    body = np.zeros(shape, dtype=bool)
    body[:, 8:20, 8:20, 8:20] = True
    file = body_file(case.folder, case.identifier)
    file.parent.mkdir(parents=True)
    try:
        blosc2.asarray(body, urlpath=str(file))
        now = list(tiles(data, case))
    finally:
        shutil.rmtree(file.parent.parent)
    assert sum(int(mask.sum()) for _, mask in now) < sum(int(mask.sum()) for _, mask in before)
    known = [image for image, _ in before]
    assert all(any(torch.equal(image, other) for other in known) for image, _ in now)
