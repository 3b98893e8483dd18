"""What happens to a batch on the training device before the method sees it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from emim_nnunet.randomness import Stream, seeded_generator


def clear_outside(image: Tensor, foreground: Tensor, channels: Sequence[bool]) -> Tensor:
    """Set voxels outside the body to 0, where nnU-Net's segmentation stage does it as well.

    Resampling with splines leaves ripples outside the body; nnU-Net's training removes them in channels that were
    normalised inside the mask, so the SSL stage must too.

    Args:
        image: (B, C, *P) float.
        foreground: (B, 1, *P) bool.
        channels: C flags, nnU-Net's ``use_mask_for_norm``.

    Returns:
        (B, C, *P) float.
    """
    keep = torch.tensor([not flag for flag in channels], device=image.device).view(1, -1, *[1] * (image.ndim - 2))
    return image * (foreground | keep)


def mirror(tensors: Sequence[Tensor], indices: Sequence[int], seed: int) -> list[Tensor]:
    """Flip each sample along each spatial axis with probability 1/2, the same for all tensors.

    Args:
        tensors: (B, ., *P) each.
        indices: Crop number of each sample; with the seed it decides the flips.
        seed: Seed of the run.

    Returns:
        Tensors of the same shapes.
    """
    num_axes = tensors[0].ndim - 2
    flips = torch.stack(
        [torch.rand(num_axes, generator=seeded_generator(seed, Stream.AUGMENTATION, i)) < 0.5 for i in indices]
    )
    result = list(tensors)
    for axis in range(num_axes):
        flip = flips[:, axis].to(result[0].device).view(-1, *[1] * (num_axes + 1))
        result = [torch.where(flip, tensor.flip(axis + 2), tensor) for tensor in result]
    return result
