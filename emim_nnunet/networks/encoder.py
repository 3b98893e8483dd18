"""Running the encoder that nnU-Net planned for less time and memory, with the same results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from emim_nnunet.networks.primus import PrimusEncoder


class _Owned(torch.autograd.Function):
    """The same values in the same memory, which autograd no longer treats as a view."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.ops.aten._unsafe_view(x, x.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def _own_output(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return _Owned.apply(output)


def own_norm_outputs(module: nn.Module) -> None:
    """Spare the copies that autograd makes where something is changed in place behind an instance normalisation.

    torch's instance normalisation returns a view; nnU-Net's leaky ReLU and residual sum then change it in place, for which
    the backward pass copies the whole gradient. The backward pass of a normalisation needs its input, not its output, so the
    view may be forgotten. Values and gradients stay the same.

    Args:
        module: Any module; hooks are added to its instance normalisations. Not for a module that torch.compile will see, which
            removes such copies itself.
    """
    for part in module.modules():
        if isinstance(part, nn.InstanceNorm2d | nn.InstanceNorm3d):
            part.register_forward_hook(_own_output)


def materialise(encoder: nn.Module, initialize: Callable[[nn.Module], None]) -> None:
    """Give an encoder that was built on the meta device its memory and nnU-Net's initialisation, in place.

    Building there and initialising each kernel once takes a sixth of the time of building on the CPU, where torch first fills
    every kernel itself and nnU-Net then fills it up to three times (its blocks register each layer under several names).

    Args:
        encoder: The encoder on the meta device; it is on the CPU afterwards.
        initialize: The ``initialize`` of the network class, which initialises one module; it draws from the global generator.
    """
    encoder.to_empty(device="cpu")
    for module in encoder.modules():
        reset = getattr(module, "reset_parameters", None)
        if reset is not None and not isinstance(module, nn.modules.conv._ConvNd):
            reset()
    for module in encoder.modules():
        initialize(module)


def first_stages(encoder: Any, image: Tensor, count: int) -> list[Tensor]:
    """Outputs of the first stages of an encoder of nnU-Net; the deeper ones are not computed.

    Args:
        encoder: ``PlainConvEncoder``, ``ResidualEncoder`` or :class:`PrimusEncoder`.
        image: (B, C, *P) float.
        count: Number of stages to compute.

    Returns:
        The output (B, features_s, *grid_s) of each of these stages.
    """
    if isinstance(encoder, PrimusEncoder):
        return encoder(image, count=count)
    stem = getattr(encoder, "stem", None)
    x = image if stem is None else stem(image)
    outputs = []
    for stage in encoder.stages[:count]:
        x = stage(x)
        outputs.append(x)
    return outputs


def in_parts(function: Callable[..., tuple[Tensor, ...]], at_once: int | None, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Run a function of many samples with the inner activations of a few of them in memory at once.

    More than ``at_once`` samples are run part by part, each of which is computed again in the backward pass (activation
    checkpointing, arXiv 1604.06174): the same values and gradients for about a third more time.

    Args:
        function: Takes (N, ...) tensors, returns (N, ...) tensors; samples may not depend on each other.
        at_once: Largest number of samples in a part; None = all at once.
        inputs: Tensors (N, ...), all with the same N.

    Returns:
        What ``function`` returns for all samples.
    """
    total = len(inputs[0])
    size = total if at_once is None else min(total, at_once)
    again = size < total and torch.is_grad_enabled()
    parts = []
    for first in range(0, total, size):
        part = [x[first : first + size] for x in inputs]
        parts.append(checkpoint(function, *part, use_reentrant=False) if again else function(*part))
    return parts[0] if len(parts) == 1 else tuple(torch.cat(outputs) for outputs in zip(*parts, strict=True))
