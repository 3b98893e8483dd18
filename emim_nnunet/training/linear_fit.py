"""Linear layers on frozen features, set to their optimum by logistic regression: there is no rate and no number of steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple
from warnings import catch_warnings, simplefilter

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from emim_nnunet.training.linear_probe import LinearDecoder

SHRINKAGES = (1e-4, 1e-3, 1e-2, 1e-1)  # C of scikit-learn: smaller is stronger
FOLDS = 4
MAX_STEPS = 100  # of L-BFGS: with the least shrinkage the end is flat, and stopping early is only a little more of it
UNSEEN = -10.0  # bias of a class that no row has: e^-10 of the likelihood of the others


class Rows(NamedTuple):
    """Positions with their features.

    Attributes:
        features: (N, columns) float32, all encoder stages side by side.
        target: (N, outputs) bool, what each position is: one class of several, or any number of regions.
        weight: (N,) float, the number of positions that a row stands for.
        group: (N,) int, the case that it is from.
    """

    features: np.ndarray
    target: np.ndarray
    weight: np.ndarray
    group: np.ndarray


def join(parts: Sequence[Rows]) -> Rows:
    """All rows together."""
    return Rows(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def features_at(stages: Sequence[Tensor], places: Tensor, size: Sequence[int]) -> Tensor:
    """Features of positions, linear between those of each stage, as a linear decoder enlarges them.

    Args:
        stages: (1, features_s, *grid_s) float per stage.
        places: (N, axes) int, positions in the image.
        size: Voxels per axis of the image.

    Returns:
        (N, sum of features) float32 on the CPU.
    """
    lengths = torch.tensor(list(size), device=places.device)
    grid = ((2 * places.float() + 1) / lengths - 1).flip(1)  # the last axis first, as grid_sample has it
    grid = grid.view(1, *[1] * (places.shape[1] - 1), *grid.shape)
    columns = [F.grid_sample(s.float(), grid, align_corners=False, padding_mode="border").flatten(2)[0] for s in stages]
    return torch.cat(columns).T.cpu()


def chosen_places(mask: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, float]:
    """At most ``count`` of the True positions of a mask, and the number of positions that each of them stands for.

    Args:
        mask: (*size) bool.
        count: The most.
        generator: Chooses them; on the CPU.

    Returns:
        (n, axes) int64 on the device of the mask, and a weight of at least 1.
    """
    places = mask.nonzero()
    taken = torch.randperm(len(places), generator=generator)[:count].to(places.device)
    return places[taken], len(places) / max(1, len(taken))


def fit(rows: Rows, *, exclusive: bool) -> tuple[np.ndarray, np.ndarray, float]:
    """The linear map with the highest likelihood, but for a shrinkage that is chosen by leaving cases out.

    Args:
        rows: The rows.
        exclusive: Whether a position is of exactly one output (classes); otherwise of any number (regions).

    Returns:
        Slopes (outputs, columns) and biases (outputs,), float, for features as they are; the shrinkage, C of scikit-learn.
    """
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(rows.features, sample_weight=rows.weight)
    scaled = rows._replace(features=scaler.transform(rows.features))
    shrinkage = _best_shrinkage(scaled, exclusive)
    slopes, biases = _fit(scaled, exclusive, shrinkage)
    slopes = slopes / scaler.scale_
    return slopes, biases - slopes @ scaler.mean_, shrinkage


def _fit(rows: Rows, exclusive: bool, shrinkage: float) -> tuple[np.ndarray, np.ndarray]:
    """Slopes and biases for scaled features."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    outputs = rows.target.shape[1]
    slopes, biases = np.zeros((outputs, rows.features.shape[1])), np.full(outputs, UNSEEN)
    labels = [rows.target.argmax(1)] if exclusive else list(rows.target.T)
    for number, label in enumerate(labels):
        found = np.unique(label)
        if len(found) < 2:  # everywhere the same
            biases[found if exclusive else number] = 0.0 if exclusive else UNSEEN * (1 - 2 * found[0])
            continue
        model = LogisticRegression(C=shrinkage, max_iter=MAX_STEPS)
        with catch_warnings():
            simplefilter("ignore", ConvergenceWarning)
            model.fit(rows.features, label, sample_weight=rows.weight)
        if not exclusive:
            slopes[number], biases[number] = model.coef_[0], model.intercept_[0]
        elif len(found) == 2:  # the difference of both, all of it in the second
            slopes[found[1]], biases[found] = model.coef_[0], [0.0, model.intercept_[0]]
        else:
            slopes[found], biases[found] = model.coef_, model.intercept_
            biases[np.setdiff1d(np.arange(outputs), found)] += model.intercept_.min()
    return slopes, biases


def _best_shrinkage(rows: Rows, exclusive: bool) -> float:
    """The C with the highest average precision on cases that are left out; a middle one with a single case."""
    from sklearn.metrics import average_precision_score
    from sklearn.model_selection import GroupKFold

    folds = min(FOLDS, len(np.unique(rows.group)))
    if folds < 2:
        return SHRINKAGES[1]
    scores = dict.fromkeys(SHRINKAGES, 0.0)
    first = 1 if exclusive else 0  # the background is what is none of the others
    for train, test in GroupKFold(folds).split(rows.features, groups=rows.group):
        learnt, left_out = Rows(*(part[train] for part in rows)), Rows(*(part[test] for part in rows))
        for shrinkage in SHRINKAGES:
            slopes, biases = _fit(learnt, exclusive, shrinkage)
            logits = left_out.features @ slopes.T + biases
            for output in range(first, logits.shape[1]):
                found = logits[:, output] - (logits[:, 0] if exclusive else 0.0)
                if left_out.target[:, output].any():
                    scores[shrinkage] += average_precision_score(
                        left_out.target[:, output], found, sample_weight=left_out.weight
                    )
    return max(scores, key=lambda shrinkage: scores[shrinkage])


@torch.no_grad()
def set_layers(decoder: LinearDecoder, slopes: np.ndarray, biases: np.ndarray) -> None:
    """Make the decoder's output ``slopes @ features + biases``.

    Args:
        decoder: Its layers are changed.
        slopes: (outputs, columns) float.
        biases: (outputs,) float.
    """
    columns = torch.from_numpy(slopes).float()
    for layer in decoder.seg_layers:
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, Tensor)
        part, columns = columns[:, : weight.shape[1]], columns[:, weight.shape[1] :]
        weight.copy_(part.view(*part.shape, *[1] * (weight.ndim - 2)))
        if isinstance(bias, Tensor):
            bias.copy_(torch.from_numpy(biases).float())
