"""Training a classifier: a linear fit on frozen features of whole cases, then, if asked for, fine-tuning on crops."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from tqdm import tqdm

from emim_nnunet.checkpoints.io import FORMAT_VERSION, load_checkpoint, save_checkpoint
from emim_nnunet.classification.model import (
    CaseClassifier,
    Data,
    build_encoder,
    case_vector,
    probabilities,
    save_classifier,
)
from emim_nnunet.classification.table import LabelTable
from emim_nnunet.dataloading.crops import CropDataset
from emim_nnunet.dataloading.loader import BatchNumbers, CropBatches
from emim_nnunet.errors import UserError
from emim_nnunet.nnunet.training import get_allowed_n_proc_DA
from emim_nnunet.storage.versions import versions
from emim_nnunet.training.schedule import warmup_cosine_lr
from emim_nnunet.views.augmentation import clear_outside_, mirror_, rotate_and_scale_

logger = logging.getLogger(__name__)
MODEL, UNFINISHED, UNFINISHED_FORMAT = "classifier.pth", "unfinished.pth", "emim_nnunet.classifier_training"
ABSENT = -30.0  # bias of a class that no training case has


@dataclass(frozen=True)
class Settings:
    """Of a training.

    Attributes:
        frozen: Leave the encoder as it is.
        class_weights: Count rare classes as much as frequent ones.
        steps: Of fine-tuning.
        batch_size: Crops per step.
        initial_lr: Peak rate of AdamW for the encoder; the linear layers get ten times as much.
        weight_decay: Of AdamW.
        inverse_penalty: C of the logistic regression.
        seed: Everything random follows from it.
    """

    frozen: bool = False
    class_weights: bool = True
    steps: int = 1000
    batch_size: int = 2
    initial_lr: float = 1e-4
    weight_decay: float = 0.01
    inverse_penalty: float = 0.1
    seed: int = 0


def train(
    data: Data,
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
        data: Cases.
        table: Their classes.
        training: Ids to learn from.
        output: Folder to write.
        settings: How.
        checkpoint: Of the encoder; None = from scratch.
        device: Where to train.
        fold: Recorded.
        resume: Go on with an interrupted training in ``output``.
        checkpoint_minutes: Least time between two states to resume from.

    Returns:
        The classifier in evaluation mode.

    Raises:
        UserError: The checkpoint does not fit, ``output`` holds a classifier or an unfinished training, or the state
            to resume from is of another one.
    """
    if (output / MODEL).exists():
        raise UserError(f"{output / MODEL} exists: choose another folder with -o")
    if (output / UNFINISHED).exists() and not resume:
        raise UserError(
            f"{output} holds an unfinished training: continue it with --c, or choose another folder with -o"
        )
    if resume and not (output / UNFINISHED).exists():
        logger.warning("--c: there is nothing to continue in %s, so the training starts anew", output.name)
        resume = False
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
    model = CaseClassifier(encoder, [len(table.classes[t]) for t in table.targets]).to(device).eval()
    output.mkdir(parents=True, exist_ok=True)
    numbers = np.array([table.numbers(case) for case in training])
    vectors = _vectors(model, data, training, device)
    fit_heads(model, vectors, numbers, settings)
    if not settings.frozen:
        _finetune(model, data, training, numbers, settings, device, output, about, resume, checkpoint_minutes)
    save_classifier(model, data, about, output / MODEL)
    (output / UNFINISHED).unlink(missing_ok=True)
    return model.eval()


def predict(
    model: CaseClassifier, data: Data, cases: Sequence[str], targets: Sequence[str], device: torch.device
) -> dict[str, np.ndarray]:
    """Probabilities of whole cases.

    Args:
        model: Classifier.
        data: Where the cases are.
        cases: Ids.
        targets: Names, in the order of the model's.
        device: Where to compute.

    Returns:
        (N, classes) per target.
    """
    vectors = _vectors(model.to(device).eval(), data, cases, device)
    return dict(zip(targets, probabilities(model, vectors), strict=True))


def _vectors(model: CaseClassifier, data: Data, cases: Sequence[str], device: torch.device) -> Tensor:
    """(N, width) float32 on the CPU."""
    bar = tqdm(cases, desc="Features of whole cases", disable=None, leave=False)
    return torch.stack([case_vector(model, data, data.cases[case], device) for case in bar])


def fit_heads(model: CaseClassifier, vectors: Tensor, numbers: np.ndarray, settings: Settings) -> None:
    """Logistic regression of each target on standardised vectors, written into the model.

    Args:
        model: Gets mean, standard deviation and the linear layers.
        vectors: (N, width) float32 on the CPU.
        numbers: (N, targets) class numbers, -1 = none.
        settings: ``class_weights``, ``inverse_penalty``.

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
        known = column >= 0
        if len(set(column[known])) < 2:
            raise UserError("the training cases have a single class: nothing can be learnt")
        fit = LogisticRegression(C=settings.inverse_penalty, class_weight=weights, max_iter=2000)
        fit.fit(rows[known], column[known])
        coefficients, intercepts = fit.coef_, fit.intercept_
        if len(fit.classes_) == 2:  # scikit-learn then keeps one row: of the second class against the first
            coefficients, intercepts = (np.stack([-0.5 * v[0], 0.5 * v[0]]) for v in (coefficients, intercepts))
        with torch.no_grad():
            head.weight.zero_()
            head.bias.fill_(ABSENT)
            head.weight[fit.classes_] = torch.from_numpy(coefficients).to(head.weight)
            head.bias[fit.classes_] = torch.from_numpy(intercepts).to(head.bias)


def _finetune(
    model: CaseClassifier,
    data: Data,
    training: Sequence[str],
    numbers: np.ndarray,
    settings: Settings,
    device: torch.device,
    output: Path,
    about: dict[str, Any],
    resume: bool,
    checkpoint_minutes: float,
) -> None:
    """AdamW on random crops, each with the class of its case; a state every few minutes."""
    groups = [
        {"params": list(model.encoder.parameters()), "factor": 1.0},
        {"params": list(model.heads.parameters()), "factor": 10.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.initial_lr, weight_decay=settings.weight_decay)
    first = _resume(model, optimizer, output / UNFINISHED, about, device) if resume else 0
    cases = [data.cases[case] for case in training]
    dataset = CropDataset(cases, data.manager.patch_size, settings.seed)
    batches = CropBatches(
        dataset,
        BatchNumbers(settings.batch_size, first_step=first),
        num_workers=get_allowed_n_proc_DA(),
        pin_memory=device.type == "cuda",
    )
    classes = {case: torch.from_numpy(row) for case, row in zip(training, numbers, strict=True)}
    weights = [
        _class_weights(column, number, settings) for column, number in zip(numbers.T, model.num_classes, strict=True)
    ]
    last = monotonic()
    steps = tqdm(range(first, settings.steps), desc="Fine-tuning", initial=first, total=settings.steps, disable=None)
    for step, batch in zip(steps, batches, strict=False):
        rate = warmup_cosine_lr(step, peak=settings.initial_lr, warmup=settings.steps // 20, total=settings.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        image, foreground = batch["image"].to(device), batch["foreground"].to(device)
        indices = batch["index"].tolist()
        rotate_and_scale_(image, foreground, indices, settings.seed, p_rotation=0.2, p_scaling=0.2)
        mirror_([image, foreground], indices, settings.seed)
        clear_outside_(image, foreground, data.manager.use_mask_for_norm)
        targets = torch.stack([classes[case] for case in batch["case"]]).to(device)
        model.train()
        losses = [
            _cross_entropy(logits, column, weight.to(device))
            for logits, column, weight in zip(model(image, foreground), targets.T, weights, strict=True)
        ]
        loss = torch.stack(losses).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if monotonic() - last >= 60 * checkpoint_minutes:
            _save_state(model, optimizer, step + 1, output / UNFINISHED, about)
            last = monotonic()
    batches.close()
    model.eval()


def _cross_entropy(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted by class, divided by the number of known targets (torch's would divide by the sum of weights, which undoes
    them in batches of one class); 0 where none is known.
    """
    total = F.cross_entropy(logits, target, weight, ignore_index=-1, reduction="sum")
    return total / (target >= 0).sum().clamp_min(1)


def _class_weights(column: np.ndarray, num_classes: int, settings: Settings) -> Tensor:
    """n / (classes x n_k), 1 on average over the cases; 1 for classes without a case."""
    if not settings.class_weights:
        return torch.ones(num_classes)
    counts = np.bincount(column[column >= 0], minlength=num_classes)
    present = (counts > 0).sum()
    return torch.from_numpy(np.where(counts > 0, counts.sum() / (present * np.maximum(counts, 1)), 1.0)).float()


def _save_state(
    model: CaseClassifier, optimizer: torch.optim.Optimizer, step: int, path: Path, about: dict[str, Any]
) -> None:
    content = {
        "format": UNFINISHED_FORMAT,
        "format_version": FORMAT_VERSION,
        "step": step,
        "network_weights": model.state_dict(),
        "optimizer_state": optimizer.state_dict(),
        "about": about,
    }
    save_checkpoint(content, path)


def _resume(
    model: CaseClassifier, optimizer: torch.optim.Optimizer, path: Path, about: dict[str, Any], device: torch.device
) -> int:
    """Load a state; the step to go on with."""
    state = load_checkpoint(path, formats=(UNFINISHED_FORMAT,))
    different = sorted(key for key in about if key != "versions" and state["about"].get(key) != about[key])
    if different:
        raise UserError(f"{path} is of a training with another value of {', '.join(different)}")
    model.load_state_dict(state["network_weights"])
    model.to(device)
    optimizer.load_state_dict(state["optimizer_state"])
    return state["step"]
