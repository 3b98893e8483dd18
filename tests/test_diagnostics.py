"""Collapse metrics against independent references and on cases whose answer is known exactly (R1 of the design)."""

from __future__ import annotations

from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from scipy.ndimage import distance_transform_edt
from scipy.spatial.distance import pdist
from scipy.stats import entropy
from sklearn.decomposition import PCA
from sklearn.metrics import r2_score

from emim_nnunet.diagnostics import (
    CollapseProbe,
    CovarianceSums,
    Thresholds,
    alignment,
    constant_losses,
    dense_probe,
    effective_rank,
    eigenvalues,
    foreground_rows,
    isotropic_eigenvalues,
    judge,
    participation_ratio,
    position_sums,
    reconstruction_scores,
    reconstruction_sums,
    stage_scores,
    uniformity,
)
from emim_nnunet.diagnostics import baselines as ladder
from emim_nnunet.diagnostics.reconstruction import within_ratios, within_sums
from emim_nnunet.masking import cells_to_voxels
from emim_nnunet.randomness import Stream, seeded_generator

NAMES = ["T1", "T2"]
nan = float("nan")


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def body(shape: tuple[int, ...] = (8, 8, 8)) -> torch.Tensor:
    """(1, 1, *P) bool: the middle of the patch."""
    mask = torch.zeros(1, 1, *shape, dtype=torch.bool)
    mask[(..., *[slice(2, n - 2) for n in shape])] = True
    return mask


def scores(prediction: torch.Tensor, target: torch.Tensor, counted: torch.Tensor, inside: torch.Tensor) -> dict:
    return reconstruction_scores(reconstruction_sums(prediction, target, counted, inside), NAMES)


# --------------------------------------------------------------------------------------------------- reconstruction


@pytest.fixture
def brain() -> tuple[torch.Tensor, torch.Tensor]:
    """Two modalities of different mean and contrast inside a body, 0 outside, as after min-max scaling."""
    inside = body().expand(3, 1, 8, 8, 8)
    target = (randn(3, 2, 8, 8, 8) * torch.tensor([0.2, 0.3]).view(1, 2, 1, 1, 1) + 1.0) * inside
    return target, inside


def test_skill_equals_r2_of_scikit_learn(brain: Any) -> None:
    target, inside = brain
    prediction, counted = target + 0.2 * randn(*target.shape, seed=1), randn(*target.shape, seed=2) > 0
    result = scores(prediction, target, counted, inside)
    for c, name in enumerate(NAMES):
        where = counted[:, c]
        t, p = (x[:, c][where].double().numpy() for x in (target, prediction))
        assert result[name]["skill"] == pytest.approx(r2_score(t, p), abs=1e-9)
        where = where & inside[:, 0]
        t, p = (x[:, c][where].double().numpy() for x in (target, prediction))
        assert result[name]["foreground_skill"] == pytest.approx(r2_score(t, p), abs=1e-9)
        assert result[name]["std_ratio"] == pytest.approx(p.std() / t.std(), rel=1e-9)
    t, p = (np.stack([x[:, c].ravel() for c in range(2)], 1) for x in (target.double().numpy(), prediction.numpy()))
    pooled = scores(prediction, target, torch.ones_like(counted), inside)["all"]
    assert pooled["skill"] == pytest.approx(1 - ((t - p) ** 2).sum() / ((t - t.mean(0)) ** 2).sum(), rel=1e-9)
    assert pooled["loss"] == pytest.approx(((t - p) ** 2).mean(), rel=1e-9)
    assert pooled["collapsed_loss"] == pytest.approx(t.var(0).mean(), rel=1e-9)


def test_constant_outline_truth_and_scaled_truth(brain: Any) -> None:
    target, inside = brain
    everything = torch.ones_like(target, dtype=torch.bool)
    mean = target.mean((0, 2, 3, 4), keepdim=True).expand_as(target)
    constant = scores(mean, target, everything, inside)["all"]
    assert constant["skill"] == pytest.approx(0, abs=1e-5)
    assert constant["std_ratio"] == pytest.approx(0, abs=1e-5)
    weight = inside.sum((0, 2, 3, 4))
    body_mean = (target * inside).sum((0, 2, 3, 4)) / weight
    outline = body_mean.view(1, 2, 1, 1, 1) * inside
    drawn = scores(outline, target, everything, inside)["all"]
    assert drawn["skill"] > 0.9
    assert drawn["outline_skill"] == pytest.approx(0, abs=1e-5)
    assert drawn["foreground_skill"] == pytest.approx(0, abs=1e-5)
    truth = scores(target, target, everything, inside)
    assert all(truth[n][key] == 1 for n in truth for key in ("skill", "outline_skill", "foreground_skill", "std_ratio"))
    centred = body_mean.view(1, 2, 1, 1, 1)
    scaled = (0.5 * (target - centred) + centred) * inside
    half = scores(scaled, target, everything, inside)["all"]
    assert half["foreground_skill"] == pytest.approx(0.75, abs=1e-5)
    assert half["std_ratio"] == pytest.approx(0.5, abs=1e-5)


def test_what_does_not_count_may_be_anything(brain: Any) -> None:
    target, inside = brain
    counted = inside.expand_as(target)
    prediction = torch.where(counted, target + 0.1, torch.nan)
    result = scores(prediction, target, counted, inside)["all"]
    assert result["loss"] == pytest.approx(0.01, rel=1e-4)
    assert result["skill"] == result["outline_skill"] == result["foreground_skill"]


def test_a_modality_that_never_counts_is_nan_and_leaves_the_pooled_scores(brain: Any) -> None:
    target, inside = brain
    counted = torch.ones_like(target, dtype=torch.bool)
    counted[:, 1] = False
    result = scores(target * 0.5, target, counted, inside)
    assert np.isnan(result["T2"]["skill"])
    assert result["all"]["skill"] == result["T1"]["skill"]
    nothing = scores(target, target, torch.zeros_like(counted), inside)
    assert np.isnan(list(nothing["all"].values())[1:]).all()


def test_nan_in_the_prediction_stays_nan(brain: Any) -> None:
    target, inside = brain
    prediction = target.clone()
    prediction[0, 0, 4, 4, 4] = nan
    result = scores(prediction, target, torch.ones_like(target, dtype=torch.bool), inside)
    assert np.isnan(result["all"]["skill"])
    assert result["T2"]["skill"] == 1


def test_losses_of_the_four_constants_equal_numpy() -> None:
    target = randn(6, 2, 8, 8) + 3 * randn(1, 2, 8, 8, seed=1)
    counted = torch.ones_like(target, dtype=torch.bool)
    losses = constant_losses(position_sums(target[:2], counted[:2]) + position_sums(target[2:], counted[2:]), (4, 4))
    t = target.double().numpy()
    cells = t.reshape(6, 2, 2, 4, 2, 4)
    expected = {
        "global": t.var(),
        "modality": t.var((0, 2, 3)).mean(),
        "cell_position": cells.var((0, 3, 5)).mean(),
        "voxel_position": t.var(0).mean(),
    }
    assert losses == pytest.approx(expected, rel=1e-9)
    assert list(losses) == list(expected)
    assert sorted(losses.values(), reverse=True) == list(losses.values())
    counted[:, :, :4] = False
    half = constant_losses(position_sums(target, counted), (4, 4))
    assert half["voxel_position"] == pytest.approx(t[:, :, 4:].var(0).mean(), rel=1e-9)
    assert all(np.isnan(v) for v in constant_losses(position_sums(target, counted & False), (4, 4)).values())


# ------------------------------------------------------------------------------------------ masked cells and baselines


@pytest.fixture
def masked() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Targets (6, 2, 16, 16) of another mean in every sample, what of them counts, and the body: all but the border."""
    target = randn(6, 2, 16, 16) + 2 * randn(6, 2, 1, 1, seed=1)
    inside = torch.zeros(6, 1, 16, 16, dtype=torch.bool)
    inside[:, :, 2:] = True
    hidden = (randn(6, 2, 4, 4, seed=2) > -0.5).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return target, hidden & inside, inside


def within(prediction: torch.Tensor, target: torch.Tensor, counted: torch.Tensor, inside: torch.Tensor) -> Any:
    return within_ratios(within_sums(prediction, target, counted, inside, (4, 4)), NAMES)


def test_what_differs_between_fully_masked_cells_equals_numpy(masked: Any) -> None:
    target, counted, inside = masked
    prediction = 0.3 * target + randn(*target.shape, seed=3)

    def deviations(values: torch.Tensor, channel: int) -> float:
        total = 0.0
        for sample, where in zip(values[:, channel].double().numpy(), counted[:, channel].numpy(), strict=True):
            boxes = [np.s_[4 * i : 4 * i + 4, 4 * j : 4 * j + 4] for i in range(4) for j in range(4)]
            cells = [sample[box] for box in boxes if where[box].all()]
            assert 2 < len(cells) < 16
            total += ((np.array(cells) - np.mean(cells, 0)) ** 2).sum()
        return total

    parts = np.array([[deviations(values, c) for c in range(2)] for values in (prediction, target)])
    expected = dict(zip(["all", *NAMES], [parts[0].sum() / parts[1].sum(), *(parts[0] / parts[1])], strict=True))
    assert within(prediction, target, counted, inside) == pytest.approx(expected, rel=1e-9)
    assert within(0.5 * target + 7, target, counted, inside)["all"] == pytest.approx(0.25, rel=1e-5)


def test_a_network_without_a_sense_of_place_is_seen_even_where_it_has_skill(masked: Any) -> None:
    """The mean of each sample, and one patch for every masked cell: no constant, so there is skill."""
    target, counted, inside = masked
    mean = target.mean((2, 3), keepdim=True).expand_as(target)
    patch = randn(1, 2, 4, 4, seed=5).repeat(1, 1, 4, 4) * 0.1 + mean
    for prediction in (mean, patch):
        assert scores(prediction, target, counted, inside)["all"]["foreground_skill"] > 0.5
        assert within(prediction, target, counted, inside)["all"] == pytest.approx(0, abs=1e-9)
    outside = torch.where(counted, patch, randn(*target.shape, seed=6))  # what was visible does not matter
    assert within(outside, target, counted, inside)["all"] == pytest.approx(0, abs=1e-9)
    assert np.isnan(within(mean, target, counted & (target > 0), inside)["all"])  # no cell is masked as a whole
    assert np.isnan(within(torch.full_like(target, nan), target, counted, inside)["all"])


def test_the_ladder_equals_numpy(masked: Any) -> None:
    target, _, inside = masked
    counted = randn(*target.shape, seed=7) > 0
    sums = [
        (ladder.depth_sums(*part), ladder.sample_sums(*part[:2]))
        for part in zip(*(x.split(2) for x in (target, counted, inside)), strict=True)
    ]
    losses = ladder.baseline_losses(*(sum(parts) for parts in zip(*sums, strict=True)), NAMES)
    t, c, f = (x.numpy() for x in (target.double(), counted, inside[:, 0]))
    depth = np.stack([np.rint(distance_transform_edt(body)) for body in f])
    for channel, name in enumerate(NAMES):
        values, where = t[:, channel], c[:, channel]

        def loss(groups: np.ndarray, values: np.ndarray = values, where: np.ndarray = where) -> float:
            parts = [values[where & (groups == group)] for group in np.unique(groups)]
            return sum(part.var() * len(part) for part in parts) / where.sum()

        number = np.arange(6)[:, None, None] * np.ones_like(f)
        expected = {"constant": 0 * depth, "sample_constant": number, "outline": f, "depth": depth}
        assert losses[name] == pytest.approx({kind: loss(groups) for kind, groups in expected.items()}, rel=1e-9)
    pooled = scores(target, target, counted, inside)["all"]["collapsed_loss"]
    assert losses["all"]["constant"] == pytest.approx(pooled, rel=1e-9)
    told = torch.from_numpy(depth)[:, None].expand_as(target).sqrt()
    known = ladder.baseline_losses(ladder.depth_sums(told, counted, inside), ladder.sample_sums(told, counted), NAMES)
    assert known["all"]["depth"] == pytest.approx(0, abs=1e-12)
    assert known["all"]["depth"] < known["all"]["outline"] < known["all"]["constant"]
    assert (ladder.depth_bins(torch.ones_like(inside)) == ladder.BINS - 1).all()  # no border in sight


def test_the_collapsed_loss_does_not_depend_on_the_mask() -> None:
    target, inside = randn(8, 3, 32, 32), body((32, 32)).expand(8, 1, 32, 32)
    target[0, 1] = 0  # a modality that is not there
    sums = ladder.mask_sums(target, inside.expand_as(target), inside, (8, 8), 0, range(8))
    losses = ladder.mask_losses(sums)
    assert list(losses) == list(ladder.MASKS)
    assert list(losses.values()) == pytest.approx([1] * 4, abs=0.02)
    draws = ladder.DRAWS
    share = sums[:, 0].sum(1) / (draws * (8 * 3 - 1) * 28**2)
    assert share.tolist() == pytest.approx([0.75, 0.75, 1 / 3, 0.75], abs=0.05)
    generator = seeded_generator(0, Stream.PROBE, 2, ladder.OTHER_MASKS)
    drawn = [cells_to_voxels(ladder.draw_masks(3, (8, 8), generator)["hybrid"], (4, 4))[0] for _ in range(draws)]
    hidden = torch.stack(drawn) & inside[2]
    alone = ladder.mask_sums(target[2:3], inside[2:3], inside[2:3], (8, 8), 0, [2])[ladder.MASKS.index("hybrid")]
    values = (hidden * target[2].double()).flatten(2)
    expected = torch.stack([hidden.flatten(2).sum((0, 2)), values.sum((0, 2)), values.square().sum((0, 2))])
    assert torch.allclose(alone, expected)
    everywhere = ladder.mask_sums(target, torch.ones_like(target) > 0, inside, (8, 8), 0, range(8))
    assert everywhere[0, 0].sum() == draws * 48 * 16 * (8 * 3 - 1)  # the outside counts there: 48 of 64 cells
    parts = [
        ladder.mask_sums(target[i:j], inside[i:j] & (target[i:j] > -9), inside[i:j], (8, 8), 0, range(i, j))
        for i, j in ((0, 3), (3, 8))
    ]
    assert torch.allclose(sum(parts), sums, rtol=1e-12)
    single = ladder.mask_losses(ladder.mask_sums(target[:, :1], inside, inside, (8, 8), 0, range(8)))
    assert np.isnan(single["modality"])  # never hidden where it is the only one
    assert single["hybrid"] == pytest.approx(1, abs=0.03)


# --------------------------------------------------------------------------------------------------- spectrum


def spectrum(rows: np.ndarray) -> dict[str, Any]:
    return stage_scores(CovarianceSums.of(torch.from_numpy(np.asarray(rows, dtype=np.float64))))


@pytest.mark.parametrize(("num", "width"), [(400, 8), (500, 50), (30, 16)])
def test_spectrum_equals_pca_of_scikit_learn(num: int, width: int) -> None:
    rows = np.random.default_rng(0).standard_normal((num, width)) @ np.diag(np.linspace(0.1, 3, width)) + 7
    pca = PCA().fit(rows)
    found = spectrum(rows)
    assert found["spectrum"] == pytest.approx(pca.explained_variance_ratio_, abs=1e-12)
    assert found["effective_rank"] == pytest.approx(exp(entropy(pca.singular_values_)), rel=1e-9)
    share = pca.explained_variance_ratio_
    assert found["participation_ratio"] == pytest.approx(1 / (share**2).sum(), rel=1e-9)
    assert found["top_share"] == pytest.approx(share[0], rel=1e-9)
    assert found["k99"] == np.searchsorted(share.cumsum(), 0.99) + 1
    assert found["trace"] == pytest.approx(rows.var(0, ddof=1).sum(), rel=1e-9)
    standard = PCA().fit((rows - rows.mean(0)) / rows.std(0))
    assert found["correlation_rank"] == pytest.approx(exp(entropy(standard.singular_values_)), rel=1e-9)
    assert found["status"] == ("ok" if num >= 10 * width else "insufficient")


def test_merging_pieces_equals_all_rows_at_once() -> None:
    rows = (3 * randn(301, 12) + 1e4).double()
    merged = CovarianceSums.of(rows[:0])
    for piece in rows.split([1, 100, 0, 200]):
        merged = merged.merged(CovarianceSums.of(piece))
    assert merged.count == 301
    assert merged.covariance.numpy() == pytest.approx(np.cov(rows.numpy().T), rel=1e-9, abs=1e-9)


def test_rank_one_isotropic_constant_and_dead() -> None:
    rng = np.random.default_rng(0)
    one = spectrum(np.outer(rng.standard_normal(500), rng.standard_normal(16)) + 5)
    assert (one["effective_rank"], one["participation_ratio"], one["k99"]) == pytest.approx((1, 1, 1), abs=1e-5)
    assert one["top_share"] == pytest.approx(1)
    basis = np.kron(np.eye(16), [[1.0], [-1.0]])  # exactly isotropic
    full = spectrum(basis)
    assert full["effective_rank"] == pytest.approx(16)
    assert full["participation_ratio"] == pytest.approx(16)
    assert full["k99"] == 16
    constant = spectrum(np.full((500, 16), 0.1))
    assert constant["variation"] < 1e-20
    assert constant["dead_channels"] == 16
    assert spectrum(np.zeros((500, 16)))["variation"] == 0
    assert np.isnan(spectrum(np.zeros((500, 16)))["effective_rank"])
    rows = rng.standard_normal((500, 16))
    rows[:, [2, 5, 7]] *= 1e-6
    assert spectrum(rows)["dead_channels"] == 3
    assert 12 < spectrum(rows)["effective_rank"] < 14
    assert spectrum(rows)["correlation_rank"] > 15


def test_one_loud_channel_dominates_the_raw_spectrum_only() -> None:
    rows = np.random.default_rng(0).standard_normal((2000, 16))
    rows[:, 0] *= 30
    assert spectrum(rows)["participation_ratio"] < 1.1
    assert spectrum(rows)["correlation_ratio"] > 15


def test_nan_stays_nan_and_too_few_rows_are_said() -> None:
    rows = np.random.default_rng(0).standard_normal((500, 16))
    rows[3, 4] = nan
    found = spectrum(rows)
    assert np.isnan([found[k] for k in ("effective_rank", "participation_ratio", "top_share", "k99", "trace")]).all()
    assert np.isnan(found["spectrum"]).all()
    single = spectrum(rows[:1])
    assert single["status"] == "insufficient"
    assert np.isnan(single["effective_rank"])


def test_the_null_has_the_spectrum_of_gaussian_noise_of_that_size() -> None:
    for num, width in ((64, 320), (256, 320), (4096, 320), (100, 8)):
        noise = np.random.default_rng(1).standard_normal((num, width))
        expected = np.sort(np.linalg.eigvalsh(np.cov(noise.T)))[::-1]
        null = isotropic_eigenvalues(num, width)
        assert effective_rank(null) == pytest.approx(exp(entropy(np.sqrt(expected.clip(0)))), rel=0.03)
        assert null.numpy()[0] == pytest.approx(expected[0], rel=0.15)
        assert torch.equal(null, isotropic_eigenvalues(num, width))
    # a few rows of isotropic data look collapsed: the numbers in documentation/explanation/collapse.md
    ranks = [effective_rank(isotropic_eigenvalues(num, 320)) for num in (64, 256, 1024, 4096)]
    assert ranks == pytest.approx([61, 220, 306, 317], abs=3)


def test_eigenvalues_and_participation_of_a_known_matrix() -> None:
    values = eigenvalues(torch.diag(torch.tensor([1.0, 4.0, 0.0], dtype=torch.float64)))
    assert values.tolist() == [4, 1, 0]
    assert effective_rank(values) == pytest.approx(exp(entropy([2 / 3, 1 / 3])))
    assert participation_ratio(values) == pytest.approx(25 / 17)


def test_rows_are_the_foreground_cells_in_order() -> None:
    features = torch.arange(64.0).view(1, 1, 8, 8).expand(2, 3, 8, 8)
    foreground = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    foreground[0, :, :8, :8] = True
    foreground[1, :, 8:, 8:] = True
    rows, present = foreground_rows(features, foreground, (4, 4))  # cells of 4 voxels = 2 positions of the stage
    assert present.sum(1).tolist() == [4, 4]
    means = [features[0, 0, r : r + 2, c : c + 2].mean().item() for r in (0, 2) for c in (0, 2)]
    assert rows[:4, 0].tolist() == means
    coarse, present = foreground_rows(features, foreground, (16, 16))  # the stage is coarser: its own grid
    assert present.shape == (2, 64)
    assert len(coarse) == 32


# --------------------------------------------------------------------------------------------------- hypersphere


def test_uniformity_and_alignment_equal_scipy() -> None:
    a, b = randn(50, 7), randn(50, 7, seed=1)
    unit = [x.double().numpy() / np.linalg.norm(x.double().numpy(), axis=1, keepdims=True) for x in (a, b)]
    assert uniformity(a) == pytest.approx(log(np.exp(-2 * pdist(unit[0]) ** 2).mean()), rel=1e-9)
    assert alignment(a, b) == pytest.approx(((unit[0] - unit[1]) ** 2).sum(1).mean(), rel=1e-9)
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0, abs=1e-6)
    assert alignment(a, 3 * a) == pytest.approx(0, abs=1e-12)
    assert alignment(a, -a) == pytest.approx(4)
    assert np.isnan(uniformity(a[:1]))
    assert np.isnan(alignment(a[:0], b[:0]))


def test_uniformity_hardly_notices_dimensional_collapse() -> None:
    rows = randn(400, 32)
    rows[:, 8:] *= 1e-3
    assert uniformity(rows) < -3
    assert uniformity(randn(400, 32)) < -3
    assert spectrum(rows.numpy())["effective_rank"] < 10


# --------------------------------------------------------------------------------------------------- probe


def fill_probe(patches: range, batch_size: int = 1) -> CollapseProbe:
    probe = CollapseProbe((4, 4), NAMES, seed=0, cell_size=(4, 4))
    for start in range(patches.start, patches.stop, batch_size):
        indices = list(range(start, min(start + batch_size, patches.stop)))
        parts = [torch.cat(x) for x in zip(*(_patch(i) for i in indices), strict=True)]
        image, prediction, foreground, hidden, early, late = parts
        features = [early, late]
        probe.update_features(indices, foreground, features, [f + 0.1 for f in features], hidden)
        probe.update_reconstruction(prediction, image, hidden & foreground, foreground, indices)
    return probe


def _patch(index: int) -> tuple[torch.Tensor, ...]:
    image, foreground = randn(1, 2, 16, 16, seed=index), body((16, 16))
    hidden = (randn(1, 2, 4, 4, seed=index + 500) > 0).repeat_interleave(4, 2).repeat_interleave(4, 3)
    early, late = randn(1, 3, 8, 8, seed=index + 100), randn(1, 6, 2, 2, seed=index + 200)
    return image, 0.5 * image, foreground, hidden, early, late


def flat(measurement: dict) -> dict[str, float]:
    reconstruction = {f"{n}/{k}": v for n, part in measurement["reconstruction"].items() for k, v in part.items()}
    stages = {f"{i}/{k}": v for i, stage in enumerate(measurement["stages"]) for k, v in stage.items() if k != "status"}
    numbers = {k: v for k, v in stages.items() if not k.endswith("spectrum")}
    numbers |= {f"{k}/{i}": s for k, v in stages.items() if k.endswith("spectrum") for i, s in enumerate(v)}
    numbers |= {f"{n}/{k}": v for n, part in measurement["baselines"].items() for k, v in part.items()}
    numbers |= measurement["constant_losses"] | measurement["mask_losses"]
    return reconstruction | numbers | {"num_patches": measurement["num_patches"]}


def test_a_probe_does_not_depend_on_the_batch_size() -> None:
    one, three = (flat(fill_probe(range(10), size).measure()) for size in (1, 3))
    assert one == pytest.approx(three, rel=1e-9, nan_ok=True)
    assert one["num_patches"] == 10
    assert one["all/skill"] == pytest.approx(0.75, abs=0.02)
    assert 0 < one["0/alignment"] < 4


def test_a_probe_without_reconstruction_or_masks() -> None:
    probe = CollapseProbe((4, 4), NAMES, seed=0)
    probe.update_features([0], body((16, 16)), [randn(1, 3, 8, 8)])
    measurement = probe.measure()
    assert measurement["reconstruction"] is None
    assert np.isnan(measurement["stages"][0]["alignment"])
    with pytest.raises(ValueError, match="at least one patch"):
        CollapseProbe((4, 4), NAMES, seed=0).measure()


def _rank_probe(rank: int, store: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=3)
    shares = [range(4), range(4, 10), range(10, 10)]  # one rank has nothing
    torch.save(fill_probe(shares[rank]).measure(), f"{out}{rank}")
    dist.destroy_process_group()


def test_three_ranks_measure_what_one_process_measures(tmp_path: Path) -> None:
    out = str(tmp_path / "rank")
    mp.spawn(_rank_probe, (str(tmp_path / "store"), out), nprocs=3)
    ranks = [torch.load(f"{out}{rank}") for rank in range(3)]
    assert str(ranks[0]) == str(ranks[1]) == str(ranks[2])
    assert flat(ranks[0]) == pytest.approx(flat(fill_probe(range(10)).measure()), rel=1e-9, nan_ok=True)


# --------------------------------------------------------------------------------------------------- rules


def measurement(epoch: int, skill: float | None = 0.3, rank: float = 20.0, **changes: Any) -> dict[str, Any]:
    part = {
        "count": 100.0,
        "loss": 0.5,
        "skill": skill,
        "outline_skill": skill,
        "foreground_skill": skill,
        "std_ratio": 0.5,
        "within": 0.3,
    }
    part |= {k: v for k, v in changes.items() if k in part}
    stage = {
        "count": 1000,
        "channels": 32,
        "status": "ok",
        "effective_rank": rank,
        "participation_ratio": rank / 2,
        "top_share": 0.2,
        "trace": 1.0,
        "variation": 0.5,
        "dead_channels": 0,
    }
    stage |= {k: v for k, v in changes.items() if k in stage}
    modality = part | {"foreground_skill": changes.get("t2", skill)}
    return {
        "epoch": epoch,
        "reconstruction": None if skill is None else {"all": part, "T1": part, "T2": modality},
        "stages": [stage],
    }


def rules(*history: dict, **options: Any) -> dict[str, str]:
    return {finding.rule: finding.level for finding in judge(history, **options).findings}


def test_a_healthy_run_raises_nothing() -> None:
    history = [measurement(epoch, skill=0.05 + 0.05 * epoch, rank=20 - epoch) for epoch in range(8)]
    verdict = judge(history)
    assert (verdict.level, verdict.findings, verdict.line) == ("ok", (), "ok")


def test_no_skill_needs_three_evaluations_after_warm_up_and_clears() -> None:
    plateau = [measurement(epoch, skill=0.01) for epoch in range(6)]
    assert "no_skill" not in rules(*plateau[:3])  # the untrained network does not count
    assert rules(*plateau[:4])["no_skill"] == "warning"
    assert "no_skill" not in rules(*plateau[:5], warmup_epochs=2)
    assert "no_skill" in rules(*plateau, warmup_epochs=2)
    assert "below 0.02 for 5 epochs" in judge(plateau).line
    assert rules(*plateau, measurement(6, skill=0.3)) == {}
    assert "constant output" in judge([measurement(e, skill=0.01, std_ratio=0.1) for e in range(6)]).line
    assert "constant output" not in judge(plateau).line


def test_cells_alike_need_three_evaluations_and_clear_and_old_ones_do_not_count() -> None:
    alike = [measurement(epoch, within=0.002) for epoch in range(6)]
    assert rules(*alike[:3]) == {}  # the untrained network does not count
    assert rules(*alike[:4]) == {"cells_alike": "warning"}
    assert "(their variance is 0.0020 of that of the targets, below 0.005 for 5 epochs)" in judge(alike).line
    assert rules(*alike, measurement(6, within=0.05)) == {}
    assert rules(*alike, warmup_epochs=3) == {}
    assert rules(*stepped(100, *alike)) == {}  # 500 steps
    assert rules(*alike, thresholds=Thresholds(within=0.001)) == {}
    for part in alike[4]["reconstruction"].values():
        part.pop("within", None)  # of an earlier version
    assert rules(*alike[:5]) == rules(*alike) == {}


def stepped(steps: int, *history: dict) -> list[dict]:
    """The history of a run with so many steps per epoch."""
    return [m | {"step": steps * m["epoch"]} for m in history]


@pytest.mark.parametrize(("steps", "needed"), [(250, 3), (6, 125), (100, 8), (3000, 1)])
def test_epochs_of_a_few_steps_raise_no_warning(steps: int, needed: int) -> None:
    """Ordinary epochs of 250 steps warn as they always did: after three."""
    history = stepped(steps, *[measurement(epoch, skill=0.01, rank=20 if epoch < 2 else 5) for epoch in range(12)])
    for rule, evaluations in {"no_skill": 3, "rank_dropping": 2}.items():
        found = [i for i in range(1, 12) if rules(*history[: i + 1]).get(rule) == "warning"]
        assert found == list(range(max(evaluations, needed), 12)), rule
    late = [i for i in range(1, 12) if rules(*history[: i + 1], warmup_epochs=2).get("no_skill") == "warning"]
    assert late == list(range(max(3, needed) + 2, 12))
    assert rules(*history).keys() & {"low_skill", "no_skill"}  # it is said in any case


def test_a_modality_that_hardly_varies_has_no_skill_and_does_not_count() -> None:
    shape = (2, 2, 16, 16)
    target = randn(*shape)
    target[:, 1] = -0.4 + 0.02 * target[:, 1]
    everywhere, prediction = torch.ones(shape, dtype=torch.bool), torch.zeros(shape)
    prediction[:, 0] = 0.5 * target[:, 0]
    scores = reconstruction_scores(reconstruction_sums(prediction, target, everywhere, everywhere[:, :1]), NAMES)
    quiet, loud = scores[NAMES[1]], scores[NAMES[0]]
    assert all(np.isnan(quiet[key]) for key in ("skill", "outline_skill", "foreground_skill", "std_ratio"))
    assert quiet["loss"] / quiet["collapsed_loss"] > 300  # would be a skill of -300
    for key in ("skill", "foreground_skill", "std_ratio"):
        assert scores["all"][key] == loud[key] == pytest.approx(0.75 if "skill" in key else 0.5, abs=0.01)
    found = judge([{"epoch": 1, "reconstruction": scores, "stages": []}]).findings
    assert [(f.rule, f.level, f.scope) for f in found] == [("empty_probe", "warning", NAMES[1])]
    min_max = torch.rand(shape, generator=torch.Generator().manual_seed(0))  # the lowest contrast that is no air
    scores = reconstruction_scores(reconstruction_sums(prediction, min_max, everywhere, everywhere[:, :1]), NAMES)
    assert not np.isnan(scores["all"]["skill"])


def test_outline_only() -> None:
    found = judge([measurement(1, skill=0.64, outline_skill=-0.37, foreground_skill=-0.11)])
    assert found.level == "warning"
    assert found.line.startswith("WARNING: learned the outline only")
    assert rules(measurement(1, skill=0.64, outline_skill=0.1)) == {}


def test_low_skill_and_one_dead_modality_are_notes() -> None:
    assert rules(measurement(1, skill=0.03)) == {"low_skill": "note"}
    found = judge([measurement(1, skill=0.3, t2=0.0)])
    assert [(f.rule, f.level, f.scope) for f in found.findings] == [("modality_without_skill", "note", "T2")]
    assert rules(measurement(1, skill=0.03), norm_pix=True) == {"low_skill": "note", "norm_pix": "note"}


def test_rank_dropping_compares_with_the_best_after_warm_up() -> None:
    history = [measurement(0, rank=31), measurement(1, rank=20), measurement(2, rank=12)]
    assert rules(*history) == {}  # the untrained network does not count
    assert rules(*history, measurement(3, rank=9)) == {"rank_dropping": "warning"}
    assert "rank is a diagnostic" in judge([*history, measurement(3, rank=9)]).line
    few = [m | {"stages": [m["stages"][0] | {"status": "insufficient"}]} for m in [*history, measurement(3, rank=9)]]
    assert rules(*few) == {}


@pytest.mark.parametrize(
    ("changes", "rule", "level"),
    [
        ({"loss": nan}, "non_finite", "error"),
        ({"trace": nan}, "non_finite", "error"),
        ({"trace": float("inf")}, "non_finite", "error"),
        ({"variation": 1e-12}, "constant_features", "error"),
        ({"dead_channels": 17}, "dead_channels", "error"),
        ({"dead_channels": 16}, None, None),
        ({"top_share": 0.96}, "one_direction", "note"),
        ({"participation_ratio": 1.4}, "one_direction", "note"),
        ({"participation_ratio": 1.4, "channels": 16, "count": 160}, None, None),
    ],
)
def test_single_rules(changes: dict[str, Any], rule: str | None, level: str | None) -> None:
    assert rules(measurement(1, **changes)) == ({} if rule is None else {rule: level})


def test_too_little_data_is_no_verdict_and_thresholds_can_be_set() -> None:
    assert judge([measurement(1, skill=None, status="insufficient")]).level == "insufficient"
    assert judge([measurement(1, skill=None)]).level == "ok"
    assert rules(measurement(1, skill=0.3), thresholds=Thresholds(low_skill=0.4)) == {"low_skill": "note"}
    with pytest.raises(ValueError, match="at least one measurement"):
        judge([])


# --------------------------------------------------------------------------------------------------- dense probe


def test_dense_probe_reads_what_is_linear_in_the_features_and_splits_by_patient() -> None:
    rng = np.random.default_rng(0)
    rows, patients = rng.standard_normal((600, 8)), np.repeat(np.arange(6), 100)
    targets = rows @ rng.standard_normal((8, 2)) + 0.5 * rng.standard_normal((600, 2))
    assert dense_probe(rows, targets, patients) > 0.9
    assert abs(dense_probe(rng.standard_normal((600, 8)), targets, patients)) < 0.1
    # what only tells patients apart is worth nothing on others
    identity = np.eye(6)[patients] + 0.01 * rng.standard_normal((600, 6))
    own = np.repeat(rng.standard_normal(6), 100)[:, None] + 0.1 * rng.standard_normal((600, 1))
    assert dense_probe(identity, own, patients) < 0.1
    assert np.isnan(dense_probe(rows, np.zeros((600, 2)), patients))
    assert dense_probe(rows, np.c_[targets, np.zeros(600)], patients) == dense_probe(rows, targets, patients)
    with pytest.raises(ValueError, match="at least two"):
        dense_probe(rows, targets, np.zeros(600))
