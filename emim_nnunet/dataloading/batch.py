"""From a batch of the loader to what a network takes, on the device: the only place where that is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emim_nnunet.methods.base import SSLMethod
from emim_nnunet.randomness import Stream, seeded_generator
from emim_nnunet.views.augmentation import clear_outside_, mirror_, rotate_and_scale_


@dataclass(frozen=True)
class Augmentation:
    """Random changes of crops, a function of the seed and the number of the crop.

    Attributes:
        seed: Of everything random.
        p_rotation: Probability that a crop is rotated.
        p_scaling: Probability that a crop is scaled.
        mirror: Random flips along every axis.
    """

    seed: int
    p_rotation: float = 0.2
    p_scaling: float = 0.2
    mirror: bool = True


def prepare(
    batch: Mapping[str, Any],
    device: torch.device,
    use_mask_for_norm: Sequence[bool],
    augmentation: Augmentation | None = None,
) -> tuple[Tensor, Tensor]:
    """Image and foreground of a batch on the device.

    Args:
        batch: ``image`` (B, C, *P) float32, ``foreground`` (B, 1, *P) bool and, to be augmented, ``index`` (B,); ``inside``
            (B, 1, *P) bool where nnU-Net takes something else for the body. Tensors that are on the device already are
            changed in place.
        device: Where they are wanted.
        use_mask_for_norm: Of the plans: per channel, whether voxels outside of what nnU-Net takes for the body are 0.
        augmentation: None = as they are.

    Returns:
        Both.
    """
    image = batch["image"].to(device, non_blocking=True)
    masks = batch["foreground"].to(device, non_blocking=True)
    if "inside" in batch:  # whatever counts as body, the image is the one of the segmentation stage
        masks = torch.cat([masks, batch["inside"].to(device, non_blocking=True)], dim=1)
    if augmentation is not None:
        indices, seed = batch["index"].tolist(), augmentation.seed
        rotate_and_scale_(
            image, masks, indices, seed, p_rotation=augmentation.p_rotation, p_scaling=augmentation.p_scaling
        )
        if augmentation.mirror:
            mirror_([image, masks], indices, seed)
    clear_outside_(image, masks[:, -1:], use_mask_for_norm)
    return image, masks[:, :1].contiguous()


def draw(
    method: SSLMethod, seed: int, indices: Sequence[int], present: Sequence[Tensor] | Tensor | None = None
) -> dict[str, Tensor]:
    """Masks and other random inputs of a method for the samples of a batch, a function of seed and number of the sample.

    Args:
        method: Draws them.
        seed: Of the stage.
        indices: Number of each sample.
        present: (B, C) bool, which modalities each sample has; None = all.

    Returns:
        (B, ...) tensors on the CPU.
    """
    having = [None] * len(indices) if present is None else present
    samples = [
        method.draw(seeded_generator(seed, Stream.MASK, index), channels)
        for index, channels in zip(indices, having, strict=True)
    ]
    return {key: torch.cat([sample[key] for sample in samples]) for key in samples[0]}


def method_inputs(
    method: SSLMethod,
    batch: Mapping[str, Any],
    device: torch.device,
    use_mask_for_norm: Sequence[bool],
    seed: int,
    augmentation: Augmentation | None = None,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """What the forward pass of an SSL method takes: image, foreground and random inputs, on the device.

    Args:
        method: Draws the random inputs.
        batch: Of :class:`~emim_nnunet.dataloading.loader.CropBatches`.
        device: Where they are wanted.
        use_mask_for_norm: See :func:`prepare`.
        seed: Of the random inputs.
        augmentation: See :func:`prepare`.
    """
    image, foreground = prepare(batch, device, use_mask_for_norm, augmentation)
    draws = draw(method, seed, batch["index"].tolist(), batch["present"]) | {"subject": batch["subject"]}
    return image, foreground, {key: value.to(device, non_blocking=True) for key, value in draws.items()}
