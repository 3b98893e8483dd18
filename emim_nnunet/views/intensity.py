"""Intensity changes of views, each modality for itself, on the training device: nnU-Net's, within its ranges.

Noise, blur, brightness, contrast and gamma. (nnU-Net's simulated low resolution is left out: blur is of the same kind.)
nnU-Net's probabilities suit the augmentation of labelled data: most crops shall stay what they are. Two views that are to be
found equal need more: with nnU-Net's, 36 % of the views are the crop itself. SimCLR (arXiv 2002.05709, appendix A) and VICReg
(arXiv 2105.04906) change the colours of a view with a probability of 0.8.
"""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from emim_nnunet.distributed import all_reduce_sum

NOISE, BLUR, BRIGHTNESS, CONTRAST, GAMMA = range(5)  # columns of the parameters
PROBABILITIES = (0.1, 0.2, 0.15, 0.15, 0.3)  # nnU-Net's
NEUTRAL = (0.0, 0.0, 1.0, 1.0, 1.0)
NOISE_STD, BLUR_SIGMA, FACTORS, GAMMAS = (0.0, 0.1), (0.5, 1.0), (0.75, 1.25), (0.7, 1.5)
P_BLUR_CHANNEL = 0.5
BLUR_RADIUS = 3


def draw_intensity(
    num_modalities: int,
    generator: torch.Generator,
    present: Tensor | None = None,
    *,
    probability: float | None = None,
) -> Tensor:
    """Draw how the modalities of one view change.

    Args:
        num_modalities: C.
        generator: CPU generator.
        present: (C,) bool; a modality that is not there does not change (noise would fill it). None = all.
        probability: Probability of each of the five changes, in [0, 1]; None = nnU-Net's, 0.1 to 0.3.

    Returns:
        (1, C, 5) float32: standard deviation of noise, sigma of blur in voxels, factor of brightness, factor of contrast,
        gamma; 0, 0, 1, 1, 1 where nothing changes.
    """

    def between(low: float, high: float, size: int = num_modalities) -> Tensor:
        return low + (high - low) * torch.rand(size, generator=generator)

    def factors(low: float, high: float) -> Tensor:
        below = torch.rand(num_modalities, generator=generator) < 0.5
        return torch.where(below, between(low, 1.0), between(1.0, high))

    values = [
        between(*NOISE_STD, size=1).expand(num_modalities),
        between(*BLUR_SIGMA) * (torch.rand(num_modalities, generator=generator) < P_BLUR_CHANNEL),
        factors(*FACTORS),
        factors(*FACTORS),
        factors(*GAMMAS),
    ]
    probabilities = torch.tensor(PROBABILITIES if probability is None else (probability,) * len(values))
    applied = torch.rand(len(values), generator=generator) < probabilities
    parameters = torch.where(applied, torch.stack(values, dim=1), torch.tensor(NEUTRAL))
    if present is not None:
        parameters[~present] = torch.tensor(NEUTRAL)
    return parameters[None]


def unchanged_share(*views: Tensor) -> Tensor:
    """Share of the views of all ranks in which no modality changes.

    Args:
        views: (B, C, 5) each, the parameters of :func:`draw_intensity` of one view of every sample.

    Returns:
        () float32 in [0, 1].
    """
    parameters = torch.cat(views)
    unchanged = (parameters == parameters.new_tensor(NEUTRAL)).flatten(1).all(1).float()
    count, total = all_reduce_sum(torch.stack([unchanged.sum(), unchanged.new_tensor(float(len(unchanged)))])).unbind()
    return count / total


def draw_noise(shape: tuple[int, ...], parameters: Tensor, generator: torch.Generator, device: torch.device) -> Tensor:
    """Noise of a view, drawn where it is needed; nothing is drawn where the parameters ask for none.

    Args:
        shape: (1, C, *P).
        parameters: (1, C, 5) of :func:`draw_intensity`, on the CPU.
        generator: CPU generator; decides the seed.
        device: Device to draw on; the numbers differ between kinds of devices.

    Returns:
        (1, C, *P) float32 on ``device``.
    """
    std = parameters[:, :, NOISE]
    if not std.any():
        return torch.zeros((), device=device).expand(shape)
    there = torch.Generator(device).manual_seed(int(torch.randint(2**62, (), generator=generator)))
    noise = torch.randn(shape, generator=there, device=device)
    return noise.mul_(std.to(device).view(*std.shape, *[1] * (len(shape) - 2)))


def change_intensity(image: Tensor, foreground: Tensor, parameters: Tensor, noise: Tensor) -> Tensor:
    """Noise, blur, brightness, contrast, gamma, in nnU-Net's order; voxels outside the body that are 0 stay 0.

    Statistics (mean, smallest, largest) are those of the body: a share of background must not change what a factor does. A
    background that is not 0 is changed as the body is, and the range that nothing leaves is that of both.

    Args:
        image: (B, C, *P) float.
        foreground: (B, 1, *P) bool.
        parameters: (B, C, 5) of :func:`draw_intensity`.
        noise: (B, C, *P) of :func:`draw_noise`.

    Returns:
        (B, C, *P) float.
    """
    there = foreground | (image != 0)
    columns = parameters.view(*parameters.shape, *[1] * (image.ndim - 2)).unbind(2)
    image = _blur(image + noise, parameters[:, :, BLUR])
    image = image * columns[BRIGHTNESS]
    axes = tuple(range(2, image.ndim))
    inside = foreground.to(image.dtype)
    count = inside.sum(axes, keepdim=True).clamp_min(1.0)
    low = image.masked_fill(~there, torch.inf).amin(axes, keepdim=True)
    high = image.masked_fill(~there, -torch.inf).amax(axes, keepdim=True)
    empty = high < low
    low, high = low.masked_fill(empty, 0.0), high.masked_fill(empty, 0.0)

    def moments(x: Tensor) -> tuple[Tensor, Tensor]:
        mean = (x * inside).sum(axes, keepdim=True) / count
        return mean, (((x - mean) * inside).square().sum(axes, keepdim=True) / count).sqrt()

    mean, _ = moments(image)
    image = ((image - mean) * columns[CONTRAST] + mean).clamp(low, high)
    mean, std = moments(image)
    unit = ((image - low) / (high - low).clamp_min(1e-7)).clamp(0.0, 1.0)
    curved = unit.pow(columns[GAMMA])
    curved_mean, curved_std = moments(curved)
    curved = (curved - curved_mean) * (std / curved_std.clamp_min(1e-7)) + mean
    return torch.where(columns[GAMMA] == 1.0, image, curved) * there


def _blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with a sigma per sample and modality; 0 = none."""
    batch, channels = image.shape[:2]
    offsets = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=image.device)
    kernels = torch.exp(-0.5 * (offsets / sigma.clamp_min(1e-3)[..., None]).square())
    kernels = (kernels / kernels.sum(-1, keepdim=True)).to(image.dtype).view(batch * channels, 1, -1)
    num_axes = image.ndim - 2
    flat = image.view(1, batch * channels, *image.shape[2:])
    for axis in range(num_axes):
        # along one axis at a time, the others folded into it: a one-dimensional convolution of each line
        lines = flat.movedim(2 + axis, -1)
        folded = lines.reshape(batch * channels, prod(lines.shape[2:-1]), lines.shape[-1])
        blurred = F.conv1d(folded.transpose(0, 1), kernels, padding=BLUR_RADIUS, groups=batch * channels).transpose(
            0, 1
        )
        flat = blurred.reshape(lines.shape).movedim(-1, 2 + axis)
    return flat.reshape(image.shape)
