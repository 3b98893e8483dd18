"""Crops are functions of (seed, number), on files written by nnU-Net's own code."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy

import emim_nnunet.dataloading.crops as crops_module
from emim_nnunet.dataloading.crops import CropDataset, present_channels
from emim_nnunet.dataloading.loader import BatchNumbers, CropBatches
from emim_nnunet.datasets.preprocessed import Case
from emim_nnunet.errors import UserError
from emim_nnunet.randomness import Stream, seeded_generator
from emim_nnunet.views.augmentation import SCALES, clear_outside_, mirror_, rotate_and_scale_, rotation_ranges

SHAPE = (12, 20, 18)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    """Three preprocessed cases whose voxel values encode case, channel and position; a corner is outside the body."""
    folder = tmp_path_factory.mktemp("preprocessed")
    for number in range(3):
        position = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
        data = np.stack([position + 10_000 * (2 * number + channel) for channel in range(2)])
        seg = np.zeros((1, *SHAPE), dtype=np.int16)
        seg[:, :, :4] = -1
        whole = {"chunks": (1, *SHAPE), "blocks": (1, *SHAPE)}
        nnUNetDatasetBlosc2.save_case(data, seg, {"class_locations": {}}, str(folder / f"case{number}"), **whole)
    return [Case(folder, f"case{number}") for number in range(3)]


def crops(cases: list[Case], patch: tuple[int, ...] = (8, 8, 8), seed: int = 0) -> CropDataset:
    return CropDataset(cases, patch, seed)


def test_a_crop_holds_the_voxels_of_its_case(cases: list[Case]) -> None:
    for index in range(12):
        crop = crops(cases)[index]
        number = int(crop["case"][-1])
        values = crop["image"][0] - 10_000 * 2 * number
        assert crop["image"].shape == (2, 8, 8, 8)
        assert torch.equal(crop["image"][1], crop["image"][0] + 10_000)
        # neighbours along the last axis differ by one, along the first by a whole slice
        assert (values.diff(dim=2) == 1).all()
        assert (values.diff(dim=0) == SHAPE[1] * SHAPE[2]).all()
        row = (values // SHAPE[2]).long() % SHAPE[1]
        assert torch.equal(crop["foreground"][0], row >= 4)


def test_same_number_same_crop_other_seed_other_crop(cases: list[Case]) -> None:
    assert torch.equal(crops(cases)[5]["image"], crops(cases)[5]["image"])
    others = [crops(cases, seed=1)[i]["image"] for i in range(5)]
    assert any(not torch.equal(o, crops(cases)[i]["image"]) for i, o in enumerate(others))


def test_every_case_comes_once_per_round(cases: list[Case]) -> None:
    dataset = crops(cases)
    rounds = [[dataset.case_of(3 * r + i).identifier for i in range(3)] for r in range(10)]
    assert all(sorted(r) == ["case0", "case1", "case2"] for r in rounds)
    assert len({tuple(r) for r in rounds}) > 1


def test_a_patch_larger_than_the_volume_is_centred_and_padded(cases: list[Case]) -> None:
    crop = crops(cases, patch=(16, 24, 24))[0]
    inside = torch.zeros(16, 24, 24, dtype=torch.bool)
    inside[2:14, 2:22, 3:21] = True
    assert (crop["image"][:, ~inside] == 0).all()
    assert not crop["foreground"][0][~inside].any()
    assert crop["foreground"].sum() == 12 * 16 * 18


def test_two_dimensional_patches_are_slices(cases: list[Case]) -> None:
    crop = crops(cases, patch=(8, 8))[0]
    assert crop["image"].shape == (2, 8, 8)
    assert crop["foreground"].shape == (1, 8, 8)


def test_crops_prefer_the_body(tmp_path: Path) -> None:
    data = np.zeros((1, 8, 64, 8), dtype=np.float32)
    seg = np.full((1, 8, 64, 8), -1, dtype=np.int16)
    seg[:, :, 40:48] = 0
    whole = {"chunks": (1, 8, 64, 8), "blocks": (1, 8, 64, 8)}
    nnUNetDatasetBlosc2.save_case(data, seg, {"class_locations": {}}, str(tmp_path / "a"), **whole)
    dataset = crops([Case(tmp_path, "a")])
    shares = [dataset[i]["foreground"].float().mean().item() for i in range(40)]
    assert np.mean([s >= 0.1 for s in shares]) > 0.8  # a blind crop would hit the body in about a quarter of the draws


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_the_number_of_workers(cases: list[Case], workers: int) -> None:
    loader = CropBatches(crops(cases), BatchNumbers(batch_size=2), num_workers=workers, pin_memory=False)
    batches = list(islice(loader, 4))
    assert [b["index"].tolist() for b in batches] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert torch.equal(batches[3]["image"][1], crops(cases)[7]["image"])


def test_a_death_shows_where_a_batch_is_waited_for_and_nowhere_else(cases: list[Case]) -> None:
    handler = signal.getsignal(signal.SIGCHLD)
    numbers = BatchNumbers(batch_size=2)
    training, probe = (CropBatches(crops(cases), numbers, num_workers=2, pin_memory=False) for _ in range(2))
    before = set(multiprocessing.active_children())
    next(training.start())
    next(probe)
    assert signal.getsignal(signal.SIGCHLD) is handler
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 4
    for worker in workers:
        os.kill(worker.pid, signal.SIGKILL)
        time.sleep(0.05)  # a place where torch's handler would raise
    for batches in (training, probe):
        with pytest.raises(UserError, match=r"^a data-loading worker died \(Killed(; Killed)?\): .* with --c$"):
            for _ in range(10):
                next(batches)
        batches.close()


@pytest.mark.parametrize(
    ("error", "workers"),
    [(AttributeError("gone"), 0), (AttributeError("gone"), 1), (TypeError("odd"), 0), (RuntimeError("of torch"), 0)],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_an_error_that_is_not_of_the_files_stays_what_it_is(
    error: Exception, workers: int, cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    # a RuntimeError is blosc2's where files are read, and ours where a box is drawn
    where = (CropDataset, "_random_box") if isinstance(error, RuntimeError) else (crops_module, "crop_box")
    monkeypatch.setattr(*where, fail)
    loader = CropBatches(crops(cases), BatchNumbers(batch_size=1), num_workers=workers, pin_memory=False)
    with pytest.raises(type(error), match=str(error)):
        next(loader)
    loader.close()


def damaged(content: bytes) -> dict[str, bytes]:
    """Ways in which a file can be damaged."""
    return {
        "empty": b"",
        "cut in the header": content[:50],
        "cut in the voxels": content[: len(content) * 2 // 3],
        "zeros at the beginning": bytes(60) + content[60:],
        "text": b"version https://git-lfs.github.com/spec/v1\n" * 9,
        "ones": b"\xff" * len(content),
    }


@pytest.mark.parametrize("suffix", ["b2nd", "npz", "npy"])
def test_damaged_files_are_named_whatever_their_format(suffix: str, tmp_path: Path) -> None:
    data, seg = np.random.default_rng(0).random((2, *SHAPE), dtype=np.float32), np.zeros((1, *SHAPE), np.int16)
    if suffix == "b2nd":
        whole = {"chunks": (1, *SHAPE), "blocks": (1, *SHAPE)}
        nnUNetDatasetBlosc2.save_case(data, seg, {"class_locations": {}}, str(tmp_path / "a"), **whole)
    else:
        nnUNetDatasetNumpy.save_case(data, seg, {"class_locations": {}}, str(tmp_path / "a"))
    if suffix == "npy":
        np.save(tmp_path / "a.npy", data)
        np.save(tmp_path / "a_seg.npy", seg)
    file = tmp_path / f"a.{suffix}"
    content = file.read_bytes()
    for how, spoilt in damaged(content).items():
        file.write_bytes(spoilt)
        with pytest.raises(UserError, match=r"^the preprocessed case a cannot be read \(.*\): preprocess it anew$"):
            pytest.fail(f"{how}: {crops([Case(tmp_path, 'a')])[0]['case']}")


def test_files_that_do_not_belong_together_are_named(tmp_path: Path) -> None:
    for shape, seg_shape in (((2, 8, 8, 8), (1, 8, 8, 9)), ((2, 8, 8), (1, 8, 8)), ((2, 8, 8, 8), (0, 8, 8, 8))):
        np.savez(tmp_path / "a.npz", data=np.zeros(shape, np.float32), seg=np.zeros(seg_shape, np.int16))
        with pytest.raises(UserError, match=r"^the preprocessed case a cannot be read \(ValueError: an image of shape"):
            crops([Case(tmp_path, "a")])[0]
    np.savez(tmp_path / "a.npz", data=np.zeros((2, 8, 8, 8), np.float32))
    with pytest.raises(UserError, match=r"^the preprocessed case a cannot be read \(KeyError: "):
        crops([Case(tmp_path, "a")])[0]


def test_a_resumed_loader_continues_the_sequence(cases: list[Case]) -> None:
    whole = list(islice(iter(BatchNumbers(batch_size=3)), 6))
    assert list(islice(iter(BatchNumbers(batch_size=3, first_step=4)), 2)) == whole[4:]


def test_ranks_share_each_batch_without_overlap() -> None:
    ranks = [list(islice(iter(BatchNumbers(5, rank=r, world_size=3)), 2)) for r in range(3)]
    assert [[i for r in ranks for i in r[step]] for step in range(2)] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


def test_the_probe_set_repeats() -> None:
    assert list(islice(iter(BatchNumbers(2, num_steps=2)), 4)) == [[0, 1], [2, 3]] * 2


def test_no_case_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one case"):
        crops([])


def test_mirroring_flips_image_and_foreground_alike_and_reproducibly() -> None:
    image = torch.arange(2 * 64.0).view(2, 1, 4, 4, 4)
    foreground = image > 40
    for first in range(0, 40, 2):
        flipped, mask, again = image.clone(), foreground.clone(), image.clone()
        mirror_([flipped, mask], [first, first + 1], seed=0)
        mirror_([again], [first, first + 1], seed=0)
        assert torch.equal(mask, flipped > 40)
        assert torch.equal(flipped.flatten(1).sort().values, image.flatten(1))
        assert torch.equal(again, flipped)
    variants = image[:1].repeat(80, 1, 1, 1, 1)
    mirror_([variants], range(80), seed=0)
    assert len(variants.flatten(1).unique(dim=0)) == 8


def ball(shape: tuple[int, ...], centre: list[float], radius: float) -> torch.Tensor:
    """1 inside a ball around a position in voxels from the centre of the patch."""
    axes = [torch.arange(n) - (n - 1) / 2 - c for n, c in zip(shape, centre, strict=True)]
    return (sum(a.square() for a in torch.meshgrid(*axes, indexing="ij")) < radius**2).float()


def centre_of(image: torch.Tensor) -> torch.Tensor:
    axes = [torch.arange(n) - (n - 1) / 2 for n in image.shape]
    return torch.stack([(image * a).sum() / image.sum() for a in torch.meshgrid(*axes, indexing="ij")])


@pytest.mark.parametrize("shape", [(48, 48, 48), (32, 48, 40)])
def test_rotations_turn_about_the_centre_by_at_most_the_range_in_voxels(shape: tuple[int, ...]) -> None:
    start = torch.tensor([0.0, 12.0, 0.0])
    moved = []
    for index in range(12):
        image = ball(shape, start.tolist(), 3)[None, None]
        foreground = image > 0
        rotate_and_scale_(image, foreground, [index], seed=0, p_rotation=1.0, p_scaling=0.0)
        centre = centre_of(image[0, 0])
        assert centre.norm().item() == pytest.approx(12, abs=0.1)  # a rotation, whatever the lengths of the axes
        assert image.sum().item() == pytest.approx(ball(shape, start.tolist(), 3).sum().item(), rel=0.1)
        assert torch.equal(foreground, foreground & (image > 0.4))
        moved.append(torch.acos(centre @ start / centre.norm() / 12).item())
    assert 0 < max(moved) < 3**0.5 * torch.pi / 6
    assert len({round(angle, 3) for angle in moved}) > 6


def test_scaling_is_equal_on_all_axes_and_within_the_range() -> None:
    factors = []
    for index in range(12):
        image = ball((40, 40, 40), [0, 6, 0], 4)[None, None]
        rotate_and_scale_(image, image > 0, [index], seed=0, p_rotation=0.0, p_scaling=1.0)
        first, second, third = centre_of(image[0, 0]).tolist()
        assert (first, third) == pytest.approx((0, 0), abs=0.05)
        factors.append(6 / second)
        assert image.sum().item() == pytest.approx(268 / factors[-1] ** 3, rel=0.12)
    assert SCALES[0] - 0.02 < min(factors) < 0.9 < 1.1 < max(factors) < SCALES[1] + 0.02


def test_anisotropic_patches_turn_within_their_slices_and_2d_ones_as_in_nnunet() -> None:
    assert rotation_ranges((96, 96, 96)) == (np.pi / 6,) * 3
    assert rotation_ranges((16, 64, 64)) == (np.pi, 0, 0)
    assert rotation_ranges((64, 64)) == (np.pi,)
    assert rotation_ranges((64, 128)) == (np.pi / 12,)
    image = torch.zeros(1, 1, 16, 64, 64)
    image[:, :, 5] = 1
    foreground = image > 0
    rotate_and_scale_(image, foreground, [0], seed=0, p_rotation=1.0, p_scaling=0.0)
    assert image[:, :, 5].mean() > 0.7  # the corners turn out of the patch
    assert image.sum() == image[:, :, 5].sum()


def test_few_samples_are_changed_and_the_same_ones_whatever_the_batch() -> None:
    def augmented(indices: list[int]) -> torch.Tensor:
        image = torch.stack([ball((16, 16), [0, 4], 3)[None]] * len(indices))
        rotate_and_scale_(image, image > 0, indices, seed=3, p_rotation=0.2, p_scaling=0.2)
        return image

    together = augmented(list(range(200)))
    assert all(torch.equal(augmented([i])[0], together[i]) for i in (0, 7, 23))
    changed = sum(not torch.equal(sample[0], ball((16, 16), [0, 4], 3)) for sample in together)
    assert 50 < changed < 95  # 36 % of 200


def test_outside_is_cleared_only_where_nnunet_clears_it() -> None:
    image = torch.ones(1, 2, 4, 4)
    foreground = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    foreground[..., :2] = True
    clear_outside_(image, foreground, [True, False])
    assert torch.equal(image[0, 0], foreground[0, 0].float())
    assert torch.equal(image[0, 1], torch.ones(4, 4))


def test_generators_depend_on_every_part_of_the_key() -> None:
    draws = {
        torch.rand((), generator=seeded_generator(*key)).item() for key in [(0, 1, 2), (0, 2, 1), (1, 1, 2), (0, 1)]
    }
    assert len(draws) == 4
    one, two = (torch.rand(3, generator=seeded_generator(0, Stream.MASK, 7)) for _ in range(2))
    assert torch.equal(one, two)


def test_a_channel_is_there_when_a_single_voxel_is_not_zero() -> None:
    image = torch.zeros((4, 9, 9, 9))
    image[1] = 1.0
    image[2, 3, 5, 7] = -0.1  # between the voxels that are looked at first
    assert present_channels(image).tolist() == [False, True, True, False]
    assert present_channels(image[:, 3]).tolist() == [False, True, True, False]
