"""The lean way through the encoder computes what nnU-Net's own way computes."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from emim_nnunet.networks import first_stages, materialise, own_norm_outputs
from tests.toy import toy_unet

both_kinds = pytest.mark.parametrize("kind", ["plain", "residual"])


def image() -> torch.Tensor:
    return torch.randn((2, 4, 16, 16, 16), generator=torch.Generator().manual_seed(1))


@both_kinds
def test_owned_outputs_change_neither_values_nor_gradients_nor_the_state(kind: str) -> None:
    torch.manual_seed(0)
    stock = toy_unet(kind).encoder
    lean = deepcopy(stock)
    own_norm_outputs(lean)
    assert lean.state_dict().keys() == stock.state_dict().keys()
    inputs = [image().requires_grad_() for _ in range(2)]
    outputs = [encoder(x) for encoder, x in zip((stock, lean), inputs, strict=True)]
    for features in outputs:
        sum(f.square().sum() for f in features).backward()
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))
    assert torch.allclose(inputs[0].grad, inputs[1].grad, rtol=1e-5, atol=1e-5)
    for (name, a), b in zip(stock.named_parameters(), lean.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-4), name
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(stock(image()), lean(image()), strict=True))


@both_kinds
def test_owned_outputs_spare_the_copies_of_the_gradient(kind: str) -> None:
    def copies(encoder: nn.Module) -> int:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            encoder(image())[-1].sum().backward()
        return sum(e.count for e in profile.key_averages() if e.key == "torch::autograd::CopySlices")

    encoder = toy_unet(kind).encoder
    assert copies(encoder) > 0
    own_norm_outputs(encoder)
    assert copies(encoder) == 0


@both_kinds
@pytest.mark.parametrize("count", [1, 2, 3])
def test_first_stages_are_those_of_the_encoder(kind: str, count: int) -> None:
    encoder = toy_unet(kind).encoder
    with torch.no_grad():
        outputs = first_stages(encoder, image(), count)
        expected = encoder(image())[:count]
    assert len(outputs) == count
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


@both_kinds
def test_an_encoder_built_without_memory_is_initialised_as_by_nnunet(kind: str) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return toy_unet(kind, features=(16, 32, 64))

    stock = build()
    stock.apply(stock.initialize)
    with torch.device("meta"):
        unet = build()
    torch.manual_seed(1)
    materialise(unet.encoder, unet.initialize)
    assert unet.encoder.state_dict().keys() == stock.encoder.state_dict().keys()
    for (name, mine), theirs in zip(
        unet.encoder.state_dict().items(), stock.encoder.state_dict().values(), strict=True
    ):
        if mine.ndim > 1:
            assert mine.std().item() == pytest.approx(theirs.std().item(), rel=0.2), name
            assert abs(mine.mean().item()) < 0.1 * mine.std().item() + 0.02, name
        else:
            assert torch.equal(mine, theirs), name  # biases, and norms: constants
