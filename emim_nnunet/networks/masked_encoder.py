"""Running an encoder on the visible voxels only ("masked convolution", as in SparK, arXiv 2301.03580)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emim_nnunet.networks.planned import PlannedEncoder


@contextmanager
def visible_only(encoder: PlannedEncoder, visible: Tensor) -> Iterator[None]:
    """Keep masked positions of the encoder empty inside the ``with`` block.

    After every stage the features of masked positions are set to 0, and instance normalisation takes mean and variance over
    visible positions. A position of a coarse stage is visible when any voxel in it is.

    Args:
        encoder: An encoder of nnU-Net.
        visible: (B, 1, *P) bool, True where a voxel is not masked.
    """
    pool = F.adaptive_max_pool2d if visible.ndim == 4 else F.adaptive_max_pool3d
    grids: dict[tuple[int, ...], Tensor] = {tuple(visible.shape[2:]): visible.float()}

    def at(x: Tensor) -> Tensor:
        size = tuple(x.shape[2:])
        if size not in grids:
            grids[size] = pool(visible.float(), size)
        return grids[size]

    def clear(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output * at(output).to(output.dtype)

    def normalise(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert isinstance(module, nn.InstanceNorm2d | nn.InstanceNorm3d)
        return masked_instance_norm(module, inputs[0], at(output)).to(output.dtype)

    norms = [m for m in encoder.modules() if isinstance(m, nn.InstanceNorm2d | nn.InstanceNorm3d)]
    hooks = [norm.register_forward_hook(normalise) for norm in norms]
    hooks += [stage.register_forward_hook(clear) for stage in encoder.stages]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


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
        axes = tuple(range(2, x.ndim))
        count = visible.sum(axes, keepdim=True).clamp_min(1.0)
        mean = (x * visible).sum(axes, keepdim=True) / count
        variance = ((x - mean).square() * visible).sum(axes, keepdim=True) / count
        x = (x - mean) * torch.rsqrt(variance + norm.eps)
        if norm.weight is None:
            return x
        shape = (1, -1, *[1] * len(axes))
        return x * norm.weight.float().view(shape) + norm.bias.float().view(shape)
