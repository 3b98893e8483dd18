"""Toy networks and batches that several test files share."""

from __future__ import annotations

from typing import Any

import torch
from dynamic_network_architectures.architectures.primus import Primus
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import Tensor, nn

from emim_nnunet.methods.base import SSLMethod
from emim_nnunet.networks import encoder_of

NETWORKS = {"plain": (PlainConvUNet, "n_conv_per_stage"), "residual": (ResidualEncoderUNet, "n_blocks_per_stage")}


def toy_unet(
    kind: str = "residual",
    *,
    num_axes: int = 3,
    num_channels: int = 4,
    num_classes: int = 3,
    features: Any = (4, 8, 16),
) -> nn.Module:
    """A U-Net as nnU-Net builds it, with three tiny stages."""
    network_class, blocks = NETWORKS[kind]
    return network_class(
        input_channels=num_channels,
        n_stages=3,
        features_per_stage=list(features),
        conv_op=nn.Conv2d if num_axes == 2 else nn.Conv3d,
        kernel_sizes=3,
        strides=[[1] * num_axes, [2] * num_axes, [2] * num_axes],
        num_classes=num_classes,
        n_conv_per_stage_decoder=[1, 1],
        conv_bias=True,
        norm_op=nn.InstanceNorm2d if num_axes == 2 else nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        **{blocks: [1, 1, 1]},
    )


def toy_primus(*, num_channels: int = 4, num_classes: int = 3, patch: tuple[int, ...] = (32, 32, 32)) -> Primus:
    """A Primus of three narrow blocks, as nnU-Net builds it but for blocks that drop out at random."""
    return Primus(
        num_channels,
        24,
        (8, 8, 8),
        num_classes,
        eva_depth=3,
        eva_numheads=2,
        input_shape=patch,
        init_values=0.1,
        scale_attn_inner=True,
    )


def toy_method(
    method_class: type[SSLMethod],
    *,
    backbone: str = "unet",
    num_axes: int = 3,
    num_channels: int = 4,
    **settings: Any,
) -> SSLMethod:
    """A method on a toy encoder: a U-Net's, or a Primus's, with patches of 4 cells per axis."""
    torch.manual_seed(0)
    cell = 8 if backbone == "primus" else 4
    size = (4 * cell,) * num_axes
    config = method_class.config_class(**{"cell_size": (cell,) * num_axes} | settings)
    network = (
        toy_primus(num_channels=num_channels, patch=size)
        if backbone == "primus"
        else toy_unet(num_axes=num_axes, num_channels=num_channels)
    )
    return method_class(encoder_of(network), num_channels, size, config)


def toy_batch(
    method: SSLMethod, batch_size: int = 2, *, num_axes: int = 3, first: int = 0
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Smooth images inside a ball, their foreground, and the draws of samples ``first``, ``first + 1``, ..."""
    images, foregrounds, draws = [], [], []
    size = method.crop_size(method.config, method.patch_size)
    axes = [torch.linspace(-1, 1, length) for length in size]
    radius = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0).sqrt()
    for sample in range(first, first + batch_size):
        generator = torch.Generator().manual_seed(sample)
        noise = torch.randn((1, method.num_modalities, *[8] * num_axes), generator=generator)
        image = nn.functional.interpolate(noise, size=size, mode="bilinear" if num_axes == 2 else "trilinear")
        foreground = (radius < 0.9)[None, None]
        images.append(image * foreground)
        foregrounds.append(foreground)
        draws.append(method.draw(generator) | {"subject": torch.tensor([sample])})
    return torch.cat(images), torch.cat(foregrounds), {key: torch.cat([d[key] for d in draws]) for key in draws[0]}
