"""What an SSL stage says about itself before it starts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from emim_nnunet.datasets.stage_cases import StageCases
from emim_nnunet.errors import listed
from emim_nnunet.methods.base import SSLMethod
from emim_nnunet.networks.decoder import forward_flops

MAX_LISTED = 50


def describe_cases(cases: StageCases) -> list[str]:
    """Lines for the log: which cases are learnt from, which are left out, and which are measured on."""
    learnt, probe = (_listed([c.identifier for c in part]) for part in (cases.training, cases.probe))
    lines = [f"Learning from {len(cases.training)} cases: {learnt}"]
    if cases.left_out:
        names = _listed([c.identifier for c in cases.left_out])
        lines.append(f"Left out {len(cases.left_out)} cases of patients of the validation set: {names}")
    if cases.probe_is_held_out:
        return [*lines, f"Measured on {len(cases.probe)} held-out cases: {probe}"]
    return [*lines, "Measured on the training cases: this fold holds out no case"]


def describe_unused(keys: Sequence[str]) -> list[str]:
    """A line for the log with the settings that change nothing; empty where there are none."""
    return [f"Settings of other methods, without effect here: {', '.join(keys)}"] if keys else []


def _listed(names: list[str]) -> str:
    return listed(names, MAX_LISTED, where=" (all are in the checkpoint)")


def describe_cost(method: SSLMethod, image_shape: Sequence[int]) -> str:
    """A line for the log: size and floating point operations of the encoder, and what the decoder, if any, adds.

    Args:
        method: The method with its encoder.
        image_shape: (B, C, *P), the shape of the encoder's input.
    """
    encoder = method.get_submodule("encoder")
    encoder_flops, features = forward_flops(encoder, torch.empty(image_shape, device="meta"))
    line = f"Encoder: {_millions(encoder):.2f} M parameters, {encoder_flops / 1e9:.1f} GFLOPs a patch"
    decoder = getattr(method, "decoder", None)
    if decoder is None:
        return line
    decoder_flops, _ = forward_flops(decoder, features)
    return (
        f"{line}; reconstruction decoder (thrown away): {_millions(decoder):.2f} M, {decoder_flops / 1e9:.1f} GFLOPs = "
        f"{decoder_flops / encoder_flops:.1%}"
    )


def _millions(module: nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6
