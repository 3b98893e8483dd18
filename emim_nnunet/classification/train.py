"""Training a classifier: a linear fit on frozen features of whole cases, then, if asked for, fine-tuning on crops."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from tqdm import tqdm

from emim_nnunet.classification.finetune import UNFINISHED, Finetuning
from emim_nnunet.classification.model import (
    CaseClassifier,
    build_encoder,
    case_vector,
    probabilities,
    save_classifier,
)
from emim_nnunet.classification.regression import fit_number, standardised, to_units
from emim_nnunet.classification.settings import Settings
from emim_nnunet.classification.table import LabelTable
from emim_nnunet.datasets.dataset import PreprocessedDataset
from emim_nnunet.distributed import gather_objects, rank, world_size
from emim_nnunet.errors import UserError
from emim_nnunet.storage.versions import versions

logger = logging.getLogger(__name__)
MODEL = "classifier.pth"
ABSENT = -30.0  # bias of a class that no training case has


def train(
    data: PreprocessedDataset,
    table: LabelTable,
    training: Sequence[str],
    output: Path,
    settings: Settings,
    *,
    checkpoint: Path | None,
    device: torch.device,
    fold: int | str,
    resume: bool = False,
    checkpoint_minutes: float = 10.0,
) -> CaseClassifier:
    """Train and write ``classifier.pth``.

    Args:
        data: The preprocessed data set.
        table: The classes of its cases.
        training: Ids of the cases to learn from.
        output: The folder to write to; it is made when needed.
        settings: Settings of the training.
        checkpoint: File with the weights of the encoder, see :func:`build_encoder`; None = from scratch.
        device: The device to train on.
        fold: The fold of the training cases, which is recorded in the file.
        resume: Whether to go on with an interrupted training in ``output``.
        checkpoint_minutes: Least time between two states to resume from, in minutes.

    Returns:
        The classifier in evaluation mode.

    Raises:
        UserError: The checkpoint does not fit, ``output`` holds a classifier or an unfinished training, or the state to resume
            from belongs to another training.
    """
    resume = _check_output(output, resume=resume)
    encoder, adapted = build_encoder(data, checkpoint, settings.seed)
    about = {
        "targets": table.targets,
        "classes": table.classes,
        "training_cases": list(training),
        "fold": fold,
        "encoder_from": None if checkpoint is None else checkpoint.name,
        "adapted": adapted,
        "settings": asdict(settings),
        "versions": versions(),
    }
    model = CaseClassifier(encoder, [len(table.classes[t]) or 1 for t in table.targets]).to(device).eval()
    numbers, scales = standardised(np.array([table.numbers(case) for case in training]), table.numeric)
    about |= {"means": table.means(training)} if scales else {}
    output.mkdir(parents=True, exist_ok=True)
    vectors = _vectors(model, data, training, device)
    fit_heads(model, vectors, numbers, settings)
    if not settings.frozen:
        finetuning = Finetuning(model, data, training, numbers, settings, device, output, about)
        finetuning.run(resume=resume, checkpoint_minutes=checkpoint_minutes)
    to_units(model.heads, scales)
    if rank() == 0:
        save_classifier(model, data, about, output / MODEL)
        (output / UNFINISHED).unlink(missing_ok=True)
    return model.eval()


def _check_output(output: Path, *, resume: bool) -> bool:
    """Refuse a folder that holds a training; returns whether there is one to go on with."""
    if (output / MODEL).exists():
        raise UserError(f"{output / MODEL} exists: choose another folder with -o")
    if (output / UNFINISHED).exists() and not resume:
        raise UserError(
            f"{output} holds an unfinished training: continue it with --c, or choose another folder with -o"
        )
    if resume and not (output / UNFINISHED).exists():
        logger.warning("--c: there is nothing to continue in %s, so the training starts anew", output.name)
        return False
    return resume


def predict(
    model: CaseClassifier, data: PreprocessedDataset, cases: Sequence[str], targets: Sequence[str], device: torch.device
) -> dict[str, np.ndarray]:
    """Predict the class probabilities, or the numbers, of whole cases.

    Args:
        model: The classifier.
        data: The data set that the cases belong to.
        cases: Ids of N cases.
        targets: Names of the targets, in the order in which the model was trained on them.
        device: The device to compute on.

    Returns:
        Target -> (N, classes) float64 probabilities, or (N, 1) numbers.
    """
    vectors = _vectors(model.to(device).eval(), data, cases, device)
    return dict(zip(targets, probabilities(model, vectors), strict=True))


def _vectors(model: CaseClassifier, data: PreprocessedDataset, cases: Sequence[str], device: torch.device) -> Tensor:
    """Features of whole cases, (N, width) float32 on the CPU; in a process group each process computes a share of them."""
    own = cases[rank() :: world_size()]
    bar = tqdm(own, desc="Features of whole cases", disable=None if rank() == 0 else True, leave=False)
    vectors = {case: case_vector(model, data, data.cases[case], device) for case in bar}
    everywhere = {case: vector for part in gather_objects(vectors) for case, vector in part.items()}
    return torch.stack([everywhere[case] for case in cases])


def fit_heads(model: CaseClassifier, vectors: Tensor, numbers: np.ndarray, settings: Settings) -> None:
    """Fit a logistic regression of each target, or ridge regression of a number, on standardised features, and write it into
    the model.

    Args:
        model: The classifier, which gets mean, standard deviation and the weights of the linear layers.
        vectors: (N, width) float32 on the CPU, the features of N cases.
        numbers: (N, targets) float, the class numbers of the cases, -1 = unknown, or standardised numbers, NaN = unknown.
        settings: Settings, of which ``class_weights`` and ``inverse_penalty`` are used.

    Raises:
        UserError: A target has one class only.
    """
    std, mean = torch.std_mean(vectors, 0, correction=0)
    device = model.mean.device
    model.mean.copy_(mean.to(device))
    model.std.copy_(torch.where(std > 1e-6, std, 1.0).to(device))
    rows = ((vectors - mean) / model.std.cpu()).numpy().astype(np.float64)
    weights = "balanced" if settings.class_weights else None
    for head, column in zip(model.heads, numbers.T, strict=True):
        assert isinstance(head, nn.Linear)
        if head.out_features == 1:
            fit_number(head, rows, column)
            continue
        known = column >= 0
        if len(set(column[known])) < 2:
            raise UserError("the training cases have a single class: nothing can be learnt")
        fit = LogisticRegression(C=settings.inverse_penalty, class_weight=weights, max_iter=2000)
        fit.fit(rows[known], column[known].astype(np.int64))
        coefficients, intercepts = fit.coef_, fit.intercept_
        if len(fit.classes_) == 2:  # scikit-learn then keeps one row: of the second class against the first
            coefficients, intercepts = (np.stack([-0.5 * v[0], 0.5 * v[0]]) for v in (coefficients, intercepts))
        with torch.no_grad():
            head.weight.zero_()
            head.bias.fill_(ABSENT)
            head.weight[fit.classes_] = torch.from_numpy(coefficients).to(head.weight)
            head.bias[fit.classes_] = torch.from_numpy(intercepts).to(head.bias)
