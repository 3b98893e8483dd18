"""Frozen features: one linear map per voxel, fitted to its optimum by logistic regression.

No rate and no number of steps to choose: an arm is judged by what its features hold, not by how fast a short training finds it.
The shrinkage is chosen for each arm by leaving labelled patients out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from emim_nnunet.randomness import seeded_generator
from emim_nnunet.training.linear_probe import LinearProbeNetwork

PER_SLICE = 60  # positions of every slice, and as many of its lesion
SHRINKAGES = (1e-4, 1e-3, 1e-2, 1e-1)  # C of scikit-learn: smaller is stronger
FOLDS = 4
MAX_STEPS = 100
SAMPLE = 81  # stream of the draw's generator


class TunedProbe(LinearProbeNetwork):
    """A probe whose encoder is trained too."""

    def train(self, mode: bool = True) -> TunedProbe:
        """Set the mode of all of it."""
        nn.Module.train(self, mode)
        return self

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, *P) -> (B, num_classes, *P) logits."""
        return self.decoder(self.encoder(image), image.shape[2:])


def fit_linear(
    network: LinearProbeNetwork, cases: dict[str, tuple[Tensor, Tensor]], draw: int, multiple: int
) -> dict[str, Any]:
    """Set the linear layers of a probe to the optimum for the labelled patients.

    Args:
        network: The probe; its encoder is not changed.
        cases: The labelled patients, see :func:`data.load`.
        draw: Seed of the choice of positions.
        multiple: What the size of a slice must be a multiple of.

    Returns:
        ``shrinkage``, the C that was chosen; ``threshold``, of the logit, which is in the bias: the one with the best Dice on
        the labelled patients.
    """
    rows, lesion, weight, patient = sample(network, cases, draw, multiple)
    scaler = StandardScaler().fit(rows, sample_weight=weight)
    rows = scaler.transform(rows)
    chosen = _shrinkage(rows, lesion, weight, patient)
    model = LogisticRegression(C=chosen, max_iter=MAX_STEPS).fit(rows, lesion, sample_weight=weight)
    threshold = _best_threshold(model.decision_function(rows), lesion, weight)
    slope = model.coef_[0] / scaler.scale_
    bias = float(model.intercept_[0] - slope @ scaler.mean_) - threshold
    _set(network, slope, bias)
    return {"shrinkage": chosen, "threshold": round(threshold, 3)}


@torch.no_grad()
def sample(
    network: LinearProbeNetwork, cases: dict[str, tuple[Tensor, Tensor]], draw: int, multiple: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features of random positions of every slice, and more of the lesion, with weights that undo the difference.

    Args:
        network: The probe.
        cases: Patients.
        draw: Seed of the choice.
        multiple: What the size of a slice must be a multiple of.

    Returns:
        Rows (N, columns) float32 of all stages, bilinear as the probe enlarges them; lesion (N,) bool; weight (N,) float, the
        voxels that a row stands for; patient (N,) int.
    """
    generator = seeded_generator(draw, SAMPLE)
    rows, lesions, weights, patients = [], [], [], []
    for number, name in enumerate(sorted(cases)):
        images, masks = cases[name]
        height, width = masks.shape[1:]
        padded = torch.nn.functional.pad(images, (0, -width % multiple, 0, -height % multiple))
        for image, mask in zip(padded, masks, strict=True):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                features = network.encoder(image[None])
            for value in (False, True):
                places = (mask == value).nonzero()
                if not len(places):
                    continue
                count = min(PER_SLICE, len(places))
                taken = places[torch.randperm(len(places), generator=generator)[:count]]
                rows.append(_at(features, taken, image.shape[1:]))
                lesions.append(torch.full((count,), value))
                weights.append(torch.full((count,), len(places) / count))
                patients.append(torch.full((count,), number))
    return tuple(torch.cat(parts).numpy() for parts in (rows, lesions, weights, patients))  # type: ignore[return-value]


def _at(features: list[Tensor], places: Tensor, size: torch.Size) -> Tensor:
    """(N, columns) of all stages at (row, column) positions of the slice."""
    grid = (2 * places.flip(1).float() + 1) / torch.tensor([size[1], size[0]]) - 1
    columns = [
        torch.nn.functional.grid_sample(stage.float(), grid[None, None], align_corners=False, padding_mode="border")[
            0, :, 0
        ].T
        for stage in features
    ]
    return torch.cat(columns, 1)


def _shrinkage(rows: np.ndarray, lesion: np.ndarray, weight: np.ndarray, patient: np.ndarray) -> float:
    """The C with the highest average precision on patients that are left out; the middle one with a single patient."""
    folds = min(FOLDS, len(set(patient.tolist())))
    if folds < 2:
        return SHRINKAGES[1]
    scores = dict.fromkeys(SHRINKAGES, 0.0)
    for train, test in GroupKFold(folds).split(rows, groups=patient):
        for shrinkage in SHRINKAGES:
            model = LogisticRegression(C=shrinkage, max_iter=MAX_STEPS)
            model.fit(rows[train], lesion[train], sample_weight=weight[train])
            found = model.decision_function(rows[test])
            scores[shrinkage] += average_precision_score(lesion[test], found, sample_weight=weight[test])
    return max(scores, key=lambda shrinkage: scores[shrinkage])


def _best_threshold(logits: np.ndarray, lesion: np.ndarray, weight: np.ndarray) -> float:
    order = np.argsort(-logits)
    inside = np.cumsum((weight * lesion)[order])
    dice = 2 * inside / (np.cumsum(weight[order]) + inside[-1])
    best = int(dice.argmax())
    return float(logits[order[best : best + 2]].mean())


@torch.no_grad()
def _set(network: LinearProbeNetwork, slope: np.ndarray, bias: float) -> None:
    """Make the difference of both logits of the probe ``slope * features + bias``."""
    columns = torch.from_numpy(slope).float()
    for layer in network.decoder.seg_layers:
        weight: Tensor = layer.weight  # type: ignore[assignment]
        part, columns = columns[: weight.shape[1]], columns[weight.shape[1] :]
        weight.zero_()
        weight[1] = part.view(-1, *[1] * (weight.ndim - 2))
        if layer.bias is not None:
            layer.bias.zero_()  # type: ignore[operator]
            layer.bias[1] = bias  # type: ignore[index]
