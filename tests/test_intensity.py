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
)

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
