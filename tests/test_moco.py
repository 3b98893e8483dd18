"""MoCo v2 with local features and ZCA whitening: each part against an independent reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import sqrtm
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from emim_nnunet.errors import UserError
from emim_nnunet.losses import cosine_alignment, info_nce, info_nce_rows
from emim_nnunet.methods.moco import MoCoZCA
from emim_nnunet.networks import ZCA, KeyQueue, momentum_copy, momentum_update_, zca_matrix
from emim_nnunet.views.boxes import take_boxes
from tests.toy import toy_batch, toy_method


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moco(**settings: Any) -> MoCoZCA:
    small = {"queue_size": 16, "projection_width": 8, "local_regions": 2, "zca_rows": 64}
    return toy_method(MoCoZCA, **small | settings)


# ---------------------------------------------------------------------------------------------------------- losses


def test_info_nce_is_the_cross_entropy_of_finding_the_own_key() -> None:
    positive, negatives = randn(5).tanh(), randn(5, 7, seed=1).tanh()
    expected = F.cross_entropy(torch.cat([positive[:, None], negatives], 1) / 0.2, torch.zeros(5, dtype=torch.int64))
    assert info_nce(positive, negatives, 0.2).item() == pytest.approx(expected.item(), rel=1e-6)
    negatives[:, 3] = -torch.inf
    without = torch.cat([positive[:, None], negatives[:, [0, 1, 2, 4, 5, 6]]], 1) / 0.2
    expected = F.cross_entropy(without, torch.zeros(5, dtype=torch.int64))
    assert info_nce(positive, negatives, 0.2).item() == pytest.approx(expected.item(), rel=1e-6)


def test_info_nce_of_rows_counts_no_row_of_weight_zero() -> None:
    queries, keys = F.normalize(randn(6, 4), dim=1), F.normalize(randn(6, 4, seed=1), dim=1)
    weight = torch.tensor([1.0, 0, 1, 1, 0, 1])
    kept = weight > 0
    expected = F.cross_entropy(queries[kept] @ keys[kept].T / 0.3, torch.arange(4))
    assert info_nce_rows(queries, keys, weight, 0.3).item() == pytest.approx(expected.item(), rel=1e-6)
    assert info_nce_rows(queries, keys, torch.zeros(6), 0.3).item() == 0.0


def test_cosine_alignment_is_the_squared_distance_on_the_sphere() -> None:
    a, b, weight = randn(6, 4), randn(6, 4, seed=1), torch.tensor([1.0, 1, 0, 1, 1, 0])
    distance = (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1)
    assert cosine_alignment(a, b, weight).item() == pytest.approx(distance[weight > 0].mean().item(), rel=1e-5)


# ---------------------------------------------------------------------------------------------------------- momentum, queue


def test_the_momentum_branch_equals_torchs_averaged_model() -> None:
    online = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    target, reference = momentum_copy(online), AveragedModel(online, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    reference.update_parameters(online)  # its first update copies
    for step in range(4):
        with torch.no_grad():
            for number, parameter in enumerate(online.parameters()):
                parameter.add_(randn(*parameter.shape, seed=10 * step + number))
        momentum_update_(target, online, 0.9)
        reference.update_parameters(online)
    for ours, theirs in zip(target.parameters(), reference.module.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
        assert not ours.requires_grad


def test_the_queue_forgets_the_oldest_and_excludes_the_own_subject() -> None:
    queue = KeyQueue(4, 3)
    assert torch.allclose(queue.keys.norm(dim=1), torch.ones(4))
    keys = F.normalize(randn(6, 3), dim=1)
    queue.push(keys[:3], torch.tensor([7, 8, 9]))
    queue.push(keys[3:], torch.tensor([7, 5, 6]))  # places 3, 0, 1
    assert torch.equal(queue.keys, keys[[4, 5, 2, 3]])
    assert queue.subjects.tolist() == [5, 6, 9, 7]
    similarities = queue.similarities(keys[:1], torch.tensor([9]))
    assert similarities[0, 2] == -torch.inf
    assert torch.allclose(similarities[0, [0, 1, 3]], keys[[4, 5, 3]] @ keys[0])
    queue.push(randn(9, 3), torch.arange(9))  # more than fit: the last ones stay
    assert sorted(queue.subjects.tolist()) == [5, 6, 7, 8]


# ---------------------------------------------------------------------------------------------------------- whitening


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_zca_equals_scipys_matrix_square_root(scale: float) -> None:
    rows = scale * (randn(200, 8) @ randn(8, 8, seed=1))
    covariance = torch.cov(rows.T, correction=0)
    eps = 1e-2
    shrunk = (1 - eps) * covariance.double().numpy() + eps * np.trace(covariance.double().numpy()) / 8 * np.eye(8)
    reference = np.linalg.inv(np.real(sqrtm(shrunk)))
    assert np.allclose(zca_matrix(covariance, eps).numpy(), reference, rtol=2e-3, atol=1e-4 / scale)


def test_whitened_rows_are_uncorrelated_within_their_group() -> None:
    rows = randn(400, 12) @ randn(12, 12, seed=1) + 3.0
    zca = ZCA(12, group=4, eps=1e-3, num_rows=400)
    zca.update(rows)
    white = zca(rows)
    covariance = torch.cov(white.T, correction=0)
    for group in range(3):
        part = slice(4 * group, 4 * group + 4)
        assert torch.allclose(covariance[part, part], torch.eye(4), atol=0.05)
    assert torch.allclose(white.mean(0), torch.zeros(12), atol=1e-3)


def test_whitening_waits_for_rows_then_uses_the_newest_and_takes_no_gradient() -> None:
    zca = ZCA(6, group=4, eps=1e-2, num_rows=10)  # 4 does not divide 6: groups of 3
    assert zca.matrix.shape == (2, 3, 3)
    rows = randn(30, 6)
    zca.update(rows[:5])
    assert torch.equal(zca(rows), rows)
    zca.update(rows[5:20])
    mean = rows[10:20].mean(0)
    assert torch.allclose(zca.mean, mean, atol=1e-6)
    leaf = rows.clone().requires_grad_()
    zca(leaf)[:, 0].sum().backward()
    assert torch.allclose(leaf.grad[0, :3], zca.matrix[0][:, 0])
    zca.update(torch.zeros(10, 6))  # no variance at all
    assert torch.isfinite(zca(torch.zeros(2, 6))).all()


# ---------------------------------------------------------------------------------------------------------- the method


def test_without_local_loss_and_whitening_it_is_moco_v2() -> None:
    method = moco(local_weight=0.0, zca=False)
    image, foreground, draws = toy_batch(method)
    output = method(image, foreground, draws)
    assert output.loss.item() == output.terms["contrast"].item()
    vectors = {}
    for view, encoder, head in (("query", method.encoder, method.head), ("key", method.encoder, method.head)):
        features = encoder(method._view(view, image, foreground, draws))[-1]
        vectors[view] = F.normalize(head(features.mean((2, 3, 4))), dim=1)  # the copies are still equal
    logits = torch.cat([(vectors["query"] * vectors["key"]).sum(1)[:, None], vectors["query"] @ method.queue.keys.T], 1)
    expected = F.cross_entropy(logits / 0.2, torch.zeros(2, dtype=torch.int64))
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_keys_of_the_same_subject_are_no_negatives() -> None:
    method = moco(local_weight=0.0)
    image, foreground, draws = toy_batch(method)
    with torch.no_grad():
        method.queue.subjects.fill_(0)
    loss_of_both = method(image, foreground, draws | {"subject": torch.tensor([0, 0])}).loss
    assert loss_of_both.item() == 0.0  # nothing is left to confuse the own key with
    assert method(image, foreground, draws | {"subject": torch.tensor([1, 1])}).loss.item() > 0.1


@pytest.mark.parametrize("num_axes", [2, 3])
def test_views_share_at_least_the_overlap_that_is_asked_for(num_axes: int) -> None:
    method = toy_method(MoCoZCA, num_axes=num_axes)
    assert all(16 < size <= 21 for size in method.crop_size(method.config, method.patch_size))
    shares = []
    for sample in range(200):
        draws = method.draw(torch.Generator().manual_seed(sample))
        apart = (draws["query_lower"] - draws["key_lower"]).abs()
        shares.append(((16 - apart) / 16).prod().item())
    assert 0.5 <= min(shares) < 0.62
    assert max(shares) > 0.9


def test_regions_are_the_same_places_of_the_body_in_both_views() -> None:
    method = moco()
    image, _, draws = toy_batch(method)
    draws |= {"query_lower": torch.tensor([[0, 2, 3], [3, 0, 1]]), "key_lower": torch.tensor([[2, 2, 0], [0, 3, 3]])}
    pooled = {}
    for view in ("query", "key"):
        lower, upper = method._shared_box(view, (16, 16, 16), draws)
        patch = take_boxes(image, draws[f"{view}_lower"], (16, 16, 16))
        boxes = [
            patch[(b, slice(None), *(slice(int(u), int(v)) for u, v in zip(lower[b], upper[b], strict=True)))]
            for b in range(2)
        ]
        pooled[view] = [box.mean() for box in boxes]
        assert [tuple(box.shape[1:]) for box in boxes] == [(14, 16, 13), (13, 13, 14)]
    assert torch.equal(torch.stack(pooled["query"]), torch.stack(pooled["key"]))


def test_each_part_can_be_switched_off() -> None:
    terms = {}
    for name, settings in {
        "full": {},
        "gap": {"local_mode": "gap"},
        "no_local": {"local_weight": 0.0},
        "no_zca": {"zca": False},
    }.items():
        method = moco(**settings)
        output = method(*toy_batch(method))
        method.after_step(output.state)
        terms[name] = set(output.terms)
        buffers = set(dict(method.named_buffers()))
        assert ("local_queue.keys" in buffers) == (name == "gap")
        assert ("whitening.key.matrix" in buffers) == (name != "no_zca")
    always = {"contrast", "top1", "unchanged_views_fraction"}
    assert terms["full"] == terms["gap"] == terms["no_zca"] == always | {"local"}
    assert terms["no_local"] == always


def test_a_dropped_modality_is_empty_in_that_view() -> None:
    method = moco(p_drop_modality=1.0)
    image, foreground, draws = toy_batch(method)
    view = method._view("query", image, foreground, draws)
    assert ((view == 0).all((2, 3, 4)).sum(1) == 1).all()
    alone = toy_method(MoCoZCA, num_channels=1, p_drop_modality=1.0, local_regions=2)
    assert alone.draw(torch.Generator().manual_seed(0))["query_kept"].all()
    two = torch.tensor([True, False, True, False])
    for seed in range(20):
        kept = method.draw(torch.Generator().manual_seed(seed), two)["query_kept"][0]
        assert kept.sum() == 3
        assert not kept[two].all()


def test_after_a_step_the_branches_queue_and_statistics_have_moved() -> None:
    method = moco(key_momentum=0.5)
    batch = toy_batch(method)
    with torch.no_grad():
        for parameter in method.encoder.parameters():
            parameter.add_(0.1)
    before = next(method.momentum.encoder.parameters()).clone()
    output = method(*batch)
    method.after_step(output.state)
    after = next(method.momentum.encoder.parameters())
    assert torch.allclose(after, before + 0.05, atol=1e-6)
    assert method.queue.subjects[:2].tolist() == [0, 1]
    assert torch.equal(method.queue.keys[:2], output.state["key"])
    assert method.whitening["key"].count == method.whitening["query"].count == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"local_mode": "voxel"}, "local_mode must be one of region, gap"),
        ({"zca_rows": 10}, "zca_rows 10 must be at least twice zca_group 32"),
        ({"local_regions": 17}, "local_regions 17 are more than the first stage has positions"),
        ({"view_overlap": 0.0}, "view_overlap must be in"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        moco(**settings)
