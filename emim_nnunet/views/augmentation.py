"""What happens to a batch on the training device before the method sees it."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, pi, sin

import torch
import torch.nn.functional as F
from torch import Tensor

from emim_nnunet.nnunet.plans import ANISO_THRESHOLD
from emim_nnunet.randomness import Stream, seeded_generator

SCALES = (0.7, 1.4)  # nnU-Net's; above 1 the content shrinks
SLAB = 16


def clear_outside_(image: Tensor, foreground: Tensor, channels: Sequence[bool]) -> None:
    """Set voxels outside the body to 0, where nnU-Net's segmentation stage does it as well; in place.

    Resampling with splines leaves ripples outside the body; nnU-Net's training removes them in channels that were
    normalised inside the mask, so the SSL stage must too.

    Args:
        image: (B, C, *P) float.
        foreground: (B, 1, *P) bool.
        channels: C flags, nnU-Net's ``use_mask_for_norm``.
    """
    for channel, cleared in zip(image.split(1, dim=1), channels, strict=True):
        if cleared:
            channel.mul_(foreground)


def mirror_(tensors: Sequence[Tensor], indices: Sequence[int], seed: int) -> None:
    """Flip each sample along each spatial axis with probability 1/2, the same for all tensors; in place.

    Args:
        tensors: (B, ., *P) each.
        indices: Crop number of each sample; with the seed it decides the flips.
        seed: Seed of the run.
    """
    num_axes = tensors[0].ndim - 2
    for sample, index in enumerate(indices):
        flips = torch.rand(num_axes, generator=seeded_generator(seed, Stream.AUGMENTATION, index)) < 0.5
        axes = [axis + 1 for axis in range(num_axes) if flips[axis]]
        for tensor in tensors if axes else ():
            tensor[sample] = tensor[sample].flip(axes)


def draw_flips(num_axes: int, generator: torch.Generator) -> Tensor:
    """Draw along which axes a view is mirrored, each with probability 1/2.

    Args:
        num_axes: Number of spatial axes.
        generator: CPU generator.

    Returns:
        (1, axes) bool.
    """
    return torch.rand((1, num_axes), generator=generator) < 0.5


def mirrored(image: Tensor, flips: Tensor) -> Tensor:
    """Mirror each sample along its own axes; done twice, it is the image again. The positions of a stage's output mirror alike.

    Args:
        image: (B, C, *P), any dtype.
        flips: (B, axes) bool of :func:`draw_flips`, on the device of the image; nothing waits for it.

    Returns:
        (B, C, *P), a new tensor.
    """
    for axis, flipped in enumerate(flips.unbind(1), start=2):
        image = torch.where(flipped.view(-1, *[1] * (image.ndim - 1)), image.flip(axis), image)
    return image


def rotation_ranges(patch_size: Sequence[int]) -> tuple[float, ...]:
    """Largest angle about each axis, by nnU-Net's rules.

    Args:
        patch_size: Voxels per axis.

    Returns:
        Radians: 3 numbers, the first about the first axis; a single one in 2D. Anisotropic 3D patches turn only within their
        slices, because an angle between axes of different spacing would shear the anatomy.
    """
    if len(patch_size) == 2:
        return (pi / 12 if max(patch_size) / min(patch_size) > 1.5 else pi,)
    if max(patch_size) / patch_size[0] > ANISO_THRESHOLD:
        return (pi, 0.0, 0.0)
    return (pi / 6,) * 3


def rotate_and_scale_(
    image: Tensor, foreground: Tensor, indices: Sequence[int], seed: int, *, p_rotation: float, p_scaling: float
) -> None:
    """Rotate and scale some samples about the centre of the patch, image and foreground alike, in place.

    Linear interpolation, 0 from outside the patch. Only the samples that are changed cost time.

    Args:
        image: (B, C, *P) float.
        foreground: (B, M, *P) bool, one or more masks.
        indices: Crop number of each sample; with the seed it decides everything.
        seed: Seed of the run.
        p_rotation: Probability of a rotation, angles uniform within :func:`rotation_ranges`.
        p_scaling: Probability of a scaling, uniform in 0.7 to 1.4, equal on all axes.
    """
    for sample, index in enumerate(indices):
        generator = seeded_generator(seed, Stream.SPATIAL, index)
        matrix = _draw_matrix(image.shape[2:], generator, p_rotation, p_scaling)
        if matrix is not None:
            one = slice(sample, sample + 1)
            both = _resample(torch.cat([image[one], foreground[one].to(image.dtype)], dim=1), matrix)
            channels = image.shape[1]
            image[one], foreground[one] = both[:, :channels], both[:, channels:] > 0.5


def _resample(tensor: Tensor, matrix: Tensor) -> Tensor:
    """A (1, C, *P) tensor whose voxel at p from the centre comes from matrix @ p; slab by slab, so the grid fits the cache."""
    patch_size, device = tensor.shape[2:], tensor.device
    half = torch.tensor(patch_size, dtype=torch.float32) / 2
    # grid_sample wants positions in units of half the patch, the last axis first; one term of the sum per axis of the output
    terms = []
    for axis, size in enumerate(patch_size):
        positions = torch.arange(size) - (size - 1) / 2
        term = positions[:, None] * (matrix[:, axis] / half).flip(0)
        terms.append(term.view(*[size if a == axis else 1 for a in range(len(patch_size))], -1).to(device))
    result = torch.empty_like(tensor)
    for first in range(0, patch_size[0], SLAB):
        slab = slice(first, first + SLAB)
        grid = sum(terms[1:], terms[0][slab])[None]
        result[:, :, slab] = F.grid_sample(tensor, grid, mode="bilinear", align_corners=False)
    return result


def _draw_matrix(
    patch_size: Sequence[int], generator: torch.Generator, p_rotation: float, p_scaling: float
) -> Tensor | None:
    """The matrix (axes, axes) from a voxel to where its content comes from, in voxels from the centre; None = nothing moves."""
    rotates, scales = (torch.rand(2, generator=generator) < torch.tensor([p_rotation, p_scaling])).tolist()
    if not rotates and not scales:
        return None
    matrix = torch.eye(len(patch_size))
    if rotates:
        ranges = rotation_ranges(patch_size)
        angles = (2 * torch.rand(len(ranges), generator=generator) - 1) * torch.tensor(ranges)
        planes = [(0, 1)] if len(ranges) == 1 else [(1, 2), (0, 2), (0, 1)]
        for angle, plane in zip(angles.tolist(), planes, strict=True):
            matrix = matrix @ _rotation(len(patch_size), plane, angle)
    if scales:
        low, high = SCALES
        matrix = matrix * (low + (high - low) * torch.rand((), generator=generator))
    return matrix


def _rotation(num_axes: int, plane: tuple[int, int], angle: float) -> Tensor:
    """Rotation matrix in the plane of two axes."""
    matrix = torch.eye(num_axes)
    a, b = plane
    matrix[a, a] = matrix[b, b] = cos(angle)
    matrix[a, b], matrix[b, a] = -sin(angle), sin(angle)
    return matrix
