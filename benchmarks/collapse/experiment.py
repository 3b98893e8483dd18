"""One job of the collapse experiment: pretrain one arm with one seed, measure it, and fine-tune it.

Networks, loss and methods are the package's and nnU-Net's own; the loops are short ones of this file, because nnU-Net's
segmentation training cannot be seeded and an experiment about small differences must be paired: everything that is not the
arm (phantoms, decoder initialisation, order of cases, flips) is the same for all arms of a seed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, partial
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import ARMS, PLATEAU_ARMS, Arm
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor, nn

from emim_nnunet.dataloading.batch import draw
from emim_nnunet.diagnosis.collapse_monitor import update_probe
from emim_nnunet.diagnostics import (
    CollapseProbe,
    cell_grid,
    constant_losses,
    dense_probe,
    foreground_rows,
    position_sums,
)
from emim_nnunet.masking import grid_size, voxels_to_cells
from emim_nnunet.methods.base import SSLMethod
from emim_nnunet.phantom import MODALITIES, make_phantom
from emim_nnunet.randomness import Stream, seeded_generator
from emim_nnunet.training.step import GuardedStep, SkippedSteps
from emim_nnunet.views.augmentation import mirror_

SHAPE = (32, 32, 32)
FEATURES = (8, 16, 32, 64)
NUM_CLASSES = 4
REGIONS = {"whole tumour": (1, 2, 3), "tumour core": (1, 3), "enhancing tumour": (3,)}
PROBE_GRID = (8, 8, 8)
PROBE_SEED = 1_000_003
TEST_SEED, UNLABELLED_SEED, LABELLED_SEED = 10_000_000, 1_000, 500  # far apart, so that no two uses share a seed


@dataclass(frozen=True)
class Budget:
    """The sizes of data and trainings.

    Attributes:
        unlabelled: Number of phantoms to pretrain on.
        probe: Number of held-out phantoms for the monitor and the dense probe.
        test: Number of held-out phantoms for the Dice score.
        ssl_steps: Number of steps of pretraining.
        ssl_batch: Batch size of pretraining.
        ssl_lr: Peak learning rate of pretraining.
        evaluations: Number of evaluations of the monitor, equally spaced.
        plateau_steps: Number of steps of pretraining of an arm of :data:`PLATEAU_ARMS`.
        plateau_evaluations: Number of evaluations of the monitor in such an arm.
        labelled: Numbers of labelled phantoms to fine-tune on.
        finetune_steps: Number of steps of fine-tuning.
        finetune_batch: Batch size of fine-tuning.
        finetune_lr: Peak learning rate of fine-tuning.
    """

    unlabelled: int = 48
    probe: int = 16
    test: int = 16
    ssl_steps: int = 400
    ssl_batch: int = 4
    ssl_lr: float = 3e-3
    evaluations: int = 20
    plateau_steps: int = 240
    plateau_evaluations: int = 48
    labelled: tuple[int, ...] = (2, 4)
    finetune_steps: int = 160
    finetune_batch: int = 2
    finetune_lr: float = 3e-3


@cache
def phantoms(first_seed: int, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Make phantoms: images (N, 4, *P) float32, bodies (N, 1, *P) bool and labels (N, *P) int64.

    Images are z-scored inside the body as nnU-Net does. Noise as strong as the signal is added: without it, a handful of
    labelled phantoms suffices to learn the task, and no pretraining (400 or 1000 steps) changed the Dice score.
    """
    images, bodies, labels = [], [], []
    for seed in range(first_seed, first_seed + number):
        image, label = make_phantom(seed, SHAPE)
        body = (image != 0).any(0)
        inside = image[:, body]
        scaled = (image - inside.mean(1)[:, None, None, None]) / inside.std(1)[:, None, None, None]
        scaled = (scaled + np.random.default_rng([seed, 1]).standard_normal(scaled.shape)) / np.sqrt(2)
        images.append(torch.from_numpy((scaled * body).astype(np.float32)))
        bodies.append(torch.from_numpy(body)[None])
        labels.append(torch.from_numpy(label.astype(np.int64)))
    return torch.stack(images), torch.stack(bodies), torch.stack(labels)


def unet(seed: int) -> nn.Module:
    """nnU-Net's plain U-Net with four small stages; its weights depend on the seed alone."""
    stages = len(FEATURES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = PlainConvUNet(
            input_channels=len(MODALITIES),
            n_stages=stages,
            features_per_stage=list(FEATURES),
            conv_op=nn.Conv3d,
            kernel_sizes=3,
            strides=[1] + [2] * (stages - 1),
            n_conv_per_stage=[1] * stages,
            num_classes=NUM_CLASSES,
            n_conv_per_stage_decoder=[1] * (stages - 1),
            conv_bias=True,
            norm_op=nn.InstanceNorm3d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
        )
        return network.apply(network.initialize)


def cosine_rate(step: int, steps: int, peak: float) -> float:
    """Learning rate of a step (from 0): linear warm-up over a tenth of the steps, then a cosine to 0."""
    warmup = max(1, steps // 10)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + cos(pi * (step - warmup) / (steps - warmup)))


def make_method(arm: Arm, seed: int) -> SSLMethod:
    """The method of an arm around a fresh encoder."""
    assert arm.method is not None
    config = arm.method.config_class(cell_size=(arm.cell,) * 3, **arm.settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return arm.method(unet(seed).encoder, len(MODALITIES), SHAPE, config)


def pretrain(arm: Arm, seed: int, budget: Budget) -> tuple[SSLMethod, list[dict[str, Any]]]:
    """Pretrain an arm, and measure it at equal distances.

    Args:
        arm: The arm, which must have a method.
        seed: Seed of phantoms, initialisation, order, flips and masks.
        budget: The sizes of data and trainings.

    Returns:
        The trained method and its measurements, the first one of the untrained network; ``epoch`` counts evaluations and
        ``step`` steps.
    """
    image, body, _ = phantoms(UNLABELLED_SEED * (seed + 1), budget.unlabelled)
    method = make_method(arm, seed)
    optimizer = torch.optim.AdamW(method.parameters(), lr=budget.ssl_lr, weight_decay=0.01, betas=(0.9, 0.95))
    skipped = SkippedSteps(Path("non_finite"), 0, lambda about: draw(method, seed, about["index"]))
    guarded_step = GuardedStep(optimizer, method, torch.device("cpu"), gradient_clip=1.0, skipped=skipped)
    history = [{"epoch": 0, "step": 0} | evaluate(method, seed, budget, first=True)]
    every = budget.ssl_steps // budget.evaluations
    for step in range(budget.ssl_steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(step, budget.ssl_steps, budget.ssl_lr * arm.lr_factor)
        indices = list(range(step * budget.ssl_batch, (step + 1) * budget.ssl_batch))
        cases = [case_of(i, budget.unlabelled, seed) for i in indices]
        x, f = image[cases], body[cases]
        mirror_([x, f], indices, seed)
        inputs = (x, f, draw(method, seed, indices))
        about = {"epoch": 0, "step": step, "rank": 0, "cases": [str(case) for case in cases], "index": indices}
        guarded_step.take(partial(method, *inputs), about)
        skipped.read_gradients()
        if skipped.too_many():
            raise RuntimeError(skipped.describe(0))
        if (step + 1) % every == 0:
            history.append({"epoch": len(history), "step": step + 1} | evaluate(method, seed, budget))
    return method, history


def case_of(index: int, number: int, seed: int) -> int:
    """The case of a sample: every case comes once per round, in a new order each round."""
    round_number, place = divmod(index, number)
    return int(torch.randperm(number, generator=seeded_generator(seed, Stream.ORDER, round_number))[place])


@torch.no_grad()
def evaluate(method: SSLMethod, seed: int, budget: Budget, *, first: bool = False) -> dict[str, Any]:
    """The monitor's measurement on held-out phantoms with fixed masks; the first one holds the losses of the baselines."""
    image, body, _ = phantoms(TEST_SEED + UNLABELLED_SEED * seed, budget.probe)
    grid = grid_size(SHAPE, method.config.cell_size)
    probe = CollapseProbe(grid, MODALITIES, seed, method.config.cell_size if first else None)
    method.eval()
    for start in range(0, budget.probe, budget.ssl_batch):
        indices = list(range(start, min(start + budget.ssl_batch, budget.probe)))
        x, f = image[indices], body[indices]
        update_probe(probe, indices, x, f, method(x, f, draw(method, PROBE_SEED, indices)), method.encoder)
    method.train()
    return probe.measure()


@torch.no_grad()
def trivial_losses(arm: Arm, seed: int, budget: Budget) -> dict[str, float]:
    """Losses of the best constant predictions on the probe set of a seed, see :func:`constant_losses`."""
    image, body, _ = phantoms(TEST_SEED + UNLABELLED_SEED * seed, budget.probe)
    method = make_method(arm, seed)
    parts = method(image, body, draw(method, PROBE_SEED, list(range(budget.probe)))).reconstruction
    return constant_losses(position_sums(parts.target, parts.counted), method.config.cell_size)


@torch.no_grad()
def probe_stages(encoder: nn.Module, seed: int, budget: Budget) -> list[float]:
    """R2 of the dense probe at each stage, split by phantom, on cells of 4^3 voxels (or the stage's own, if larger)."""
    image, body, label = phantoms(TEST_SEED + UNLABELLED_SEED * seed, budget.probe)
    classes = nn.functional.one_hot(label, NUM_CLASSES).movedim(-1, 1).float()
    result = []
    for features in encoder(image):
        rows, present = foreground_rows(features, body, PROBE_GRID)
        targets = (
            voxels_to_cells(classes, cell_grid(features.shape[2:], PROBE_GRID)).flatten(2).transpose(1, 2)[present]
        )
        patients = torch.arange(len(image))[:, None].expand_as(present)[present]
        result.append(dense_probe(rows.numpy(), targets.numpy(), patients.numpy()))
    return result


def finetune(encoder_state: dict[str, Tensor] | None, seed: int, num_labelled: int, budget: Budget) -> dict[str, Any]:
    """Train nnU-Net's U-Net with nnU-Net's loss, and measure Dice on held-out phantoms.

    Args:
        encoder_state: State dict of the pretrained encoder; None = from scratch.
        seed: Seed of phantoms, initialisation, order and flips.
        num_labelled: Number of labelled phantoms: the first of the unlabelled ones of pretraining, so a smaller set is part of
            a larger one.
        budget: The sizes of data and trainings.

    Returns:
        ``dice``: region -> a list over test phantoms; ``mean``: the mean of all.
    """
    image, _, label = (x[:num_labelled] for x in phantoms(UNLABELLED_SEED * (seed + 1), budget.unlabelled))
    network = unet(seed + LABELLED_SEED)
    if encoder_state is not None:
        network.encoder.load_state_dict(encoder_state)
    loss_of = DC_and_CE_loss(
        {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False},
        {},
        dice_class=MemoryEfficientSoftDiceLoss,
    )
    # nnU-Net's SGD with momentum 0.99 needs thousands of steps: in 200 it failed to learn in a quarter of the trials
    optimizer = torch.optim.AdamW(network.parameters(), budget.finetune_lr, weight_decay=0.01)
    for step in range(budget.finetune_steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(step, budget.finetune_steps, budget.finetune_lr)
        indices = list(range(step * budget.finetune_batch, (step + 1) * budget.finetune_batch))
        cases = [case_of(i, num_labelled, seed) for i in indices]
        x, y = image[cases], label[cases][:, None]
        mirror_([x, y], indices, seed + LABELLED_SEED)
        optimizer.zero_grad()
        loss_of(network(x), y).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 12.0)
        optimizer.step()
    dice = test_dice(network, seed, budget)
    return {"dice": dice, "mean": float(np.mean(list(dice.values())))}


@torch.no_grad()
def test_dice(network: nn.Module, seed: int, budget: Budget) -> dict[str, list[float]]:
    """Region -> Dice of each test phantom; 1 where both prediction and label are empty."""
    first = TEST_SEED + UNLABELLED_SEED * seed + budget.probe  # the seed after those of the probe's phantoms
    image, _, label = phantoms(first, budget.test)
    network.eval()
    predicted = torch.cat([network(image[i : i + 4]).argmax(1) for i in range(0, budget.test, 4)])
    scores: dict[str, list[float]] = {}
    for region, classes in REGIONS.items():
        a, b = (torch.isin(x, torch.tensor(classes)).flatten(1) for x in (predicted, label))
        total = (a.sum(1) + b.sum(1)).double()
        scores[region] = torch.where(total > 0, 2 * (a & b).sum(1) / total, 1.0).tolist()
    return scores


def run_job(name: str, seed: int, budget: Budget) -> dict[str, Any]:
    """Run all parts of one arm with one seed.

    Args:
        name: Key of :data:`ARMS` or :data:`PLATEAU_ARMS`; arms of the latter are only pretrained.
        seed: Seed of everything random, see :func:`pretrain` and :func:`finetune`.
        budget: The sizes of data and trainings.

    Returns:
        Plain values: ``arm``, ``seed``, ``history``, ``constant_losses``, ``probe`` (R2 per stage) and ``finetuned`` (by
        number of labelled phantoms); those that an arm does not have are absent.
    """
    torch.set_num_threads(1)
    arm = (ARMS | PLATEAU_ARMS)[name]
    if name in PLATEAU_ARMS:
        budget = replace(budget, ssl_steps=budget.plateau_steps, evaluations=budget.plateau_evaluations)
    result: dict[str, Any] = {"arm": name, "seed": seed}
    if arm.method is None:
        encoder, state = unet(seed).encoder, None
    else:
        method, result["history"] = pretrain(arm, seed, budget)
        result["constant_losses"] = trivial_losses(arm, seed, budget)
        encoder, state = method.encoder, method.encoder.state_dict()
    if name in PLATEAU_ARMS:
        return result
    result["probe"] = probe_stages(encoder.eval(), seed, budget)
    result["finetuned"] = {str(n): finetune(state, seed, n, budget) for n in budget.labelled}
    return result
