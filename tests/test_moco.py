"""MoCo v2 with local features and ZCA whitening: each part against an independent reference."""

from __future__ import annotations

from typing import Any

import methods
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


# the topologies of benchmarks/methods.py, thinner
PLANNED = [
    methods.Network(kind, *plan)
    for plan in (((64, 64), (8, 16, 32, 64, 64)), ((24, 24, 24), (8, 16, 32)))
    for kind in ("plain", "residual")
]


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


def test_whitened_rows_have_covariance_one_to_the_shrinkage_within_their_group() -> None:
    rows = randn(400, 12) @ randn(12, 12, seed=1) + 3.0
    weight = (randn(400, seed=2) > 0).float()
    zca = ZCA(12, group=4, eps=1e-3, num_rows=400)
    white, _ = zca(rows, weight)
    counted = white[weight > 0]
    covariance = torch.cov(counted.T, correction=0)
    for group in range(3):
        part = slice(4 * group, 4 * group + 4)
        assert torch.allclose(covariance[part, part], torch.eye(4), atol=0.05)
    assert torch.allclose(counted.mean(0), torch.zeros(12), atol=1e-3)


@pytest.mark.parametrize("kind", ["any", "repeated eigenvalues"])
def test_the_gradient_through_whitening_is_the_finite_difference(kind: str) -> None:
    rows = randn(12, 6).double()
    if kind == "repeated eigenvalues":  # each +-1 on one axis: the covariance is a multiple of I
        rows = torch.cat([torch.eye(6), -torch.eye(6)]).double()
    zca, direction = ZCA(6, group=3, eps=1e-2, num_rows=10).double(), randn(12, 6, seed=3).double()
    weight = torch.ones(12).double()
    assert torch.autograd.gradcheck(lambda x: (zca(x, weight)[0] * direction).sum(), rows.requires_grad_())


def test_the_figure_of_the_benchmark_is_within_its_limit() -> None:
    assert methods.zca_covariance_error(quick=True) <= 0.05


@pytest.mark.parametrize("rows", [torch.full((20, 6), 3.7), torch.zeros(20, 6), torch.ones(1, 6)])
def test_constant_rows_are_whitened_to_something_finite_with_a_finite_gradient(rows: torch.Tensor) -> None:
    leaf = rows.clone().requires_grad_()
    for weight in (torch.ones(len(rows)), torch.zeros(len(rows))):
        leaf.grad = None
        white, found = ZCA(6, group=3, eps=1e-2, num_rows=10)(leaf, weight)
        white.square().sum().backward()
        assert torch.isfinite(white).all()
        assert torch.isfinite(leaf.grad).all()
        assert all(torch.isfinite(value).all() for value in found.values())


def test_a_layer_before_the_whitening_cannot_make_whitened_rows_small() -> None:
    """With statistics that have no gradient, it can: the agreement of two views then falls to 0 with the features."""
    zca, encoder, rows = ZCA(8, group=8, eps=1e-2, num_rows=64), nn.Linear(8, 8), randn(128, 8)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=1.0)
    for _ in range(30):
        size = zca(encoder(rows), torch.ones(128))[0].square().mean()
        optimizer.zero_grad()
        size.backward()
        optimizer.step()
    assert size.item() > 1 / 8 - 0.01  # one direction of eight at the very least: it has variance 1 whatever its scale


def least_contrast(*views: torch.Tensor) -> float:
    """The least InfoNCE of whitened views of 64 patches that a linear layer behind the whitening can reach."""
    layer, temperature, zca = nn.Linear(8, 8), 0.2, ZCA(8, group=8, eps=1e-2, num_rows=64)
    white = [zca(view, torch.ones(64))[0] for view in views]
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = info_nce_rows(*(F.normalize(layer(view), dim=1) for view in white), torch.ones(64), temperature)
        value.backward()
        return value

    optimizer.step(loss)
    return loss().item()


def test_a_layer_behind_the_whitening_cannot_make_up_for_a_collapse() -> None:
    torch.manual_seed(0)
    content = randn(64, 8)
    healthy, one_direction, constant = (
        [(content + 0.2 * randn(64, 8, seed=view)) @ kept + 3.0 + 1e-4 * randn(64, 8, seed=view + 2) for view in (1, 2)]
        for kept in (torch.eye(8), torch.diag(torch.eye(8)[0]), torch.zeros(8, 8))
    )
    # whatever it does: chance is log 64 = 4.16
    least = [least_contrast(*views) for views in (healthy, one_direction, constant)]
    assert least[0] < 1.3
    assert least[1] > 2.5
    assert least[2] > 3.3
    # and features that only shrank in all directions but one are as good as before, so nothing is won by shrinking them
    shrunk = [view @ torch.diag(torch.tensor([1.0] + [0.3] * 7)) for view in healthy]
    assert least_contrast(*shrunk) < 1.3


def test_fewer_rows_than_a_covariance_needs_are_shrunk_more() -> None:
    zca = ZCA(6, group=4, eps=1e-2, num_rows=10)  # 4 does not divide 6: groups of 3
    assert zca.covariance.shape == (2, 3, 3)
    rows = randn(3, 6)
    white, found = zca(rows, torch.ones(3))
    expected = torch.einsum(
        "ngi,gij->ngj", (rows - rows.mean(0)).unflatten(1, (2, 3)), zca_matrix(found["covariance"], 0.5)
    )
    assert torch.allclose(white, expected.flatten(1), atol=1e-5)  # 3 of the 6 rows that three channels need


def test_evaluation_whitens_with_running_statistics_that_change_with_updates_only() -> None:
    zca, rows = ZCA(6, group=3, eps=1e-2, num_rows=30), randn(15, 6)
    before, _ = zca.eval()(rows, torch.ones(15))
    assert torch.allclose(before, rows, atol=1e-5)  # nothing was seen yet
    _, found = zca.train()(rows, torch.ones(15))
    assert torch.equal(zca.mean, torch.zeros(6))
    zca.update(found)  # 15 of the 30 rows that are remembered
    assert torch.allclose(zca.mean, 0.5 * rows.mean(0), atol=1e-6)
    zca.update(found | {"count": torch.tensor(99.0)})
    expected, _ = zca.train()(rows, torch.ones(15))
    assert torch.allclose(zca.eval()(rows, torch.ones(15))[0], expected, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------- the method


def test_without_local_loss_and_whitening_it_is_moco_v2() -> None:
    method = moco(local_weight=0.0, zca=False, global_vector="mean")
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


@pytest.mark.slow
@pytest.mark.parametrize("network", PLANNED, ids=lambda n: f"{n.kind}-{len(n.patch_size)}d")
def test_what_enters_the_projector_differs_between_crops_and_less_between_views(network: methods.Network) -> None:
    for zca in (False, True):
        spread, nearest = methods.moco_vectors(network, zca=zca)
        assert spread >= 0.15
        assert nearest >= 0.9
    assert methods.moco_vectors(network, zca=False, global_vector="mean")[0] < 0.15


def test_an_average_over_a_view_is_almost_the_same_for_all_crops_and_regions_are_not() -> None:
    tiny = methods.Network("residual", (16, 16, 16), (4, 8, 16))
    assert methods.moco_vectors(tiny, 4, zca=False, global_vector="mean")[0] < 0.15
    spread, nearest = methods.moco_vectors(tiny, 4, zca=False)
    assert spread >= 0.15
    assert nearest == 1.0


def test_regions_are_averages_over_the_body_of_the_same_places() -> None:
    method = moco(zca=False)
    image, _, draws = toy_batch(method)
    foreground = torch.zeros_like(image[:, :1], dtype=torch.bool)
    foreground[:, :, 4:14, 4:14, 4:14] = True
    draws |= {"query_lower": torch.tensor([[0, 2, 2], [2, 0, 0]]), "key_lower": torch.tensor([[2, 2, 0], [0, 2, 2]])}
    patches = {view: take_boxes(image, draws[f"{view}_lower"], (16, 16, 16)) for view in ("query", "key")}
    vectors = {view: method.global_vectors(view, [x], foreground, draws)[0] for view, x in patches.items()}
    assert torch.allclose(vectors["query"], vectors["key"], atol=1e-6)  # the image itself: both views show the same
    shared = (image * foreground)[
        0, 1, 2:9, 2:10, 2:9
    ]  # the first of 2 x 2 x 2 regions of the shared 14 x 16 x 14 voxels
    expected = shared.sum() / foreground[0, 0, 2:9, 2:10, 2:9].sum() / 32**0.5
    assert vectors["query"][0].view(4, 8)[1, 0].item() == pytest.approx(expected.item(), rel=1e-4)


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
        assert ("whitening.key.covariance" in buffers) == (name != "no_zca")
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
    for view in ("key", "query"):
        assert not torch.equal(method.whitening[view].mean, torch.zeros(16))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"global_vector": "max"}, "global_vector must be one of regions, mean"),
        ({"global_vector": "mean"}, "a stage that was begun so cannot go on"),
        ({"local_mode": "voxel"}, "local_mode must be one of region, gap"),
        ({"zca_rows": 10}, "zca_rows 10 must be at least twice zca_group 32"),
        ({"local_regions": 17}, "local_regions 17 are more than the first stage has positions"),
        ({"view_overlap": 0.0}, "view_overlap must be in"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        moco(**settings)
