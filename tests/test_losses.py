"""Losses against independent references."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emim_nnunet.distributed import standardise
from emim_nnunet.losses import barlow_twins_loss, cross_correlation, masked_mse, normalise_cells
from emim_nnunet.networks import Projector


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference_barlow(a: np.ndarray, b: np.ndarray, kappa: float) -> float:
    """Barlow twins written with numpy's correlation coefficient, which knows nothing of our standardisation."""
    width = a.shape[1]
    c = np.corrcoef(a.T, b.T)[:width, width:]
    off = ~np.eye(width, dtype=bool)
    return float((((1 - np.diag(c)) ** 2).sum() + kappa / (width - 1) * (c[off] ** 2).sum()) / width)


@pytest.mark.parametrize(("num", "width", "kappa"), [(64, 8, 20.0), (300, 32, 5.0), (16, 2, 1.0)])
def test_barlow_twins_equals_the_correlation_reference(num: int, width: int, kappa: float) -> None:
    a, b = randn(num, width), randn(num, width, seed=1) + 0.5 * randn(num, width)
    loss = barlow_twins_loss(a, b, torch.ones(num), kappa=kappa)
    assert loss.item() == pytest.approx(reference_barlow(a.double().numpy(), b.double().numpy(), kappa), rel=1e-3)


def test_barlow_twins_ignores_rows_of_weight_zero() -> None:
    a, b = randn(80, 6), randn(80, 6, seed=1)
    weight = (torch.arange(80) % 3 > 0).float()
    kept = weight > 0
    expected = barlow_twins_loss(a[kept], b[kept], torch.ones(int(kept.sum())))
    assert torch.allclose(barlow_twins_loss(a, b, weight), expected, rtol=1e-5)


def test_barlow_twins_of_identical_decorrelated_views_is_zero() -> None:
    rows, _ = torch.linalg.qr(randn(64, 8) - randn(64, 8).mean(0))
    rows = rows - rows.mean(0)
    whitened = rows @ torch.linalg.inv(torch.linalg.cholesky(rows.T @ rows)).T * 8
    assert barlow_twins_loss(whitened, whitened, torch.ones(64)).item() < 1e-3


def test_barlow_twins_is_invariant_to_scale_and_shift() -> None:
    a, b = randn(128, 8), randn(128, 8, seed=1)
    weight = torch.ones(128)
    assert torch.allclose(barlow_twins_loss(3 * a + 2, b - 5, weight), barlow_twins_loss(a, b, weight), rtol=1e-3)


def test_cross_correlation_stays_in_float32_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (
            cross_correlation(randn(32, 4).bfloat16(), randn(32, 4).bfloat16(), torch.ones(32)).dtype == torch.float32
        )


def test_batch_of_two_is_why_samples_are_cells() -> None:
    assert cross_correlation(randn(2, 6), randn(2, 6, seed=1), torch.ones(2)).abs().min().item() > 0.99


def test_masked_mse_equals_numpy_and_does_not_grow_with_duplicated_modalities() -> None:
    prediction, target = randn(2, 3, 4, 5, 6), randn(2, 3, 4, 5, 6, seed=1)
    weight = randn(2, 3, 4, 5, 6, seed=2) > 0
    loss = masked_mse(prediction, target, weight)
    error = (prediction - target).numpy()[weight.numpy()] ** 2
    assert loss.item() == pytest.approx(error.mean(), rel=1e-5)
    twice = [torch.cat([x, x], 1) for x in (prediction, target, weight)]
    assert masked_mse(*twice).item() == pytest.approx(loss.item(), rel=1e-6)


def test_masked_mse_of_nothing_is_zero_and_has_a_finite_gradient() -> None:
    prediction = randn(1, 2, 4, 4).requires_grad_()
    loss = masked_mse(prediction, randn(1, 2, 4, 4), torch.zeros(1, 2, 4, 4))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.isfinite(prediction.grad).all()


def test_normalised_cells_have_mean_zero_and_variance_one() -> None:
    cells = normalise_cells(5 * randn(1, 2, 8, 8) + 3, (4, 4)).unfold(2, 4, 4).unfold(3, 4, 4).flatten(-2)
    assert cells.mean(-1).abs().max().item() < 1e-5
    assert cells.var(-1, unbiased=False).numpy() == pytest.approx(np.ones((1, 2, 2, 2)), rel=1e-3)


def test_standardise_equals_numpy() -> None:
    rows = 3 * randn(50, 4) + 1
    expected = (rows.numpy() - rows.numpy().mean(0)) / rows.numpy().std(0)
    assert standardise(rows, torch.ones(50)).numpy() == pytest.approx(expected, abs=1e-4)


def test_projector_ignores_rows_of_weight_zero() -> None:
    torch.manual_seed(0)
    projector = Projector(4, 8)
    rows, weight = randn(20, 4), torch.ones(20)
    weight[15:] = 0
    changed = rows.clone()
    changed[15:] = 100.0
    assert torch.equal(projector(rows, weight)[:15], projector(changed, weight)[:15])
