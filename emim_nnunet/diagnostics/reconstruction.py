"""Complete collapse: how much better a reconstruction is than predictions that do not use the input.

Complete collapse (arXiv 2407.10377) means that the output does not depend on the input. The best constant under squared
error is the mean of the masked targets, so the *collapsed loss* is their variance, and

    skill = 1 - loss / collapsed loss:  1 = perfect, 0 = collapsed, below 0 = worse than a constant.

A second trivial prediction knows the outline of the body: one constant inside, another one outside. Its skill over the
constant is large wherever background counts in the loss, so a network that has learnt the outline only looks healthy. The
*outline skill* is measured against this prediction, the *foreground skill* inside the body alone.

Where the targets hardly vary, as in crops of air whose background is not 0, there is nothing to predict: any error is many
times their variance, and a skill would say nothing. It is undefined (NaN) there.

Everything follows from six sums per modality, which add up over batches and ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

COUNT, ERROR, TARGET, TARGET_SQUARES, PREDICTION, PREDICTION_SQUARES = range(6)
NEARLY_CONSTANT = 0.02  # variance over mean square: about 1 in z-scored tissue, near 0 in air
CONSTANTS = ("global", "modality", "cell_position", "voxel_position")


def to_float64(values: Tensor) -> Tensor:
    """Convert to float64 on the same device, or on the CPU where the device has no float64 (Apple's mps)."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def reconstruction_sums(prediction: Tensor, target: Tensor, counted: Tensor, foreground: Tensor) -> Tensor:
    """Sums over the voxels that the loss counts, separately inside and outside the body.

    Args:
        prediction: (B, C, *P) float, the reconstruction.
        target: (B, C, *P) float, what it is compared with.
        counted: (B, C, *P) bool, True where the loss counts a voxel.
        foreground: (B, 1, *P) bool, True inside the body.

    Returns:
        (2, C, 6) float64 on the CPU: [inside, outside] x modalities x (count, squared error, target, squared target,
        prediction, squared prediction).
    """
    sums = []
    for p, t, c, f in zip(prediction, target, counted, foreground, strict=True):  # one sample at a time: little memory
        p, t, c, f = to_float64(p), to_float64(t), c.to(p.device), f.to(p.device)
        values = ((p - t).square(), t, t.square(), p, p.square())
        # where() and not a product: a voxel that does not count may hold any value, NaN included
        sums += [
            torch.stack([w.flatten(1).sum(1).double(), *(torch.where(w, v, 0.0).flatten(1).sum(1) for v in values)], 1)
            for w in (c & f, c & ~f)
        ]
    return torch.stack(sums).view(-1, 2, target.shape[1], 6).sum(0).cpu()


def _squares_about_mean(sums: Tensor, total: int, squares: int) -> Tensor:
    """Summed squared deviation from the mean, (...) float64; 0 where nothing was counted."""
    count = sums[..., COUNT]
    deviation = sums[..., squares] - sums[..., total].square() / count.clamp_min(1.0)
    # cancellation leaves rounding errors of this relative size, which count as no variance
    floor = 1e-12 * sums[..., squares]
    return torch.where((count > 0) & (deviation <= floor), 0.0, deviation)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator > 0, numerator / denominator, torch.nan)


def reconstruction_scores(sums: Tensor, channel_names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Compute all scores of a reconstruction, pooled over modalities and for each of them.

    Pooled values compare the summed squared error with the summed squared error of the trivial prediction, which has constants
    of its own for each modality. Modalities whose targets are nearly constant have no skill and do not count in the pooled
    one.

    Args:
        sums: (2, C, 6) float64, see :func:`reconstruction_sums`.
        channel_names: The names of the C modalities.

    Returns:
        ``{"all": scores, NAME: scores, ...}``; scores are ``count``, ``loss``, ``collapsed_loss``, ``skill`` (over one
        constant), ``outline_skill`` (over one constant inside and one outside the body), ``foreground_skill`` (inside the
        body, over one constant) and ``std_ratio`` (standard deviation of the prediction over that of the target, inside the
        body). NaN where a value is undefined.
    """
    inside, both = sums[0], sums.sum(0)
    count, error = both[:, COUNT], both[:, ERROR]
    constant = _squares_about_mean(both, TARGET, TARGET_SQUARES)
    outline = _squares_about_mean(sums, TARGET, TARGET_SQUARES).sum(0)
    body = _squares_about_mean(inside, TARGET, TARGET_SQUARES)
    predicted = _squares_about_mean(inside, PREDICTION, PREDICTION_SQUARES)
    varied = constant > NEARLY_CONSTANT * both[:, TARGET_SQUARES]
    body_varied = body > NEARLY_CONSTANT * inside[:, TARGET_SQUARES]
    parts = [count, error, constant, *(torch.where(varied, part, 0.0) for part in (error, constant, outline))]
    parts += [torch.where(body_varied, part, 0.0) for part in (inside[:, ERROR], body, predicted)]
    columns = torch.stack(parts)
    columns = torch.cat([columns.sum(1, keepdim=True), columns], 1)
    count, error, constant, varied_error, varied_constant, outline, body_error, body, predicted = columns
    scores = {
        "count": count,
        "loss": _ratio(error, count),
        "collapsed_loss": _ratio(constant, count),
        "skill": 1.0 - _ratio(varied_error, varied_constant),
        "outline_skill": 1.0 - _ratio(varied_error, outline),
        "foreground_skill": 1.0 - _ratio(body_error, body),
        "std_ratio": _ratio(predicted, body).sqrt(),
    }
    names = ("all", *channel_names)
    return {name: {key: float(values[i]) for key, values in scores.items()} for i, name in enumerate(names)}


def position_sums(target: Tensor, counted: Tensor) -> Tensor:
    """Sums for each modality and voxel position in the patch.

    Args:
        target: (B, C, *P) float, what the loss compares with.
        counted: (B, C, *P) bool, True where the loss counts a voxel.

    Returns:
        (3, C, *P) float64 on the CPU: count, target, squared target.
    """
    target, counted = to_float64(target).cpu(), counted.cpu()
    values = torch.where(counted, target, 0.0)
    return torch.stack([counted.double().sum(0), values.sum(0), values.square().sum(0)])


def constant_losses(sums: Tensor, cell_size: Sequence[int]) -> dict[str, float]:
    """Losses of four predictions that do not use the image, each the best of its kind on the same voxels.

    With few patches the constants per voxel position fit those patches themselves, so that loss is optimistic.

    Args:
        sums: (3, C, *P) float64, see :func:`position_sums`.
        cell_size: Voxels of a mask cell per axis.

    Returns:
        Mean squared errors: of a single constant (``global``), one constant per ``modality``, one per modality and
        ``cell_position`` in the patch, and one per modality and ``voxel_position``. NaN when nothing was counted.
    """
    num_modalities, patch = sums.shape[1], sums.shape[2:]
    blocks = [n for p, c in zip(patch, cell_size, strict=True) for n in (p // c, c)]
    axes = tuple(range(3, 3 + 2 * len(patch), 2))
    grouped = {
        "global": sums.reshape(3, -1).sum(1, keepdim=True),
        "modality": sums.reshape(3, num_modalities, -1).sum(2),
        "cell_position": sums.reshape(3, num_modalities, *blocks).sum(axes),
        "voxel_position": sums,
    }
    assert prod(blocks) == prod(patch)
    return {kind: _grouped_loss(*values.flatten(1)) for kind, values in grouped.items()}


def _grouped_loss(count: Tensor, total: Tensor, squares: Tensor) -> float:
    deviation = (squares - total.square() / count.clamp_min(1.0)).clamp_min(0.0)
    return float(_ratio(deviation.sum(), count.sum()))
