"""The contract of every SSL method, on every trainer that is found, and what is particular to E-MIM."""

from __future__ import annotations

import inspect
import json
import pickle
import re
from dataclasses import fields
from itertools import accumulate, product
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import emim_nnunet.trainers as trainers
from emim_nnunet.diagnostics import CollapseProbe
from emim_nnunet.errors import UserError
from emim_nnunet.masking import choose_rows
from emim_nnunet.methods import config_classes
from emim_nnunet.methods.base import SSLConfig, SSLMethod
from emim_nnunet.methods.emim import EMIM, EMIMConfig
from emim_nnunet.methods.mask_in_mask import MaskInMask
from emim_nnunet.methods.masked_modelling import ViewWeights
from emim_nnunet.methods.mim import MIM, MIMConfig
from emim_nnunet.methods.moco import MoCoZCA
from emim_nnunet.methods.self_distillation import MaskedSelfDistillation
from emim_nnunet.methods.vicreg import VICReg
from emim_nnunet.networks.decoder import ReconstructionDecoder, forward_flops
from emim_nnunet.planners.ssl_plan import PLANNED_KEYS
from emim_nnunet.settings.block import check_known_keys, config_from_block, emim_block
from emim_nnunet.settings.stages import FinetuneConfig, TrainingConfig
from emim_nnunet.training.description import describe_unused
from emim_nnunet.training.ssl_trainer import SSLTrainer
from emim_nnunet.training.stage import refuse_settings_without_effect, settings_without_effect
from emim_nnunet.views.augmentation import mirrored
from tests.toy import toy_batch, toy_method, toy_unet

SETTINGS: dict[type[SSLMethod], dict[str, Any]] = {
    EMIM: {"pyramid_levels": (1, 2), "projector_widths": (16, 16)},
    MaskedSelfDistillation: {"pyramid_levels": (1, 2), "projector_widths": (16, 16)},
    MoCoZCA: {"queue_size": 16, "projection_width": 8, "local_regions": 2, "zca_rows": 64},
}


def found_methods() -> list[type[SSLMethod]]:
    found = [getattr(trainers, name) for name in trainers.__all__]
    return [t.method_class for t in found if issubclass(t, SSLTrainer)]


def make(method_class: type[SSLMethod], backbone: str = "unet", **kwargs: Any) -> SSLMethod:
    settings = SETTINGS.get(method_class, {})
    if backbone == "primus" and "pyramid_levels" in settings:
        settings = settings | {"pyramid_levels": (1, 3)}
    return toy_method(method_class, backbone=backbone, **settings | kwargs)


BACKBONES = ("unet", "primus")
each_backbone = pytest.mark.parametrize("backbone", BACKBONES)
each_method = pytest.mark.parametrize("method_class", found_methods(), ids=lambda m: m.__name__)


def test_every_method_has_a_trainer() -> None:
    assert set(found_methods()) >= {MIM, EMIM, MoCoZCA, MaskInMask}
    for method_class in found_methods():
        trainer = getattr(trainers, f"nnUNetTrainer{method_class.__name__}Pretrain")
        assert trainer.method_class is method_class
        assert pickle.loads(pickle.dumps(trainer)) is trainer
        # methods of users do without (tests/test_trainer_search.py)
        file = f"{trainer.__name__}.py"
        assert Path(inspect.getfile(trainer)).name == file, (
            f"a method that ships has a file trainers/{file} that grep finds"
        )


@each_method
def test_methods_have_parts_and_do_not_inherit_each_other(method_class: type[SSLMethod]) -> None:
    assert [base for base in method_class.__mro__ if base in found_methods()] == [method_class]


@pytest.mark.parametrize(
    ("method_class", "settings", "parts"),
    [
        (MIM, {}, ["encoder", "decoder"]),
        (MIM, {"fill": "learned"}, ["fill", "encoder", "decoder"]),
        (EMIM, {}, ["fill", "encoder", "decoder", "projectors"]),
        (EMIM, {"mask_channel": True}, ["fill", "encoder", "decoder", "projectors", "mask_stem"]),
        (MaskInMask, {}, ["encoder", "decoder", "parent_heads", "child_heads"]),
        (MaskedSelfDistillation, {}, ["fill", "encoder", "decoder", "projectors", "head", "teacher"]),
    ],
)
def test_weights_keep_the_names_and_the_order_that_checkpoints_hold(
    method_class: type[SSLMethod], settings: dict[str, Any], parts: list[str]
) -> None:
    """The optimiser's state is stored by the number of a parameter."""
    method = make(method_class, **settings)
    for names in (method.state_dict(), dict(method.named_parameters())):
        assert list(dict.fromkeys(name.split(".")[0] for name in names)) == parts
        assert [name for name in names if name.startswith("fill")] == [part for part in parts if part == "fill"]


@each_method
@pytest.mark.parametrize(("backbone", "num_axes"), [("unet", 2), ("unet", 3), ("primus", 3)])
@pytest.mark.parametrize("num_channels", [1, 2, 4, 8])
def test_loss_is_finite_and_reaches_every_parameter(
    method_class: type[SSLMethod], backbone: str, num_axes: int, num_channels: int
) -> None:
    method = make(method_class, backbone, num_axes=num_axes, num_channels=num_channels)
    image, foreground, draws = toy_batch(method, num_axes=num_axes)
    output = method(image, foreground, draws)
    output.loss.backward()
    assert torch.isfinite(output.loss)
    if output.reconstruction is not None:
        assert output.reconstruction.prediction.shape == (2, num_channels, *method.patch_size)
    trained = {n: p.grad for n, p in method.named_parameters() if p.requires_grad}
    without = [n for n, grad in trained.items() if grad is None or not torch.isfinite(grad).all()]
    assert without == []


@each_backbone
@each_method
def test_same_draws_same_loss_other_draws_other_loss(method_class: type[SSLMethod], backbone: str) -> None:
    method = make(method_class, backbone)
    losses = [method(*toy_batch(method, first=first)).loss.item() for first in (0, 0, 5)]
    assert losses[0] == losses[1] != losses[2]


@each_backbone
@each_method
def test_twenty_steps_on_one_batch_lower_the_loss(method_class: type[SSLMethod], backbone: str) -> None:
    method = make(method_class, backbone)
    batch = toy_batch(method)
    optimizer = torch.optim.AdamW(method.parameters(), lr={"unet": 3e-3, "primus": 1e-2}[backbone])
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        output = method(*batch)
        output.loss.backward()
        optimizer.step()  # no after_step: a queue that fills would be another task at every step
        losses.append(output.loss.item())
    assert losses[-1] < 0.9 * losses[0]


@each_backbone
@each_method
def test_evaluation_leaves_the_state_and_loading_restores_the_output(
    method_class: type[SSLMethod], backbone: str
) -> None:
    method = make(method_class, backbone)
    batch = toy_batch(method)
    method.after_step(method(*batch).state)
    before = {k: v.clone() for k, v in method.state_dict().items()}
    with torch.no_grad():
        loss = method.eval()(*batch).loss
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())
    other = make(method_class, backbone)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    other.load_state_dict(before)
    assert torch.equal(other.eval()(*batch).loss, loss)


ONE_TO_FOUR = [[1, 0, 0, 0], [1, 0, 1, 1], [0, 1, 1, 0], [1, 1, 1, 1]]
ABSENT_EVERYWHERE = [[1, 0, 1, 1]] * 2 + [[0, 0, 1, 1]] * 2


@each_method
@pytest.mark.parametrize("there", [ONE_TO_FOUR, ABSENT_EVERYWHERE], ids=["one_to_four", "absent_everywhere"])
@pytest.mark.parametrize(("backbone", "num_axes"), [("unet", 2), ("unet", 3), ("primus", 3)])
def test_missing_modalities_count_for_nothing_and_leave_all_finite(
    method_class: type[SSLMethod], backbone: str, num_axes: int, there: list[list[int]]
) -> None:
    method = make(method_class, backbone, num_axes=num_axes)
    rows = torch.tensor(there, dtype=torch.bool)
    image, foreground, _ = toy_batch(method, 4, num_axes=num_axes)
    samples = [method.draw(torch.Generator().manual_seed(i), row) for i, row in enumerate(rows)]
    draws = {key: torch.cat([s[key] for s in samples]) for key in samples[0]} | {"subject": torch.arange(4)}
    there = rows.view(4, 4, *[1] * num_axes)
    output = method(image * there, foreground, draws)
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)
    method.after_step(output.state)
    assert torch.isfinite(method(image * there, foreground, draws).loss)
    shown = output.reconstruction
    if shown is not None:
        assert not shown.counted[~there.expand_as(shown.counted)].any()
        assert shown.hidden[~there.expand_as(shown.hidden)].all()
        probe = CollapseProbe((4,) * num_axes, ["a", "b", "c", "d"], 0)
        probe.update_features(range(4), shown.foreground, [shown.image])
        probe.update_reconstruction(shown.prediction, shown.target, shown.counted, shown.foreground)
        scores = probe.measure()["reconstruction"]
        assert isfinite(scores["all"]["foreground_skill"])
        assert isfinite(scores["b"]["foreground_skill"]) == bool(rows[:, 1].any())
    else:  # nothing fills a view of a missing modality
        seen = []
        method.encoder.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0]))
        with torch.no_grad():
            method(image * there, foreground, draws)
        views = [view for batch in seen for view in batch.split(len(image))]
        assert all((view[~there.expand_as(view)] == 0).all() for view in views)


@each_backbone
@each_method
def test_bfloat16_is_close_to_float32(method_class: type[SSLMethod], backbone: str) -> None:
    method = make(method_class, backbone)
    batch = toy_batch(method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = method(*batch).loss
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(method(*batch).loss.item(), rel=0.03)


@pytest.mark.slow
@each_method
def test_the_compiled_method_gives_the_same_loss_and_gradient(method_class: type[SSLMethod]) -> None:
    results = []
    for compiled in (False, True):
        method = make(method_class)
        network = torch.compile(method, backend="aot_eager") if compiled else method
        loss = network(*toy_batch(method)).loss
        loss.backward()
        results.append((loss.item(), [p.grad for p in method.parameters() if p.requires_grad]))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(results[0][1], results[1][1], strict=True))


@each_method
def test_an_unknown_key_is_refused_with_the_valid_ones(method_class: type[SSLMethod]) -> None:
    with pytest.raises(UserError, match=r"unknown key 'cel_size'.*cell_size"):
        check_known_keys({"cel_size": [4, 4, 4]}, config_classes())


def _rank_gradients(rank: int, shares: list[range], store: str, out: str, methods: list[type[SSLMethod]]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=len(shares))
    torch.set_num_threads(1)
    share, results = shares[rank], {}
    for method_class, backbone in product(methods, BACKBONES):
        method = make(method_class, backbone)
        network = DistributedDataParallel(method)
        output = network(*toy_batch(method, len(share), first=share.start))
        output.loss.backward()
        method.after_step(output.state)
        grads = {n: p.grad for n, p in method.named_parameters() if p.requires_grad}
        results[method_class.__name__, backbone] = {
            "loss": output.loss.detach(),
            "grads": grads,
            "state": method.state_dict(),
        }
    if rank == 0:
        torch.save(results, out)
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[(2, 2), (1, 3), (1, 2, 1, 2)], ids=["equal", "unequal", "four"])
def sharded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, dict[tuple[str, str], Any]]:
    """Size of a batch, and what every method makes of it in several processes, which take seconds to start."""
    sizes = request.param
    ends = list(accumulate(sizes))
    shares = [range(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    folder = tmp_path_factory.mktemp("ranks")
    out = folder / "out.pth"
    mp.spawn(_rank_gradients, (shares, str(folder / "store"), str(out), found_methods()), nprocs=len(sizes))
    return sum(sizes), torch.load(out)


@each_backbone
@each_method
def test_ranks_on_a_sharded_batch_equal_one_process(
    method_class: type[SSLMethod], backbone: str, sharded: tuple[int, dict[tuple[str, str], Any]]
) -> None:
    size, results = sharded
    result = results[method_class.__name__, backbone]
    method = make(method_class, backbone)
    output = method(*toy_batch(method, size))
    output.loss.backward()
    method.after_step(output.state)
    assert result["loss"].item() == pytest.approx(output.loss.item(), rel=1e-5)
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert torch.allclose(result["grads"][name], parameter.grad, rtol=1e-4, atol=1e-5), name
    for name, ours in method.state_dict().items():  # queues and whitening, where there are any
        assert torch.allclose(result["state"][name].float(), ours.float(), rtol=1e-3, atol=1e-4), name


# ---------------------------------------------------------------------------------------------------------- VICReg, views


class Positions(nn.Module):
    """Stands for an encoder: a stage shows where its voxels lie, and is as sensitive to a shift as can be."""

    strides, output_channels = ((1, 1), (2, 2), (2, 2)), (2, 2, 2)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [torch.nn.functional.avg_pool2d(image, 2**stage) for stage in range(3)]


def test_vicreg_reaches_the_stages_below_the_cells_too() -> None:
    """A weight without a gradient is random after the training, and ends the second step on several GPUs."""
    without = {}
    for deeper in (True, False):
        method = toy_method(VICReg, cell_size=(2, 2, 2), vicreg_deeper=deeper)
        assert method.stage == 1
        method(*toy_batch(method)).loss.backward()
        without[deeper] = [name for name, p in method.named_parameters() if p.grad is None]
    assert without[True] == []
    assert all(name.startswith("encoder.stages.2") for name in without[False])
    assert (
        VICReg.config_class.of_checkpoint({"settings": {"vicreg_width": 16}}, {"cell_size": [2, 2, 2]}).vicreg_deeper
        is False
    )


def test_rows_of_both_views_of_vicreg_are_of_the_same_place() -> None:
    method = toy_method(VICReg, num_axes=2, num_channels=2, view_probability=0.0)
    size = method.crop_size(method.config, method.patch_size)
    assert size == (20, 20)  # 16, and one cell of room
    rows = []
    samples = [method.draw(torch.Generator().manual_seed(i)) for i in range(20)]
    method.encoder = Positions()
    method.projector.forward = lambda cells, weight: rows.append((cells, weight)) or cells
    draws = {key: torch.cat([s[key] for s in samples]) for key in samples[0]}
    assert (draws["flips_a"] != draws["flips_b"]).any(1).sum() > 10
    assert (draws["lower_a"] != draws["lower_b"]).any(1).sum() > 10
    place = torch.stack(torch.meshgrid(*(torch.arange(20.0),) * 2, indexing="ij"))
    image, foreground = place.expand(20, -1, -1, -1) + 1, torch.ones(20, 1, 20, 20, dtype=torch.bool)
    output = method(image, foreground, draws)
    (a, weight), (b, _) = rows
    assert torch.allclose(a[weight > 0], b[weight > 0], atol=1e-4)
    assert output.terms["invariance"].item() == pytest.approx(0.0, abs=1e-6)
    assert output.terms["unchanged_views_fraction"] == 1.0
    apart = (draws["lower_a"] - draws["lower_b"]).abs()
    assert weight.view(20, -1).sum(1).tolist() == (4 - apart).prod(1).tolist()  # all that both views show


def test_regions_of_both_views_of_moco_are_of_the_same_place() -> None:
    method = make(MoCoZCA, num_axes=2, num_channels=2, view_probability=0.0)
    side = method.crop_size(method.config, method.patch_size)[0]
    samples = [method.draw(torch.Generator().manual_seed(i)) for i in range(20)]
    draws = {key: torch.cat([s[key] for s in samples]) for key in samples[0]}
    assert (draws["query_flips"] != draws["key_flips"]).any(1).sum() > 10
    place = torch.stack(torch.meshgrid(*(torch.arange(float(side)),) * 2, indexing="ij"))
    image, foreground = place.expand(20, -1, -1, -1) + 1, torch.ones(20, 1, side, side, dtype=torch.bool)
    views = {v: method._view(v, image, foreground, draws) for v in ("query", "key")}
    back = {v: mirrored(view, draws[f"{v}_flips"]) for v, view in views.items()}
    query, key = (method._local(v, nn.Identity(), view, draws) for v, view in back.items())
    assert torch.allclose(query, key, atol=1e-5)
    assert not torch.allclose(views["query"], views["key"])


@pytest.mark.parametrize("method_class", [VICReg, MoCoZCA], ids=lambda m: m.__name__)
def test_views_of_stages_of_earlier_versions_can_be_had(method_class: type[SSLMethod]) -> None:
    earlier = method_class.config_class.formerly | ({"zca": False} if method_class is MoCoZCA else {})
    method = make(method_class, **earlier)
    draws = method.draw(torch.Generator().manual_seed(0))
    assert not any(draws[key].any() for key in draws if "flips" in key)
    assert method_class is MoCoZCA or method.crop_size(method.config, method.patch_size) == method.patch_size
    with pytest.raises(UserError, match=r"view_probability must be null or in \[0, 1\], not 1.5"):
        make(method_class, view_probability=1.5)


# ---------------------------------------------------------------------------------------------------------- E-MIM


def test_padding_changes_the_loss_in_no_way_when_it_lies_outside_the_body() -> None:
    method = make(MIM)
    image, foreground, draws = toy_batch(method)
    reconstruction = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    padded = [torch.nn.functional.pad(x, [8] * 6) for x in (image, foreground, reconstruction)]
    losses = []
    for x, f, r, m in ((image, foreground, reconstruction, 0), (*padded, 2)):
        masked = torch.nn.functional.pad(draws["masked"], [m] * 6, value=True)
        weights = ViewWeights(lambda image: [], lambda features, r=r: r, None)
        losses.append(method.modelling.reconstruct(x, f, masked, draws["present"], weights)[0].loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_background_counts_when_asked_to() -> None:
    batch = toy_batch(make(MIM))
    with_background = make(MIM, foreground_only=False)(*batch)
    counted = with_background.reconstruction.counted
    assert counted.sum() == batch[2]["masked"].sum() * 4**3
    assert make(MIM)(*batch).reconstruction.counted.sum() < counted.sum()


def test_masked_voxels_are_hidden_and_visible_ones_untouched() -> None:
    method = make(EMIM)
    with torch.no_grad():
        method.fill.copy_(torch.arange(4.0) + 7)
    image, foreground, draws = toy_batch(method)
    hidden = draws["masked"].repeat_interleave(4, 2).repeat_interleave(4, 3).repeat_interleave(4, 4)
    shown = method(image, foreground, draws).reconstruction.masked_image
    assert torch.equal(shown[~hidden], image[~hidden])
    assert all((shown[:, c][hidden[:, c]] == c + 7).all() for c in range(4))


def test_plain_mim_masks_the_same_fraction_as_the_hybrid_mask() -> None:
    for channels in (1, 2, 4):
        fractions = []
        for method_class in (MIM, EMIM):
            method = make(method_class, num_channels=channels)
            fractions.append(method.draw(torch.Generator().manual_seed(0))["masked"].float().mean().item())
        assert fractions[0] == pytest.approx(fractions[1], abs=1 / 64)


def test_plain_mim_masks_all_modalities_together() -> None:
    masked = make(MIM).draw(torch.Generator().manual_seed(0))["masked"]
    assert torch.equal(masked[:, :1].expand_as(masked), masked)


def test_barlow_weight_zero_is_masked_modelling_with_the_hybrid_mask() -> None:
    method = make(EMIM, barlow_weight=0.0)
    output = method(*toy_batch(method))
    assert output.loss.item() == output.terms["reconstruction"].item()
    assert len(method.projectors) == 0


def test_the_decoder_is_light_on_the_topology_of_resenc_l() -> None:
    strides, features = [1, 2, 2, 2, 2, 2], [32, 64, 128, 256, 320, 320]
    encoder = ResidualEncoderUNet(
        input_channels=4,
        n_stages=6,
        features_per_stage=features,
        conv_op=nn.Conv3d,
        kernel_sizes=3,
        strides=strides,
        n_blocks_per_stage=[1, 3, 4, 6, 6, 6],
        num_classes=2,
        n_conv_per_stage_decoder=[1] * 5,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
    ).encoder
    encoder_flops, outputs = forward_flops(encoder, torch.empty((1, 4, 128, 128, 128), device="meta"))
    decoder = ReconstructionDecoder(features, strides, 4, nn.Conv3d)
    decoder_flops, reconstruction = forward_flops(decoder, outputs)
    assert reconstruction.shape == (1, 4, 128, 128, 128)
    assert 0.01 < decoder_flops / encoder_flops < 0.04


def test_original_view_gets_a_gradient_only_when_asked_to() -> None:
    gradients = []
    for flag in (False, True):
        method = make(EMIM, original_view_gradient=flag)
        method(*toy_batch(method)).loss.backward()
        gradients.append(next(method.encoder.parameters()).grad)
    assert not torch.equal(*gradients)


def test_two_masked_views_reconstruct_both() -> None:
    method = make(EMIM, second_view="masked")
    image, foreground, draws = toy_batch(method)
    assert not torch.equal(draws["masked"], draws["masked_second"])
    draws_swapped = draws | {"masked": draws["masked_second"], "masked_second": draws["masked"]}
    loss, swapped = method(image, foreground, draws).loss, method(image, foreground, draws_swapped).loss
    assert loss.item() == pytest.approx(swapped.item(), rel=1e-4)


def test_pyramid_barlow_twins_use_only_foreground_cells_that_are_visible() -> None:
    method = make(EMIM)
    image, foreground, draws = toy_batch(method)
    usable = torch.zeros(2, 64, dtype=torch.bool)
    usable[:, [3, 17, 40]] = True
    chosen, weight = choose_rows(usable, draws["scores_1"], method.config.cells_per_sample)
    assert weight.view(2, -1)[:, :3].tolist() == [[1.0] * 3] * 2
    assert weight.sum() == 6
    assert {int(i) for i in chosen[0, :3]} == {3, 17, 40}
    # cells outside the body do not change the loss
    features = method.encoder(image)
    other = [f + 5 * torch.randn(f.shape) for f in features]
    visible = ~draws["masked"].all(1, keepdim=True)
    nothing = torch.zeros_like(foreground)
    losses = method.pyramid.losses(features, other, visible, nothing, draws, method.projectors)
    assert all(torch.isfinite(v) for v in losses.values())


def test_levels_coarser_and_finer_than_the_cells_both_work() -> None:
    method = toy_method(EMIM, cell_size=(2, 2, 2), pyramid_levels=(0, 1, 2), projector_widths=(0, 8, 8))
    assert method.pyramid.grids == [(8, 8, 8), (8, 8, 8), (4, 4, 4)]
    assert torch.isfinite(method(*toy_batch(method)).loss)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cell_size": (32, 32, 32)}, "at most patch_size"),
        ({"cell_size": (5, 5, 5)}, "must divide"),
        ({"pyramid_levels": (2, 3), "projector_widths": (8, 8)}, r"pyramid_levels \[2, 3\].*has 3"),
        ({"pyramid_levels": (1, 2), "projector_widths": (8,)}, "one entry per pyramid level"),
        ({"pyramid_levels": (), "projector_widths": ()}, "at least one encoder stage"),
        ({"fill": "noise"}, "fill must be one of"),
        ({"position_ratio": 1.0}, "position_ratio must be in"),
        ({"barlow_kappa": 0.0}, "barlow_kappa must be positive"),
        ({"second_view": "third"}, "second_view must be one of"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(EMIM, **settings)


# ---------------------------------------------------------------------------------------------------------- config


def plans(**blocks: Any) -> dict[str, Any]:
    return {"plans_name": "P", "configurations": blocks}


def test_blocks_merge_key_by_key_along_inheritance() -> None:
    merged = emim_block(
        plans(
            a={"emim": {"cell_size": [8], "batch_size": 2}},
            b={"inherits_from": "a", "emim": {"batch_size": 4}},
            c={"inherits_from": "b"},
        ),
        "c",
    )
    assert merged == {"cell_size": [8], "batch_size": 4}


@pytest.mark.parametrize(
    ("configurations", "name", "message"),
    [
        ({"a": {}}, "a", "no 'emim' block"),
        ({"a": {}}, "b", "no configuration 'b'; they have: a"),
        ({"a": {"inherits_from": "b"}, "b": {"inherits_from": "a"}}, "a", "inherits from itself"),
        ({"a": {"emim": 3}}, "a", "must be a JSON object"),
    ],
)
def test_missing_blocks_are_named(configurations: dict[str, Any], name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        emim_block(plans(**configurations), name)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({}, "lacks the key 'cell_size'"),
        ({"cell_size": "8"}, "'cell_size'.*must be a list of numbers"),
        ({"cell_size": [8, 8.5]}, "'cell_size'.*must be a int"),
        ({"cell_size": [8, 8], "fill": 3}, "'fill'.*must be a str"),
        ({"cell_size": [8, 8], "norm_pix": 1}, "'norm_pix'.*must be a bool"),
        ({"cell_size": [8, 8], "position_ratio": True}, "'position_ratio'.*must be a float"),
    ],
)
def test_wrong_types_are_named(block: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config_from_block(MIMConfig, block)


def test_values_arrive_with_their_types() -> None:
    config = config_from_block(EMIMConfig, {"cell_size": [8, 8], "barlow_weight": 0, "patches_at_once": None})
    assert config.cell_size == (8, 8)
    assert isinstance(config.barlow_weight, float)
    assert config_from_block(MIMConfig, {"cell_size": [8, 8], "mask_ratio": None}).mask_ratio is None


SETTINGS_PAGE = Path(__file__).resolve().parent.parent / "documentation" / "reference" / "settings.md"
# keys that are looked at only where another one asks for it
ASKING: dict[type[SSLMethod], dict[str, Any]] = {
    MoCoZCA: {"p_drop_modality": 0.5},
    MaskInMask: {"level2_hybrid": True, "alignment": "infonce"},
}


def keys_read(method_class: type[SSLMethod], **settings: Any) -> set[str]:
    """Settings that a method looks at, from its making to the end of a step."""
    read: set[str] = set()

    class Recording(method_class.config_class):
        def __getattribute__(self, name: str) -> Any:
            read.add(name)
            return super().__getattribute__(name)

    config = Recording(**{"cell_size": (4, 4)} | SETTINGS.get(method_class, {}) | settings)
    read.clear()  # its own checks do not count
    method = method_class(toy_unet(num_axes=2).encoder, 4, (16, 16), config)
    method.after_step(method(*toy_batch(method, num_axes=2)).state)
    return read


@each_method
def test_no_setting_of_a_method_is_without_effect(method_class: type[SSLMethod]) -> None:
    read = keys_read(method_class) | keys_read(method_class, **ASKING.get(method_class, {}))
    common = {field.name for field in fields(SSLConfig)}  # of the monitor too
    assert {field.name for field in fields(method_class.config_class)} - common - read == set()


def test_plain_mim_has_only_what_it_needs() -> None:
    hybrid = {"position_ratio", "patch_ratio", "modality_mask"}
    others = {"cell_size", "mask_ratio", "fill", "fill_start", "foreground_only", "norm_pix", "decoder_min_width"}
    others |= {"sparse_encoder", "mask_channel"}
    assert {field.name for field in fields(MIMConfig)} == hybrid | others
    assert hybrid & keys_read(MIM) == hybrid
    assert hybrid & keys_read(MIM, mask_ratio=0.5) == set()


@each_method
def test_a_stage_refuses_or_names_each_setting_of_another_method(method_class: type[SSLMethod]) -> None:
    own = {field.name for field in fields(method_class.config_class)}
    others = {field.name for config in config_classes() for field in fields(config)} - own - set(PLANNED_KEYS)
    assert others
    for key in sorted(others):
        unused = settings_without_effect(
            {key: 1, "seed": 3} | dict.fromkeys(own | set(PLANNED_KEYS), 1), method_class.config_class
        )
        assert describe_unused(unused) == [f"Settings of other methods, without effect here: {key}"]
        assert settings_without_effect({key: None}, method_class.config_class) == []
    assert ("mask_ratio" in own) == (method_class is MIM)
    refused = {"mask_ratio"} if method_class in (EMIM, MaskInMask, MaskedSelfDistillation) else set()
    for key in sorted(others - refused):
        refuse_settings_without_effect({key: 1}, method_class)
    for key in refused:
        with pytest.raises(UserError, match=f"{key} has no effect with {method_class.__name__}: take it out"):
            refuse_settings_without_effect({key: 0.5}, method_class)


def test_the_settings_page_lists_every_key_with_its_default() -> None:
    known: dict[str, list[Any]] = {}
    for config in [*config_classes(), TrainingConfig, FinetuneConfig]:
        for field in fields(config):
            known.setdefault(field.name, []).append(field.default)
    listed = []
    for line in SETTINGS_PAGE.read_text("utf-8").splitlines():
        keys = re.findall(r"`(\w+)`", line.split("|")[1]) if line.startswith("| `") else []
        listed += keys
        default = line.split("|")[2].replace("`", "") if keys else ""
        if default.strip() == "planned":
            assert set(keys) <= set(PLANNED_KEYS), line
        elif keys:
            values = json.loads(f"[{default}]")
            for key, value in zip(keys, values, strict=True):
                assert (tuple(value) if isinstance(value, list) else value) in known[key], f"{key}: {line}"
    assert sorted(listed) == sorted(known), "each key of a config dataclass has one place in settings.md"
