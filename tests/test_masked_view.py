"""What an encoder is told of the mask: where the fill starts, empty masked positions, mask channels, masked rows of PBT."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from emim_nnunet.checkpoints.encoder import encoder_state
from emim_nnunet.masking import cells_to_voxels
from emim_nnunet.methods.base import SSLMethod
from emim_nnunet.methods.emim import EMIM
from emim_nnunet.methods.mask_in_mask import MaskInMask
from emim_nnunet.methods.masked_modelling import ViewWeights
from emim_nnunet.methods.mim import MIM
from emim_nnunet.methods.self_distillation import MaskedSelfDistillation
from emim_nnunet.networks import ReconstructionDecoder, mask_stem, visible_only
from tests.toy import toy_batch, toy_method, toy_unet

PYRAMID = {"pyramid_levels": (1, 2), "projector_widths": (16, 16)}
METHODS: dict[type[SSLMethod], dict[str, Any]] = {
    MIM: {"fill": "learned"},
    EMIM: PYRAMID,
    MaskedSelfDistillation: PYRAMID,
}
each_method = pytest.mark.parametrize("method_class", METHODS, ids=lambda m: m.__name__)
both_kinds = pytest.mark.parametrize("kind", ["plain", "residual"])


def make(method_class: type[SSLMethod], **settings: Any) -> SSLMethod:
    return toy_method(method_class, **METHODS[method_class] | settings)


def filled_with(method: SSLMethod, value: float) -> SSLMethod:
    with torch.no_grad():
        method.fill.fill_(value)
    return method


def checkerboard() -> Tensor:
    """(2, 1, 16, 16, 16) bool, True = masked: every other cell of 4 voxels."""
    cells = torch.stack(torch.meshgrid(*[torch.arange(4)] * 3, indexing="ij")).sum(0) % 2 == 0
    return cells_to_voxels(cells[None, None].expand(2, 1, 4, 4, 4), (4, 4, 4))


@pytest.mark.parametrize("method_class", [*METHODS, MaskInMask], ids=lambda m: m.__name__)
def test_the_learned_fill_starts_where_it_is_asked_to(method_class: type[SSLMethod]) -> None:
    settings = METHODS.get(method_class, {}) | {"fill": "learned"}
    assert (toy_method(method_class, **settings).fill == 0).all()
    assert (toy_method(method_class, **settings | {"fill_start": -3.0}).fill == -3).all()


@pytest.mark.parametrize(
    ("method_class", "settings", "loss", "gradient"),  # of the version that knew none of the options
    [
        (MIM, {}, 0.5293014049530029, 2.272782234182412),
        (EMIM, {}, 0.7028036117553711, 2.775600484790854),
        (EMIM, {"second_view": "masked", "norm_pix": True}, 1.464188575744629, 3.165332895917444),
    ],
)
def test_without_options_and_with_the_old_fill_the_numbers_are_those_of_before(
    method_class: type[SSLMethod], settings: dict[str, Any], loss: float, gradient: float
) -> None:
    method = filled_with(make(method_class, **settings), 0.0)
    output = method(*toy_batch(method))
    output.loss.backward()
    norm = torch.cat([p.grad.double().flatten() for p in method.parameters()]).norm()
    assert output.loss.item() == pytest.approx(loss, rel=1e-5)
    assert norm.item() == pytest.approx(gradient, rel=1e-4)


def of_masked_view(method: SSLMethod) -> list[Tensor]:
    return method(*toy_batch(method)).features


def test_nothing_of_masked_positions_reaches_visible_ones_in_a_sparse_encoder() -> None:
    for sparse in (False, True):
        views = [of_masked_view(filled_with(make(MIM, sparse_encoder=sparse), value)) for value in (-3.0, 5.0)]
        same = [torch.equal(a, b) for a, b in zip(*views, strict=True)]
        assert same == [sparse] * 3
    masked = toy_batch(make(MIM))[2]["masked"][:, :1]  # the first two stages resolve the cells
    for features, size in zip(views[0][:2], ((4, 4, 4), (2, 2, 2)), strict=True):
        assert (features.masked_select(cells_to_voxels(masked, size)) == 0).all()


@both_kinds
def test_the_sparse_encoder_is_the_dense_one_where_everything_is_visible(kind: str) -> None:
    torch.manual_seed(0)
    encoder, image = toy_unet(kind).encoder, torch.randn(2, 4, 16, 16, 16)
    everything = torch.ones(2, 1, 16, 16, 16, dtype=torch.bool)
    with torch.no_grad():
        dense = encoder(image)
        with visible_only(encoder, everything, every_layer=True):
            sparse = encoder(image)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(dense, sparse, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(dense, encoder(image), strict=True))  # no hook stays


@both_kinds
@pytest.mark.parametrize("every_layer", [False, True])
def test_only_clearing_every_layer_keeps_out_what_is_masked(kind: str, every_layer: bool) -> None:
    torch.manual_seed(0)
    encoder, visible = toy_unet(kind).encoder, ~checkerboard()
    image, outputs = torch.randn(2, 4, 16, 16, 16), []
    with torch.no_grad():
        for value in (0.0, 7.0):
            with visible_only(encoder, visible, every_layer=every_layer):
                outputs.append(encoder(image.where(visible, torch.tensor(value))))
    assert [torch.equal(a, b) for a, b in zip(*outputs, strict=True)] == [every_layer] * 3


@both_kinds
def test_mask_channels_are_what_a_wider_stem_computes(kind: str) -> None:
    torch.manual_seed(0)
    unet, wide = toy_unet(kind), toy_unet(kind, num_channels=8)
    extra = mask_stem(unet.encoder, 4)
    hidden = checkerboard().expand(2, 4, 16, 16, 16).float()
    image = torch.randn(hidden.shape) * (1 - hidden)
    first = next(m for m in unet.encoder.modules() if isinstance(m, nn.Conv3d))
    state = dict(unet.encoder.state_dict(keep_vars=True))
    for name, value in state.items():
        if value is first.weight:
            state[name] = torch.cat([first.weight, extra.weight], dim=1)
    wide.encoder.load_state_dict(state)
    method = toy_method(MIM, mask_channel=True)
    with torch.no_grad():
        expected = wide.encoder(torch.cat([image, hidden], dim=1))
        weights = ViewWeights(unet.encoder, method.decoder, None, extra)
        cells = hidden[:, :, ::4, ::4, ::4].bool()
        _, features = method.modelling.encode(image, cells, weights)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(features, expected, strict=True))


@each_method
def test_mask_channels_change_no_other_weight_and_stay_behind(method_class: type[SSLMethod]) -> None:
    without, method = make(method_class), make(method_class, mask_channel=True)
    states = [m.state_dict() for m in (without, method)]
    assert states[1].keys() - states[0].keys() == {"mask_stem.weight"}
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    transferred = encoder_state({"network_weights": states[1]})
    toy_unet().encoder.load_state_dict(transferred)  # strictly, into a network of nnU-Net's for the modalities alone
    assert not torch.equal(of_masked_view(without)[0], of_masked_view(method)[0])
    with torch.no_grad():  # filters of 0, and a mask of 0 as well, change nothing
        method.mask_stem.weight.zero_()
    assert torch.equal(of_masked_view(without)[0], of_masked_view(method)[0])


@pytest.mark.parametrize("method_class", [EMIM, MaskedSelfDistillation], ids=lambda m: m.__name__)
def test_masked_cells_are_rows_of_barlow_twins_only_when_asked_to(method_class: type[SSLMethod]) -> None:
    for flag in (False, True):
        method = make(method_class, barlow_masked_cells=flag)
        image, foreground, draws = toy_batch(method)
        hidden = draws["masked"].all(1, keepdim=True)
        with torch.no_grad():
            features = method.encoder(image)
            noise = cells_to_voxels(hidden, (2, 2, 2)) * torch.randn(features[1].shape)
            other = [features[0], features[1] + noise, features[2]]
            results = [
                method.pyramid.losses(view, features, ~hidden, foreground, draws, method.projectors)
                for view in (features, other)
            ]
        assert (results[0]["barlow_stage1"] == results[1]["barlow_stage1"]).item() != flag


@pytest.mark.parametrize("method_class", [*METHODS, MaskInMask], ids=lambda m: m.__name__)
def test_the_decoder_has_the_width_that_is_planned(method_class: type[SSLMethod]) -> None:
    """With fewer channels than values to produce, a position's prediction has the rank of the channels."""
    ranks: list[int] = []
    for settings in ({}, {"decoder_min_width": 32}):
        method = toy_method(method_class, **METHODS.get(method_class, {}) | settings)
        assert isinstance(method.decoder, ReconstructionDecoder)
        ranks.append(int(torch.linalg.matrix_rank(method.decoder.head.weight.flatten(1))))
    assert ranks == [8, 32]  # 4 modalities x 2^3 voxels
