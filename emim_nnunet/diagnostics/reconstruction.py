"""Complete collapse: how much better a reconstruction is than predictions that do not use the input.

Complete collapse (arXiv 2407.10377) means that the output does not depend on the input. The best constant under squared
error is the mean of the masked targets, so the *collapsed loss* is their variance, and

    skill = 1 - loss / collapsed loss:  1 = perfect, 0 = collapsed, below 0 = worse than a constant.

A second trivial prediction knows the outline of the body: one constant inside, another one outside. Its skill over the
constant is large wherever background counts in the loss, so a network that has learnt the outline only looks healthy. The
*outline skill* is measured against this prediction, the *foreground skill* inside the body alone.

Where the targets hardly vary, as in crops of air whose background is not 0, there is nothing to predict: any error is many
times their variance, and a skill would say nothing. It is undefined (NaN) there.

A network without a sense of place fills every fully masked cell of a sample with the same patch. Its skill may be above 0
where samples differ in their mean, so it is looked for apart: *within* is the variance of the prediction between fully masked
cells of a sample, voxel by voxel of the cell, over that of the targets. For the best prediction of what can be known at all it
equals the skill over one patch per sample.

Everything follows from sums per modality, which add up over batches and ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

COUNT, ERROR, TARGET, TARGET_SQUARES, PREDICTION, PREDICTION_SQUARES = range(6)
NEARLY_CONSTANT = 0.02  # variance over mean square: about 1 in z-scored tissue, near 0 in air
MIN_CELLS = 10  # fewer fully masked cells say nothing about how they differ


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


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Element by element; NaN where the denominator is not positive."""
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
        "loss": ratio(error, count),
        "collapsed_loss": ratio(constant, count),
        "skill": 1.0 - ratio(varied_error, varied_constant),
        "outline_skill": 1.0 - ratio(varied_error, outline),
        "foreground_skill": 1.0 - ratio(body_error, body),
        "std_ratio": ratio(predicted, body).sqrt(),
    }
    names = ("all", *channel_names)
    return {name: {key: float(values[i]) for key, values in scores.items()} for i, name in enumerate(names)}


def pooled(values: Tensor) -> Tensor:
    """(C,) -> (1 + C,), the sum over modalities first."""
    return torch.cat([values.sum(0, keepdim=True), values])


def within_sums(prediction: Tensor, target: Tensor, counted: Tensor, foreground: Tensor, grid: Sequence[int]) -> Tensor:
    """Sums over the cells all of whose voxels are counted and inside the body, about the mean patch of their sample.

    Args:
        prediction: (B, C, *P) float.
        target: (B, C, *P) float.
        counted: (B, C, *P) bool, what the loss counts.
        foreground: (B, 1, *P) bool, True inside the body.
        grid: Cells of the mask per axis.

    Returns:
        (C, 3) float64 on the CPU: cells, squared deviations of the prediction, squared deviations of the target. Samples with
        fewer than two such cells in a modality add nothing to it.
    """
    num_modalities = target.shape[1]
    total = torch.zeros((num_modalities, 3), dtype=torch.float64)
    for p, t, c, f in zip(prediction, target, counted, foreground, strict=True):  # one sample at a time: little memory
        whole = split_cells(c & f, grid).all(2)
        whole &= whole.sum(1, keepdim=True) > 1
        cells = whole.sum(1)
        deviations = []
        for values in (p, t):
            chosen = torch.where(whole[:, :, None].to(values.device), split_cells(values, grid), 0.0)
            chosen = to_float64(chosen)
            mean = chosen.sum(1, keepdim=True) / cells.clamp_min(1).view(-1, 1, 1).to(chosen.device)
            squares = torch.where(whole[:, :, None].to(chosen.device), (chosen - mean).square(), 0.0)
            deviations.append(squares.sum((1, 2)).cpu())
        total += torch.stack([cells.cpu().double(), *deviations], 1)
    return total


def split_cells(values: Tensor, grid: Sequence[int]) -> Tensor:
    """(C, *P) -> (C, cells, voxels of a cell), cells in the order of the grid."""
    blocks = [n for p, g in zip(values.shape[1:], grid, strict=True) for n in (g, p // g)]
    axes = range(1, 1 + len(blocks))
    ordered = values.reshape(-1, *blocks).permute(0, *axes[::2], *axes[1::2])
    return ordered.flatten(1 + len(grid)).flatten(1, len(grid))


def within_ratios(sums: Tensor, channel_names: Sequence[str]) -> dict[str, float]:
    """Variance of the prediction between fully masked cells of a sample, over that of the target.

    Args:
        sums: (C, 3) of :func:`within_sums`.
        channel_names: C names.

    Returns:
        ``{"all": ratio, NAME: ratio, ...}``: 0 = all cells of a sample alike, 1 = as different as the targets; NaN with fewer
        than :data:`MIN_CELLS` cells.
    """
    cells, prediction, target = (pooled(column) for column in sums.unbind(1))
    ratios = torch.where(cells < MIN_CELLS, torch.nan, ratio(prediction, target))
    return dict(zip(("all", *channel_names), ratios.tolist(), strict=True))
