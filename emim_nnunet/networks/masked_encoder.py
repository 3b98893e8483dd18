"""Telling an encoder what is masked: running it on visible voxels only (SparK, arXiv 2301.03580), or giving it the mask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emim_nnunet.networks.planned import PlannedEncoder
from emim_nnunet.networks.primus import PrimusEncoder

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
NORMS = (nn.InstanceNorm2d, nn.InstanceNorm3d)
LEAKY_SLOPE = 1e-2  # of nnU-Net's initialisation


@contextmanager
def visible_only(encoder: Any, visible: Tensor, *, every_layer: bool = False) -> Iterator[None]:
    """Keep masked positions of the encoder empty inside the ``with`` block.

    Instance normalisation takes mean and variance over visible positions, and the features of masked positions are set to 0.
    A position of a coarse stage is visible when any voxel in it is.

    Into the blocks of a Primus only visible tokens enter, which is less work; that takes no notice of ``every_layer``.

    Args:
        encoder: An encoder of nnU-Net.
        visible: (B, 1, *P) bool, True where a voxel is not masked.
        every_layer: Set them to 0 in the image and after every convolution and normalisation, as in SparK, so that nothing
            of a masked position reaches a visible one; False = only after every stage.
    """
    if isinstance(encoder, PrimusEncoder):
        tokens = F.max_pool3d(visible.float(), encoder.strides[0]) > 0
        hook = encoder.register_forward_pre_hook(
            lambda _, inputs, named: (inputs, named | {"visible": tokens}), with_kwargs=True
        )
        try:
            yield
        finally:
            hook.remove()
        return
    pool = F.adaptive_max_pool2d if visible.ndim == 4 else F.adaptive_max_pool3d
    grids: dict[tuple[int, ...], Tensor] = {tuple(visible.shape[2:]): visible.float()}

    def at(x: Tensor) -> Tensor:
        size = tuple(x.shape[2:])
        if size not in grids:
            grids[size] = pool(visible.float(), size)
        return grids[size]

    def clear(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output * at(output).to(output.dtype)

    def clear_image(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0] * at(inputs[0]).to(inputs[0].dtype),)

    def normalise(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert isinstance(module, NORMS)
        return masked_instance_norm(module, inputs[0], at(output)).to(output.dtype)

    norms = [m for m in encoder.modules() if isinstance(m, NORMS)]
    layers = [m for m in encoder.modules() if isinstance(m, CONVOLUTIONS)] + norms
    hooks = [norm.register_forward_hook(normalise) for norm in norms]
    hooks += [part.register_forward_hook(clear) for part in (layers if every_layer else encoder.stages)]
    if every_layer:
        hooks.append(_first_convolution(encoder).register_forward_pre_hook(clear_image))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def visible_moments(x: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each sample and channel over the visible positions.

    Args:
        x: (B, C, *S) float.
        visible: (B, 1, *S) float, 1 = visible, 0 = masked.

    Returns:
        Both (B, C, 1, ...); 0 where nothing is visible.
    """
    axes = tuple(range(2, x.ndim))
    count = visible.sum(axes, keepdim=True).clamp_min(1.0)
    mean = (x * visible).sum(axes, keepdim=True) / count
    return mean, ((x - mean).square() * visible).sum(axes, keepdim=True) / count


def masked_instance_norm(norm: nn.InstanceNorm2d | nn.InstanceNorm3d, x: Tensor, visible: Tensor) -> Tensor:
    """Instance normalisation with the statistics of the visible positions.

    Args:
        norm: The instance normalisation whose eps, weight and bias are used.
        x: (B, C, *S) float.
        visible: (B, 1, *S) float, 1 = visible, 0 = masked.

    Returns:
        (B, C, *S) float32.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = x.float()
        mean, variance = visible_moments(x, visible)
        x = (x - mean) * torch.rsqrt(variance + norm.eps)
        if norm.weight is None:
            return x
        shape = (1, -1, *[1] * (x.ndim - 2))
        return x * norm.weight.float().view(shape) + norm.bias.float().view(shape)


def mask_stem(encoder: PlannedEncoder, num_channels: int) -> nn.Module:
    """Filters of the first convolution for more input channels, as a module of its own that is no part of the encoder.

    What it returns for the mask is to be added to what the first convolution returns, see :func:`added_to_stem`: that is what
    a stem of ``num_channels`` more input channels computes, and whoever takes the encoder leaves these filters behind.

    Args:
        encoder: An encoder of nnU-Net; it is not changed.
        num_channels: Number of channels of the mask.

    Returns:
        A convolution without bias, initialised as by nnU-Net: a mask of zeros changes nothing.
    """
    first = _first_convolution(encoder)
    geometry = (first.kernel_size, first.stride, first.padding, first.dilation)
    stem = type(first)(num_channels, first.out_channels, *geometry, bias=False)
    nn.init.kaiming_normal_(stem.weight, a=LEAKY_SLOPE)
    return stem


@contextmanager
def added_to_stem(encoder: PlannedEncoder, addition: Tensor) -> Iterator[None]:
    """Add something to the output of the encoder's first convolution inside the ``with`` block.

    Args:
        encoder: An encoder of nnU-Net.
        addition: (B, features, *S) float, of the shape of that output.
    """

    def add(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output + addition.to(output.dtype)

    hook = _first_convolution(encoder).register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()


def _first_convolution(encoder: PlannedEncoder) -> Any:
    return next(m for m in encoder.modules() if isinstance(m, CONVOLUTIONS))
