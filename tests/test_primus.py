"""Primus as an encoder: the network's own numbers, and only visible tokens enter."""

from __future__ import annotations

import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus

from emim_nnunet.networks import PrimusEncoder, ReconstructionDecoder


def toy_primus(*, rotary: bool = True, learned: bool = True, drop: float = 0.0) -> Primus:
    """A Primus of four narrow blocks for patches of 16x24x16."""
    torch.manual_seed(0)
    return Primus(
        2,
        24,
        (8, 8, 8),
        3,
        eva_depth=4,
        eva_numheads=2,
        input_shape=(16, 24, 16),
        use_rot_pos_emb=rotary,
        use_abs_pos_embed=learned,
        drop_path_rate=drop,
        init_values=0.1,
        scale_attn_inner=True,
    )


def image(samples: int = 3) -> torch.Tensor:
    return torch.randn(samples, 2, 16, 24, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("rotary", [True, False])
def test_the_last_stage_is_what_primus_decodes(rotary: bool, learned: bool) -> None:
    primus = toy_primus(rotary=rotary, learned=learned).eval()
    encoder = PrimusEncoder(primus)
    features = encoder(image())
    assert [tuple(f.shape) for f in features] == [(3, 24, 2, 3, 2)] * 4
    torch.testing.assert_close(primus.up_projection(features[-1]), primus(image()))
    everything = torch.ones(3, 1, 2, 3, 2, dtype=torch.bool)
    for ours, told in zip(features, encoder(image(), everything), strict=True):
        torch.testing.assert_close(ours, told)


def test_hidden_tokens_tell_nothing_and_are_empty() -> None:
    encoder = PrimusEncoder(toy_primus()).eval()
    visible = torch.rand(3, 1, 2, 3, 2, generator=torch.Generator().manual_seed(2)) < 0.5
    visible[1] = True  # samples of different numbers of tokens
    voxels = visible.repeat_interleave(8, 2).repeat_interleave(8, 3).repeat_interleave(8, 4)
    other = torch.where(voxels, image(), torch.full_like(image(), 7.0))
    for ours, same in zip(encoder(image(), visible), encoder(other, visible), strict=True):
        assert torch.equal(ours, same)
        assert (ours.masked_select(~visible) == 0).all()
        assert ours.masked_select(visible).std() > 0.1


def test_a_sample_is_the_same_beside_one_of_more_tokens() -> None:
    encoder = PrimusEncoder(toy_primus()).eval()
    visible = torch.zeros(2, 1, 2, 3, 2, dtype=torch.bool)
    visible[0, :, 0] = True
    visible[1] = True
    alone = encoder(image()[:1], visible[:1])
    for together, single in zip(encoder(image()[:2], visible), alone, strict=True):
        torch.testing.assert_close(together[:1], single)


def test_a_token_is_where_it_was() -> None:
    """With positions, a token that moves changes the others; without, attention does not know the order."""
    for rotary, known in ((True, True), (False, False)):
        encoder = PrimusEncoder(toy_primus(rotary=rotary, learned=False)).eval()
        tokens = image(1)
        moved = tokens.flip(2)  # exchanges the tokens of the first axis and mirrors their voxels
        moved = moved.unflatten(2, (2, 8)).flip(3).flatten(2, 3)  # back inside the tokens
        one, other = encoder(tokens)[-1], encoder(moved)[-1].flip(2)
        assert (not torch.allclose(one, other, atol=1e-4)) == known


def test_a_sample_without_visible_tokens_is_finite_and_gradients_reach_all_weights() -> None:
    encoder = PrimusEncoder(toy_primus())
    visible = torch.zeros(2, 1, 2, 3, 2, dtype=torch.bool)
    visible[1, :, :, :2] = True
    decoder = ReconstructionDecoder(encoder.output_channels, encoder.strides, 2, encoder.conv_op)
    predicted = decoder(encoder(image()[:2], visible))
    assert predicted.shape == (2, 2, 16, 24, 16)
    predicted.square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in encoder.named_parameters()}
    assert all(g is not None and g.isfinite().all() and g.abs().sum() > 0 for g in gradients.values())


def test_the_keys_are_those_of_primus() -> None:
    primus = toy_primus()
    ours = PrimusEncoder(primus).state_dict()
    own = primus.state_dict()
    assert set(ours) == {key for key in own if key.startswith(("eva.", "down_projection."))}
    assert all(own[key] is not None and torch.equal(own[key], value) for key, value in ours.items())
