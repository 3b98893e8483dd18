"""Turning a batch of the loader into the inputs of a network on the device: the only place where that is done."""

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
    """Random changes of crops, which depend on the seed and the number of the crop.

    Attributes:
        seed: Seed of everything random.
        p_rotation: Probability that a crop is rotated.
        p_scaling: Probability that a crop is scaled.
        mirror: Whether crops are flipped at random along every axis.
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
    """Move image and foreground of a batch to the device, augment them, and set the outside of the foreground to 0.

    Args:
        batch: ``image`` (B, C, *P) float32, ``foreground`` (B, 1, *P) bool and, to be augmented, ``index`` (B,); ``inside``
            (B, 1, *P) bool where nnU-Net takes something else for the body. Tensors that are on the device already are
            changed in place.
        device: The device that they are moved to.
        use_mask_for_norm: ``use_mask_for_norm`` of the plans: for each channel, whether voxels outside of what nnU-Net takes
            for the body are 0.
        augmentation: The random changes; None = no augmentation.

    Returns:
        The image (B, C, *P) float32 and the foreground (B, 1, *P) bool, on the device.
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
    """Draw masks and other random inputs of a method for the samples of a batch.

    They depend on the seed and the number of the sample alone.

    Args:
        method: The method whose inputs are drawn.
        seed: Seed of the random inputs.
        indices: The number of each sample.
        present: (B, C) bool, the modalities that each sample has; None = all.

    Returns:
        Name -> tensor (B, ...) on the CPU.
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
    """Make the inputs of the forward pass of an SSL method: image, foreground and random inputs, on the device.

    Args:
        method: The method whose random inputs are drawn.
        batch: A batch of :class:`~emim_nnunet.dataloading.loader.CropBatches`.
        device: The device that all are moved to.
        use_mask_for_norm: For each channel, whether voxels outside the foreground are 0, see :func:`prepare`.
        seed: Seed of the random inputs.
        augmentation: The random changes; None = no augmentation.
    """
    image, foreground = prepare(batch, device, use_mask_for_norm, augmentation)
    draws = draw(method, seed, batch["index"].tolist(), batch["present"]) | {"subject": batch["subject"]}
    return image, foreground, {key: value.to(device, non_blocking=True) for key, value in draws.items()}
