"""One draw of labelled patients: every arm is fine-tuned on the very same batches, or its frozen features are read out.

The loss, the augmentation and the network are nnU-Net's; the loop is a short one of this file (AdamW, a few hundred steps,
bfloat16), because hundreds of trainings have to fit a CPU and an experiment about small differences must be paired: patients,
order, crops, augmentation and the start of the decoder depend on the draw alone, whatever the arm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from math import isnan, pi
from typing import Any

import numpy as np
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from emim_nnunet.checkpoints.encoder import load_encoder
from emim_nnunet.checkpoints.network import planned_network
from emim_nnunet.datasets.dataset import PreprocessedDataset
from emim_nnunet.networks import encoder_of
from emim_nnunet.prediction.evaluate import surface_distance
from emim_nnunet.randomness import seeded_generator
from emim_nnunet.training.linear_probe import LinearProbeNetwork
from emim_nnunet.training.modality_dropout import kept_modalities
from emim_nnunet.training.schedule import warmup_cosine_lr
from real.data import BATCH, CHANNELS, CONFIGURATION, DATASET_ID, FEATURES, PATCH, PLANS, SPACING
from real.linear import fit_linear
from real.part import LINEAR, Tuning

Cases = dict[str, tuple[Tensor, Tensor]]
READ_OUTS = (1 / 8, 1 / 4, 1 / 2, 1)  # of the budget
WITH_LESION = 1 / 3  # of the crops, as in nnU-Net
CROP = 128  # before rotation and scaling
TEST_BATCH = 16
MULTIPLE = 2 ** (len(FEATURES) - 1)  # what the network divides by
CLIP = 12.0  # nnU-Net's
NUM_CLASSES = 2
ORDER, DECODER, DROPPED = 71, 72, 73  # streams of the draw's generator


def chosen_patients(pool: Sequence[str], draw: int, labelled: int) -> list[str]:
    """The labelled patients of a draw; fewer are part of more."""
    order = torch.randperm(len(pool), generator=seeded_generator(draw, ORDER, 0))
    return [pool[i] for i in order[:labelled]]


def training_batches(cases: Cases, draw: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Crops as nnU-Net draws and augments them.

    Args:
        cases: The labelled patients, see :func:`data.load`.
        draw: The seed of everything.
        steps: Number of batches.

    Yields:
        Image (B, C, *PATCH) float16 and lesion (B, 1, *PATCH) int8.
    """
    names = sorted(cases)
    masked = [False] * cases[names[0]][0].shape[1]
    augment = nnUNetTrainer.get_training_transforms(
        tuple(PATCH), (-pi, pi), None, (0, 1), False, use_mask_for_norm=masked, foreground_labels=[1]
    )
    generator = seeded_generator(draw, ORDER, 1)
    places = {name: cases[name][1].nonzero() for name in names}
    np.random.seed(draw)
    torch.manual_seed(draw)  # batchgeneratorsv2 knows global generators only
    for _ in range(steps):
        images, lesions = [], []
        for sample in range(BATCH):
            name = names[int(torch.randint(len(names), (), generator=generator))]
            image, lesion = cases[name]
            wanted = sample < round(BATCH * WITH_LESION)
            place = _place(lesion, places[name] if wanted else None, generator)
            crop = _crop(torch.cat([image[place[0]], lesion[place[0]][None].float()]), place[1:])
            done = augment(image=crop[:-1], segmentation=crop[-1:].to(torch.int16))
            images.append(done["image"].half())
            lesions.append((done["segmentation"] > 0).to(torch.int8))
        yield torch.stack(images), torch.stack(lesions)


def _place(lesion: Tensor, voxels: Tensor | None, generator: torch.Generator) -> list[int]:
    """Slice, row and column of the middle of a crop: one of ``voxels`` or, without, anywhere."""
    if voxels is not None and len(voxels):
        return voxels[int(torch.randint(len(voxels), (), generator=generator))].tolist()
    return [int(torch.randint(size, (), generator=generator)) for size in lesion.shape]


def _crop(image: Tensor, middle: Sequence[int]) -> Tensor:
    """A square of CROP around the middle, moved into the image as far as it fits, as nnU-Net does; zeros beyond."""
    for axis, place in enumerate(middle, start=1):
        low = min(max(place - CROP // 2, 0), max(image.shape[axis] - CROP, 0))
        image = image.narrow(axis, low, min(CROP, image.shape[axis]))
    rows, columns = (CROP - size for size in image.shape[1:])
    return nn.functional.pad(image, (0, columns, 0, rows))


def unet_of(
    encoder: dict[str, Tensor] | None, draw: int, channels: Sequence[str] = CHANNELS, configuration: str = CONFIGURATION
) -> nn.Module:
    """The network of the plans: its decoder depends on the draw alone, as does its encoder where no state dict is given."""
    dataset = PreprocessedDataset.find(DATASET_ID, PLANS, configuration)
    architecture = dataset.manager.configuration["architecture"]
    seed = DECODER + 1000 * draw
    unet: Any = planned_network(architecture, len(channels), NUM_CLASSES, deep_supervision=False, seed=seed)
    if encoder is not None:
        load_encoder(unet.encoder, encoder, source="the SSL stage", names=(CHANNELS, channels))
    return unet


def read_out(unet: nn.Module, labelled: Cases, tests: Cases, *, draw: int, device: str) -> dict[str, Any]:
    """Fit linear layers to the frozen encoder, see :func:`linear.fit_linear`, and test them.

    Args:
        unet: The network, see :func:`unet_of`.
        labelled: The labelled patients.
        tests: The test patients.
        draw: Seed of the choice of positions.
        device: ``cpu`` or ``cuda``.

    Returns:
        As :func:`finetune`, with the shrinkage and the threshold that were found.
    """
    network = LinearProbeNetwork(encoder_of(unet), NUM_CLASSES).to(device)
    fit = fit_linear(network, labelled, draw, MULTIPLE)
    scores = test(network, tests, last=True)
    return {key: {"end": scores.pop(key)} for key in ("dice", "cross_entropy")} | scores | fit


def segmentation_loss() -> nn.Module:
    """nnU-Net's Dice + cross-entropy, without deep supervision."""
    return DC_and_CE_loss(
        {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False},
        {},
        dice_class=MemoryEfficientSoftDiceLoss,
    )


def optimizer_of(network: nn.Module, tuning: Tuning) -> torch.optim.Optimizer:
    """AdamW with two groups whose ``factor`` the rate is multiplied by: encoder, and what reads it."""
    encoder = list(network.get_submodule("encoder").parameters())
    inside = {id(parameter) for parameter in encoder}
    decoder = [parameter for parameter in network.parameters() if id(parameter) not in inside]
    groups = [{"params": encoder, "factor": tuning.encoder_factor}, {"params": decoder, "factor": 1.0}]
    return torch.optim.AdamW(groups, tuning.rate, weight_decay=0.01, fused=True)


def finetune(
    unet: nn.Module,
    labelled: Cases,
    batches: Sequence[tuple[Tensor, Tensor]],
    tests: Cases,
    *,
    draw: int,
    tuning: Tuning,
    device: str,
    subsets: bool = False,
) -> dict[str, Any]:
    """Train one arm on a draw and test it along the way.

    Args:
        unet: The network, see :func:`unet_of`.
        labelled: The labelled patients.
        batches: Of :func:`training_batches`, one per step.
        tests: The test patients.
        draw: The seed of what is not pretrained.
        tuning: Head and rates.
        device: ``cpu`` or ``cuda``.
        subsets: Whether to test every subset of the modalities at the end.

    Returns:
        ``dice``: step -> Dice of each test patient, in sorted order; ``cross_entropy``: step -> mean over voxels;
        of each patient at the end, ``average_precision`` and ``surface_distance`` in mm (None without a prediction);
        ``dice_of_subsets``, if asked for: names joined by + -> Dice of each patient.
    """
    network = unet.to(device)
    if tuning.head == LINEAR:
        network = LinearProbeNetwork(encoder_of(network), NUM_CLASSES, frozen=False).to(device)
        fit_linear(network, labelled, draw, MULTIPLE)
    part = network.get_submodule("encoder")
    optimizer = optimizer_of(network, tuning)
    total = len(batches)
    read_outs = {round(share * total) for share in READ_OUTS}
    loss_of = segmentation_loss()
    everything = torch.ones(batches[0][0].shape[:2], dtype=torch.bool)
    result: dict[str, Any] = {"dice": {}, "cross_entropy": {}}
    for step, (image, lesion) in enumerate(batches):
        network.train()
        part.requires_grad_(step >= round(tuning.frozen * total))
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine_lr(step, peak=tuning.rate * group["factor"], warmup=total // 10, total=total)
        optimizer.zero_grad()
        kept = kept_modalities(everything, tuning.p_drop, ~everything[0], seeded_generator(draw, DROPPED, step))
        with torch.autocast(device, dtype=torch.bfloat16):
            logits = network((image.float() * kept[:, :, None, None]).to(device))
        loss_of(logits.float(), lesion.long().to(device)).backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        if step + 1 in read_outs:
            scores = test(network, tests, last=step + 1 == total)
            for key, values in result.items():
                values[str(step + 1)] = scores.pop(key)
    if subsets:
        scores["dice_of_subsets"] = test_subsets(network, tests)
    return result | scores


def test_subsets(network: nn.Module, tests: Cases) -> dict[str, list[float]]:
    """Names of modalities joined by + -> Dice of each patient, in sorted order, from these alone."""
    found = {}
    for count in range(1, len(CHANNELS)):
        for kept in combinations(range(len(CHANNELS)), count):
            there = torch.tensor([channel in kept for channel in range(len(CHANNELS))])[:, None, None]
            partial = {name: (image * there, lesion) for name, (image, lesion) in tests.items()}
            name = "+".join(CHANNELS[channel] for channel in kept)
            found[name] = test(network, partial, last=False)["dice"]
    return found


@torch.no_grad()
def test(network: nn.Module, tests: Cases, *, last: bool) -> dict[str, Any]:
    """Segment whole slices and compare whole patients.

    Args:
        network: The network.
        tests: The test patients.
        last: Whether it is the end of the training, of which more is kept.

    Returns:
        ``dice``, and at the end ``average_precision`` and ``surface_distance``, per patient; ``cross_entropy``.
    """
    network.eval()
    device = next(network.parameters()).device
    scores: dict[str, Any] = {"dice": [], "cross_entropy": 0.0, "average_precision": [], "surface_distance": []}
    voxels = sum(lesion.numel() for _, lesion in tests.values())
    for name in sorted(tests):
        image, lesion = tests[name]
        rows, columns = lesion.shape[1:]
        padded = nn.functional.pad(image, (0, -columns % MULTIPLE, 0, -rows % MULTIPLE))
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits = torch.cat([network(part.to(device)).float().cpu() for part in padded.split(TEST_BATCH)])
        logits = logits[..., :rows, :columns]
        entropy = nn.functional.cross_entropy(logits, lesion.long(), reduction="sum").item()
        scores["cross_entropy"] += entropy / voxels
        lesion_logit = logits[:, 1] - logits[:, 0]
        found = lesion_logit > 0
        total = int(found.sum() + lesion.sum())
        scores["dice"].append(round(2 * int((found & lesion).sum()) / total if total else 1.0, 5))
        if last:
            precision = average_precision_score(lesion.flatten(), lesion_logit.flatten())
            scores["average_precision"].append(round(float(precision), 5))
            distance = surface_distance(found.numpy(), lesion.numpy(), SPACING[::-1])
            scores["surface_distance"].append(None if isnan(distance) else round(distance, 3))
    return scores if last else {key: scores[key] for key in ("dice", "cross_entropy")}
