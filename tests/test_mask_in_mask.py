"""MiM: the defects of the released code excluded (octants that disagree, a level that is not used), and the parts."""

from __future__ import annotations

from typing import Any

import methods
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from emim_nnunet.errors import UserError
from emim_nnunet.losses import normalise_cells
from emim_nnunet.methods.mask_in_mask import MaskInMask, MaskInMaskConfig
from emim_nnunet.methods.mask_in_mask_levels import geometry, has_body
from emim_nnunet.networks import visible_only
from emim_nnunet.views.boxes import take_boxes, unravel
from tests.toy import toy_batch, toy_method, toy_unet


def mim(**settings: Any) -> MaskInMask:
    return toy_method(MaskInMask, **settings)


def levels_of(method: MaskInMask, image: torch.Tensor, foreground: torch.Tensor, draws: dict) -> tuple:
    wide, octants = method.levels.first(image, foreground, draws)
    detail, places = method.levels.second(image, foreground, octants, draws)
    return wide, octants, detail, places, method.levels.third(detail, places, draws)


@pytest.mark.parametrize("num_axes", [2, 3])
def test_cell_k_of_the_mask_covers_exactly_octant_k_and_children_come_only_from_masked_ones(num_axes: int) -> None:
    method = mim(num_axes=num_axes)
    num_octants = 2**num_axes
    _, foreground, draws = toy_batch(method, num_axes=num_axes)
    grid = torch.arange(num_octants).view(1, 1, *[2] * num_axes)
    numbered = grid  # every voxel of the wide crop holds the number of its octant
    for axis in range(2, 2 + num_axes):
        numbered = numbered.repeat_interleave(16, axis)
    image = numbered.expand(2, 4, *[-1] * num_axes).float()
    wide, octants, detail, _, _ = levels_of(method, image, foreground, draws)
    for sample in range(2):
        masked = wide.image[sample][wide.hidden[sample]].unique().tolist()
        visible = wide.image[sample][~wide.hidden[sample]].unique().tolist()
        assert len(masked) == num_octants // 2
        assert not set(masked) & set(visible)  # no octant is masked in part
        assert set(octants[sample].tolist()) <= {int(m) for m in masked}
    children = detail.image.view(2, 2, -1)
    assert torch.equal(children.amin(2), octants.float())  # the crop is the octant that was masked ...
    assert torch.equal(children.amax(2), octants.float())  # ... and nothing else


@pytest.mark.parametrize("settings", [{}, {"level2_hybrid": True, "level3_children": 2}, {"level3_cells": 2}])
def test_level_three_looks_only_at_what_level_two_hides(settings: dict[str, Any]) -> None:
    method = mim(**settings)
    image, foreground, draws = toy_batch(method)
    *_, detail, places, close = levels_of(method, image, foreground, draws)
    size = [n * 4 for n in method.levels.geometry.child_cells]
    lower = (unravel(places, method.levels.geometry.places) * torch.tensor(size)).flatten(0, 1)
    children = method.config.level3_children
    hidden = take_boxes(detail.hidden.repeat_interleave(children, 0), lower, size)
    assert hidden.all()
    assert close.image.shape == (4 * children, 4, 16, 16, 16)
    expected = np.prod(method.levels.geometry.cells)
    ratio = {True: 0.72, False: 0.6}[method.config.level2_hybrid]
    assert detail.hidden.float().mean().item() == pytest.approx(ratio, abs=1 / expected + 0.005)
    assert close.hidden.float().mean().item() == pytest.approx(0.5)


def test_children_avoid_the_background_where_they_can() -> None:
    method = mim(level1_ratio=0.75)
    image, _, draws = toy_batch(method, batch_size=20)
    foreground = torch.zeros((20, 1, 32, 32, 32), dtype=torch.bool)
    foreground[:, :, :16] = True  # half of the octants hold the body: at least two of six masked ones do
    _, octants, detail, places, _ = levels_of(method, image, foreground, draws)
    assert (octants < 4).all()
    foreground[:, :, :, 8:] = False
    foreground[:, :, :, :, 8:] = False
    foreground[:, :, 8:] = False
    foreground[:, :, :8, :8, :8] = True
    _, octants, detail, places, close = levels_of(method, image, foreground, draws)
    inside = (octants == 0).flatten()
    corner = (unravel(places[inside, 0], (4, 4, 4)) < 2).all()
    assert corner  # the body fills the first 2 x 2 x 2 places
    assert has_body(close)[inside].all()
    assert not has_body(detail)[~inside].any()


def test_the_wide_crop_is_reduced_by_averaging() -> None:
    method = mim()
    image, foreground, draws = toy_batch(method)
    wide, *_ = levels_of(method, image, foreground, draws)
    assert torch.allclose(wide.image, torch.nn.functional.avg_pool3d(image, 2))


@pytest.mark.parametrize("alignment", ["cosine", "infonce"])
def test_every_level_and_both_alignments_send_a_gradient(alignment: str) -> None:
    method = mim(alignment=alignment)
    image, foreground, draws = toy_batch(method)
    wide, octants, detail, places, close = levels_of(method, image, foreground, draws)
    decoded, _, prediction = method._encode_decode((wide, detail, close))
    parameter = next(method.encoder.parameters())
    for level, guess in zip((wide, detail, close), prediction, strict=True):
        (gradient,) = torch.autograd.grad(method.modelling.loss(level, guess), parameter, retain_graph=True)
        assert gradient.abs().sum() > 0
    aligned = method._alignment(decoded, octants, places, detail, close)
    assert set(aligned) == {"alignment_12", "alignment_23"}
    for number, (pair, loss) in enumerate(aligned.items()):
        parent, child = torch.autograd.grad(
            loss, (decoded[number], decoded[number + 1]), retain_graph=True, allow_unused=True
        )
        assert parent is None, f"{pair}: a gradient flows into the parent"
        assert child.abs().sum() > 0


@pytest.mark.parametrize("regions", [1, 2])
def test_the_parents_rows_are_what_it_decodes_in_the_regions_of_the_childs_place(regions: int) -> None:
    method = mim(level3_children=2, alignment_regions=regions)
    image, foreground, draws = toy_batch(method)
    wide, octants, detail, places, close = levels_of(method, image, foreground, draws)
    decoded, _, _ = method._encode_decode((wide, detail, close))
    seen: dict[str, torch.Tensor] = {}
    for kind, heads in (("parent", method.parent_heads), ("child", method.child_heads)):
        for pair, head in heads.items():
            head.register_forward_hook(lambda m, inputs, out, key=kind + pair: seen.__setitem__(key, inputs[0]))
    method._alignment(decoded, octants, places, detail, close)

    def rows(features: torch.Tensor) -> torch.Tensor:  # (D, *S) -> (regions, D)
        return F.adaptive_avg_pool3d(features, regions).flatten(1).T

    half, step, per_child = decoded[0].shape[2] // 2, decoded[1].shape[2] // 4, regions**3
    for row, number in enumerate(octants.flatten().tolist()):
        z, y, x = (half * (number // 4 % 2), half * (number // 2 % 2), half * (number % 2))
        octant = decoded[0][row // 2, :, z : z + half, y : y + half, x : x + half]
        own = slice(row * per_child, (row + 1) * per_child)
        assert torch.allclose(seen["parent12"][own], rows(octant), atol=1e-6)
        assert torch.allclose(seen["child12"][own], rows(decoded[1][row]), atol=1e-6)
    for row, number in enumerate(places.flatten().tolist()):
        z, y, x = (step * (number // 16), step * (number // 4 % 4), step * (number % 4))
        place = decoded[1][row // 2, :, z : z + step, y : y + step, x : x + step]
        own = slice(row * per_child, (row + 1) * per_child)
        assert torch.allclose(seen["parent23"][own], rows(place), atol=1e-6)
        assert torch.allclose(seen["child23"][own], rows(decoded[2][row]), atol=1e-6)


def test_the_average_over_a_child_is_almost_the_same_for_all_children_and_regions_are_not() -> None:
    tiny = methods.Network("residual", (16, 16, 16), (8, 16, 32))
    assert methods.alignment_vectors(tiny, 4, alignment_regions=1) < 0.15
    assert methods.alignment_vectors(tiny, 4) >= 0.15


def test_patches_in_portions_give_the_same_loss_and_gradient() -> None:
    results = []
    for portion in (None, 2):
        method = mim(patches_at_once=portion, masked_convolution=True)
        output = method(*toy_batch(method))
        output.loss.backward()
        results.append((output.loss.item(), [p.grad for p in method.parameters()]))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_masked_convolution_does_not_see_what_is_masked() -> None:
    encoder = toy_unet().encoder
    visible = torch.zeros((1, 1, 16, 16, 16), dtype=torch.bool)
    visible[:, :, :8] = True
    image = torch.randn((1, 4, 16, 16, 16), generator=torch.Generator().manual_seed(0))
    other = torch.where(visible, image, image + 5.0)
    far = slice(None, 6)  # away from the border, where kernels reach across at full resolution
    with visible_only(encoder, visible):
        seen = [encoder(x * visible) for x in (image, other)]
        outputs = encoder(image * visible)
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    assert all((o[:, :, o.shape[2] // 2 :] == 0).all() for o in outputs)
    # statistics are those of the visible half alone: a crop of it gives the same in its inside
    alone = encoder.stages[0](encoder.stem(image[:, :, :8]))
    assert torch.allclose(outputs[0][:, :, far], alone[:, :, far], atol=0.15)
    plain = encoder(image * visible)[0]
    error, error_plain = ((x[:, :, far] - alone[:, :, far]).abs().mean() for x in (outputs[0], plain))
    assert error < 0.2 * error_plain
    assert not encoder.stages[0]._forward_hooks  # nothing is left behind


def test_anisotropic_patches_keep_their_slices() -> None:
    config = MaskInMaskConfig(cell_size=(1, 4, 4), parent_factor=(1, 2, 2))
    shape = geometry(config, (5, 32, 32))
    assert shape.octants == (1, 2, 2)
    assert shape.octant_size == (5, 16, 16)
    assert shape.cells == (5, 8, 8)
    assert shape.child_cells == (1, 2, 2)
    assert MaskInMask.crop_size(config, (5, 32, 32)) == (5, 64, 64)
    flat = toy_method(MaskInMask, parent_factor=(1, 2, 2), cell_size=(2, 4, 4))
    output = flat(*toy_batch(flat))
    assert torch.isfinite(output.loss)


def test_a_floor_keeps_noise_in_flat_cells_small() -> None:
    image = torch.zeros((1, 1, 8, 8, 8))
    image[..., 4:] = torch.randn((8, 8, 4), generator=torch.Generator().manual_seed(0))
    image[..., :4] = 1e-4 * torch.randn((8, 8, 4), generator=torch.Generator().manual_seed(1))
    without, with_floor = (normalise_cells(image, (4, 4, 4), floor=floor) for floor in (0.0, 0.01))
    assert without[..., :4].std() > 0.08
    assert with_floor[..., :4].std() < 0.01
    assert torch.allclose(without[..., 4:], with_floor[..., 4:])


def test_targets_have_unit_variance_inside_the_body_however_much_background_a_cell_holds() -> None:
    method = mim()
    image, _, draws = toy_batch(method)
    foreground = torch.zeros((2, 1, 32, 32, 32), dtype=torch.bool)
    foreground[:, :, 8:24, 8:24, 8:24] = True  # an eighth of every octant
    wide, *_ = levels_of(method, image * foreground, foreground, draws)
    target = method.modelling.target(wide)
    for sample in range(2):
        inside = target[sample, :, 4:8, 4:8, 4:8]  # the body of the first octant at level 1
        assert torch.allclose(inside.flatten(1).mean(1), torch.zeros(4), atol=1e-4)
        assert torch.allclose(inside.flatten(1).var(1, correction=0), torch.ones(4), atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"level2_children": 5}, "level2_children 5 must be at most the number of masked octants, which is 4 of 8"),
        ({"level3_children": 39}, r"level3_children 39 of \[1, 1, 1\] cells do not fit into the 38 cells"),
        ({"parent_factor": (1, 1, 1)}, "and a 2 among them"),
        ({"parent_factor": (2, 2)}, "one entry per axis"),
        ({"parent_factor": (3, 2, 2)}, "parent_factor must be 1 or 2"),
        ({"alignment": "dot"}, "alignment must be one of cosine, infonce"),
        ({"alignment_regions": 0}, "alignment_regions must be at least 1"),
        ({"level_weights": (1.0, 1.0)}, "level_weights must be three"),
        ({"patches_at_once": 0}, "patches_at_once must be at least 1"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        mim(**settings)
