"""Intensity changes against nnU-Net's own transforms (batchgeneratorsv2) and scipy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from scipy.ndimage import gaussian_filter

from emim_nnunet.methods.base import SSLMethod
from emim_nnunet.methods.moco import MoCoZCA
from emim_nnunet.methods.vicreg import VICReg
from emim_nnunet.views.augmentation import draw_flips, mirrored
from emim_nnunet.views.intensity import (
    BLUR,
    BRIGHTNESS,
    CONTRAST,
    GAMMA,
    NEUTRAL,
    NOISE,
    change_intensity,
    draw_intensity,
    draw_noise,
    unchanged_share,
)
from tests.toy import toy_method

THEIRS: dict[int, Any] = {
    BRIGHTNESS: MultiplicativeBrightnessTransform((1.2, 1.2), False, 1),
    CONTRAST: ContrastTransform((1.2, 1.2), True, False, 1),
    GAMMA: GammaTransform((1.2, 1.2), 0, False, 1, 1),
}


def images(*, foreground_share: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    foreground = torch.rand((2, 1, 8, 9, 10), generator=generator) < foreground_share
    return torch.randn((2, 3, 8, 9, 10), generator=generator) * foreground, foreground


def changed(column: int, value: float, **kwargs: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    image, foreground = images(**kwargs)
    parameters = torch.tensor(NEUTRAL).repeat(2, 3, 1)
    parameters[..., column] = value
    return image, foreground, change_intensity(image, foreground, parameters, torch.zeros(()).expand(image.shape))


@pytest.mark.parametrize("column", THEIRS, ids=["brightness", "contrast", "gamma"])
def test_equals_the_transform_of_nnunet_where_all_is_body(column: int) -> None:
    image, _, ours = changed(column, 1.2)
    theirs = torch.stack([THEIRS[column](image=sample.clone())["image"] for sample in image])
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert not torch.allclose(ours, image, atol=1e-2)


def test_blur_equals_scipy() -> None:
    image, _, ours = changed(BLUR, 0.8)
    reference = np.stack([[gaussian_filter(c, 0.8, mode="constant", radius=3) for c in s] for s in image.numpy()])
    assert np.allclose(ours.numpy(), reference, atol=1e-5)


@pytest.mark.parametrize("column", [BLUR, BRIGHTNESS, CONTRAST, GAMMA])
def test_background_stays_zero_and_changes_nothing_inside(column: int) -> None:
    image, foreground, ours = changed(column, 1.2, foreground_share=0.6)
    assert (ours[~foreground.expand_as(ours)] == 0).all()
    assert not torch.equal(ours, image)
    if column == GAMMA:  # mean and standard deviation of the body are kept, whatever lies around it
        inside = foreground[0, 0]
        assert torch.allclose(ours[0, :, inside].mean(1), image[0, :, inside].mean(1), atol=1e-4)
        assert torch.allclose(ours[0, :, inside].std(1), image[0, :, inside].std(1), rtol=1e-3)


def test_neutral_parameters_and_empty_patches_change_nothing() -> None:
    image, _, ours = changed(BRIGHTNESS, 1.0, foreground_share=0.5)
    assert torch.allclose(ours, image, atol=1e-6)
    _, _, empty = changed(GAMMA, 1.3, foreground_share=0.0)
    assert (empty == 0).all()


def test_draws_follow_the_generator_and_nnunets_probabilities() -> None:
    drawn = [draw_intensity(4, torch.Generator().manual_seed(i)) for i in range(2000)]
    assert torch.equal(drawn[5], draw_intensity(4, torch.Generator().manual_seed(5)))
    changes = (torch.cat(drawn) != torch.tensor(NEUTRAL)).float().mean((0, 1))
    assert torch.allclose(changes, torch.tensor([0.1, 0.1, 0.15, 0.15, 0.3]), atol=0.03)
    values = torch.cat(drawn)[..., BRIGHTNESS]
    assert 0.75 <= values.min() < 0.8
    assert 1.2 < values.max() <= 1.25


def test_noise_is_drawn_only_where_asked_for_and_is_reproducible() -> None:
    parameters = torch.tensor(NEUTRAL).repeat(1, 2, 1)
    shape, device = (1, 2, 20, 20, 20), torch.device("cpu")
    assert (draw_noise(shape, parameters, torch.Generator().manual_seed(0), device) == 0).all()
    parameters[..., NOISE] = torch.tensor([0.05, 0.1])
    first, again = (draw_noise(shape, parameters, torch.Generator().manual_seed(0), device) for _ in range(2))
    assert torch.equal(first, again)
    assert first.std((2, 3, 4))[0].tolist() == pytest.approx([0.05, 0.1], rel=0.05)


@pytest.mark.parametrize("num_channels", [1, 4])
@pytest.mark.parametrize("method_class", [VICReg, MoCoZCA], ids=lambda m: m.__name__)
def test_almost_no_view_is_the_crop_itself(method_class: type[SSLMethod], num_channels: int) -> None:
    def share(**settings: Any) -> float:
        method = toy_method(method_class, num_axes=2, num_channels=num_channels, **settings)
        draws = [method.draw(torch.Generator().manual_seed(sample)) for sample in range(300)]
        views = [torch.cat([d[key] for d in draws]) for key in draws[0] if "intensity" in key]
        assert [len(view) for view in views] == [300, 300]
        return unchanged_share(*views).item()

    assert share() < 0.01
    assert share(view_probability=None) == pytest.approx(0.9 * 0.8 * 0.85 * 0.85 * 0.7, abs=0.1)  # nnU-Net's
    assert share(view_probability=0.0) == 1.0


def test_a_view_whose_present_modalities_are_as_they_were_is_unchanged() -> None:
    present = torch.tensor([False, True])
    drawn = [draw_intensity(2, torch.Generator().manual_seed(i), present, probability=0.3) for i in range(300)]
    assert (torch.cat(drawn)[:, 0] == torch.tensor(NEUTRAL)).all()
    expected = 0.7**4 * (0.7 + 0.3 * 0.5)  # blur leaves out every second modality
    assert unchanged_share(torch.cat(drawn)).item() == pytest.approx(expected, abs=0.07)


def test_each_sample_is_mirrored_along_its_own_axes() -> None:
    image, _ = images()
    flips = torch.tensor([[True, False, True], [False, True, False]])
    both = mirrored(image, flips)
    assert torch.equal(both[0], image[0].flip([1, 3]))
    assert torch.equal(both[1], image[1].flip([2]))
    assert torch.equal(mirrored(both, flips), image)
    drawn = torch.cat([draw_flips(3, torch.Generator().manual_seed(i)) for i in range(200)])
    assert torch.allclose(drawn.float().mean(0), torch.full((3,), 0.5), atol=0.1)
