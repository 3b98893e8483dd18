"""The light reconstruction decoder. It is thrown away after the SSL stage, so it costs as little as possible."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from dynamic_network_architectures.building_blocks.patch_encode_decode import PatchDecode
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from emim_nnunet.networks.geometry import cumulative_strides

MIN_WIDTH, MAX_WIDTH = 8, 160


def decoder_widths(features_per_stage: Sequence[int], min_width: int = MIN_WIDTH) -> list[int]:
    """Channels of the decoder at each stage: half the encoder's, at most 160, at least ``min_width``.

    Args:
        features_per_stage: Channels of each encoder stage.
        min_width: Least number of channels, see :class:`ReconstructionDecoder`.

    Returns:
        The number of channels at each stage.
    """
    return [max(min(features // 2, MAX_WIDTH), min_width) for features in features_per_stage]


class ReconstructionDecoder(nn.Module):
    """Top-down pathway over the encoder's stages 1.. that ends at the resolution of stage 1.

    The full-resolution stage, where a U-Net decoder spends most of its time, is not decoded: a 1x1 convolution predicts all
    voxels of a position of stage 1 at once (depth to space).

    Args:
        features_per_stage: Channels of each encoder stage.
        strides: Stride of each stage (nnU-Net's ``strides``).
        num_modalities: Number C of channels to reconstruct.
        conv_op: ``nn.Conv2d`` or ``nn.Conv3d``.
        min_width: Least number of channels at a stage, None = 8. With fewer than the head has to produce, C times the voxels of
            a position of stage 1, the head is of lower rank than an image, and no voxel of its own can be right.
    """

    def __init__(
        self,
        features_per_stage: Sequence[int],
        strides: Sequence[int | Sequence[int]],
        num_modalities: int,
        conv_op: type[nn.Module],
        min_width: int | None = None,
    ) -> None:
        super().__init__()
        num_axes = 2 if conv_op is nn.Conv2d else 3
        norm_op = nn.InstanceNorm2d if num_axes == 2 else nn.InstanceNorm3d
        widths = decoder_widths(features_per_stage, MIN_WIDTH if min_width is None else min_width)
        stages = range(1, len(features_per_stage))
        self.num_modalities = num_modalities
        self.block = cumulative_strides(strides, num_axes)[1]
        self.lateral = nn.ModuleList(conv_op(features_per_stage[s], widths[s], 1) for s in stages)
        self.top_down = nn.ModuleList(conv_op(widths[s + 1], widths[s], 1, bias=False) for s in stages[:-1])
        self.smooth = nn.ModuleList(
            nn.Sequential(
                norm_op(widths[s], affine=True),
                nn.LeakyReLU(inplace=True),
                conv_op(widths[s], widths[s], 3, padding=1, bias=False),
                norm_op(widths[s], affine=True),
                nn.LeakyReLU(inplace=True),
            )
            for s in stages
        )
        self.width = widths[1]
        self.head = self._new_head(conv_op)

    def _new_head(self, conv_op: type[nn.Module]) -> nn.Module:
        return conv_op(self.width, self.num_modalities * prod(self.block), 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Reconstruct the patch.

        Args:
            features: The outputs (B, features_s, *grid_s) of all encoder stages.

        Returns:
            The reconstructed patch (B, C, *P).
        """
        return self.predict(self.decode(features))

    def decode(self, features: Sequence[Tensor]) -> Tensor:
        """The last features before the prediction, (B, width, *grid_1).

        Args:
            features: The outputs of all encoder stages, as in :meth:`forward`.
        """
        top: Tensor | None = None
        for index in reversed(range(len(self.lateral))):
            x = self.lateral[index](features[index + 1])
            if top is not None:
                x = x + F.interpolate(self.top_down[index](top), size=x.shape[2:], mode="nearest")
            top = self.smooth[index](x)
        assert top is not None
        return top

    def predict(self, decoded: Tensor) -> Tensor:
        """The reconstructed patch (B, C, *P), from what :meth:`decode` returns."""
        return self._depth_to_space(self.head(decoded))

    def _depth_to_space(self, x: Tensor) -> Tensor:
        """Move channels to space: (B, C * prod(block), *grid) -> (B, C, *grid * block)."""
        num_axes, grid = len(self.block), x.shape[2:]
        x = x.reshape(x.shape[0], self.num_modalities, *self.block, *grid)
        interleaved = [axis for a in range(num_axes) for axis in (2 + num_axes + a, 2 + a)]
        x = x.permute(0, 1, *interleaved)
        return x.reshape(*x.shape[:2], *(g * b for g, b in zip(grid, self.block, strict=True)))


class TokenDecoder(ReconstructionDecoder):
    """The same pathway over the stages of a Primus, which all have one grid; tokens become voxels as Primus's own do.

    Its three steps unfold a token of 8 voxels by 2 each, with a nonlinearity between them, so the width does not bound what a
    token can look like. The convolutions of the pathway let a token that did not enter the encoder learn from its neighbours.

    The arguments are those of :class:`ReconstructionDecoder`; the stride of the first stage is the token.
    """

    def _new_head(self, conv_op: type[nn.Module]) -> nn.Module:
        return PatchDecode(self.block, self.width, self.num_modalities)

    def predict(self, decoded: Tensor) -> Tensor:
        """The reconstructed patch (B, C, *P), from what :meth:`decode` returns."""
        return self.head(decoded)


def forward_flops(module: nn.Module, *inputs: Tensor | Sequence[Tensor]) -> tuple[int, Any]:
    """Count the floating point operations of one forward pass, on the meta device and without computing anything.

    Args:
        module: Any module, on any device; it is not changed.
        inputs: The inputs of its forward pass, on the meta device.

    Returns:
        The number of operations (a multiply-add counts as two), and the output on the meta device.
    """
    tensors = [*module.parameters(), *module.buffers()]
    without_values = {
        id(t): nn.Parameter(t.to("meta")) if isinstance(t, nn.Parameter) else t.to("meta") for t in tensors
    }
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        output = deepcopy(module, without_values)(*inputs)
    return counter.get_total_flops(), output
