"""Frozen features: one linear map per voxel, fitted to its optimum by logistic regression.

No rate and no number of steps to choose: an arm is judged by what its features hold, not by how fast a short training finds it.
The shrinkage is chosen for each arm by leaving labelled patients out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from emim_nnunet.randomness import seeded_generator
from emim_nnunet.training.linear_fit import Rows, chosen_places, features_at, fit, join, set_layers
from emim_nnunet.training.linear_probe import LinearProbeNetwork

PER_SLICE = 60  # positions of every slice, and as many of its lesion
SAMPLE = 81  # stream of the draw's generator


def fit_linear(
    network: LinearProbeNetwork, cases: dict[str, tuple[torch.Tensor, torch.Tensor]], draw: int, multiple: int
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
    rows = sample(network, cases, draw, multiple)
    slopes, biases, chosen = fit(rows, exclusive=True)
    logits = rows.features @ (slopes[1] - slopes[0]) + biases[1] - biases[0]
    threshold = _best_threshold(logits, rows.target[:, 1], rows.weight)
    set_layers(network.decoder, slopes, biases - [0.0, threshold])
    return {"shrinkage": chosen, "threshold": round(threshold, 3)}


@torch.no_grad()
def sample(
    network: LinearProbeNetwork, cases: dict[str, tuple[torch.Tensor, torch.Tensor]], draw: int, multiple: int
) -> Rows:
    """Features of random positions of every slice, and more of the lesion, with weights that undo the difference.

    Args:
        network: The probe.
        cases: Patients.
        draw: Seed of the choice.
        multiple: What the size of a slice must be a multiple of.
    """
    generator = seeded_generator(draw, SAMPLE)
    parts = []
    device = next(network.parameters()).device
    for number, name in enumerate(sorted(cases)):
        images, masks = cases[name]
        height, width = masks.shape[1:]
        padded = torch.nn.functional.pad(images, (0, -width % multiple, 0, -height % multiple))
        for image, mask in zip(padded, masks, strict=True):
            with torch.autocast(device.type, dtype=torch.bfloat16):
                stages = network.encoder(image[None].to(device))
            for value in (False, True):
                places, weight = chosen_places(mask == value, PER_SLICE, generator)
                if len(places):
                    target = np.tile([not value, value], (len(places), 1))
                    of_each = (np.full(len(places), weight), np.full(len(places), number))
                    parts.append(
                        Rows(features_at(stages, places.to(device), image.shape[1:]).numpy(), target, *of_each)
                    )
    return join(parts)


def _best_threshold(logits: np.ndarray, lesion: np.ndarray, weight: np.ndarray) -> float:
    order = np.argsort(-logits)
    inside = np.cumsum((weight * lesion)[order])
    dice = 2 * inside / (np.cumsum(weight[order]) + inside[-1])
    best = int(dice.argmax())
    return float(logits[order[best : best + 2]].mean())
