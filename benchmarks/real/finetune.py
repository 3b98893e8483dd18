"""One draw of labelled patients: every arm is fine-tuned, and read out by frozen linear layers, on the very same batches.

The loss, the augmentation and the network are nnU-Net's; the loop is a short one of this file (AdamW, a few hundred steps,
bfloat16), because hundreds of trainings have to fit a CPU and an experiment about small differences must be paired: patients,
order, crops, augmentation and the start of the decoder depend on the draw alone, whatever the arm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import pi
from typing import Any

import numpy as np
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from scipy.ndimage import binary_erosion, distance_transform_edt
from torch import Tensor, nn

from emim_nnunet.checkpoints.network import planned_network
from emim_nnunet.datasets.dataset import PreprocessedDataset
from emim_nnunet.networks import encoder_of
from emim_nnunet.randomness import seeded_generator
from emim_nnunet.training.linear_probe import LinearProbeNetwork
from emim_nnunet.training.schedule import warmup_cosine_lr
from real.data import BATCH, CONFIGURATION, DATASET_ID, FEATURES, PATCH, PLANS, SPACING

Cases = dict[str, tuple[Tensor, Tensor]]
READ_OUTS = {"finetune": (1 / 8, 1 / 4, 1 / 2, 1), "linear": (1,)}  # of the budget
WITH_LESION = 1 / 3  # of the crops, as in nnU-Net
CROP = 128  # before rotation and scaling
TEST_BATCH = 16
MULTIPLE = 2 ** (len(FEATURES) - 1)  # what the network divides by
CLIP = 12.0  # nnU-Net's
NUM_CLASSES = 2
ORDER, DECODER = 71, 72  # streams of the draw's generator


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
    augment = nnUNetTrainer.get_training_transforms(
        tuple(PATCH), (-pi, pi), None, (0, 1), False, use_mask_for_norm=[False] * 3, foreground_labels=[1]
    )
    generator = seeded_generator(draw, ORDER, 1)
    names = sorted(cases)
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


def network_of(evaluation: str, encoder: dict[str, Tensor] | None, draw: int) -> nn.Module:
    """The network of the plans: its decoder depends on the draw alone, as does its encoder where none is given."""
    dataset = PreprocessedDataset.find(DATASET_ID, PLANS, CONFIGURATION)
    architecture = dataset.manager.configuration["architecture"]
    channels = len(dataset.channel_names)
    seed = DECODER + 1000 * draw
    unet: Any = planned_network(architecture, channels, NUM_CLASSES, deep_supervision=False, seed=seed)
    if encoder is not None:
        encoder_of(unet).load_state_dict(encoder)  # type: ignore[attr-defined]  # an nn.Module besides
    if evaluation == "finetune":
        return unet
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LinearProbeNetwork(encoder_of(unet), NUM_CLASSES)


def train_and_test(
    evaluation: str,
    encoder: dict[str, Tensor] | None,
    batches: Sequence[tuple[Tensor, Tensor]],
    tests: Cases,
    *,
    draw: int,
    rate: float,
) -> dict[str, Any]:
    """Train one arm on a draw and test it along the way.

    Args:
        evaluation: ``finetune`` or ``linear`` (the encoder is frozen).
        encoder: State dict of the pretrained encoder; None = from scratch.
        batches: Of :func:`training_batches`, one per step.
        tests: The test patients.
        draw: The seed of the decoder.
        rate: Peak learning rate of AdamW.

    Returns:
        ``dice``: step -> Dice of each test patient, in sorted order; ``cross_entropy``: step -> mean over voxels;
        ``surface_distance``: mm, of each patient at the end (None without a prediction).
    """
    torch.set_num_threads(1)
    network = network_of(evaluation, encoder, draw)
    loss_of = DC_and_CE_loss(
        {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False},
        {},
        dice_class=MemoryEfficientSoftDiceLoss,
    )
    weights = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, rate, weight_decay=0.01, fused=True)
    total = len(batches)
    read_outs = {round(share * total) for share in READ_OUTS[evaluation]}
    result: dict[str, Any] = {"dice": {}, "cross_entropy": {}}
    for step, (image, lesion) in enumerate(batches):
        network.train()
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine_lr(step, peak=rate, warmup=total // 10, total=total)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network(image.float())
        loss_of(logits.float(), lesion.long()).backward()
        nn.utils.clip_grad_norm_(weights, CLIP)
        optimizer.step()
        if step + 1 in read_outs:
            scores = test(network, tests, distances=step + 1 == total)
            result["dice"][str(step + 1)] = scores["dice"]
            result["cross_entropy"][str(step + 1)] = scores["cross_entropy"]
    return result | {"surface_distance": scores["distances"]}


@torch.no_grad()
def test(network: nn.Module, tests: Cases, *, distances: bool) -> dict[str, Any]:
    """Segment whole slices and compare whole patients: ``dice`` and, if asked, ``distances`` per patient, ``cross_entropy``."""
    network.eval()
    dice, entropy, voxels, apart = [], 0.0, 0, []
    for name in sorted(tests):
        image, lesion = tests[name]
        rows, columns = lesion.shape[1:]
        padded = nn.functional.pad(image, (0, -columns % MULTIPLE, 0, -rows % MULTIPLE))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            together = torch.cat([network(part).float() for part in padded.split(TEST_BATCH)])[..., :rows, :columns]
        entropy += nn.functional.cross_entropy(together, lesion.long(), reduction="sum").item()
        voxels += lesion.numel()
        found = together.argmax(1).bool()
        total = int(found.sum() + lesion.sum())
        dice.append(2 * int((found & lesion).sum()) / total if total else 1.0)
        if distances:
            apart.append(surface_distance(found.numpy(), lesion.numpy()))
    return {"dice": [round(d, 5) for d in dice], "cross_entropy": entropy / voxels, "distances": apart}


def surface_distance(found: np.ndarray, lesion: np.ndarray) -> float | None:
    """Mean distance in mm between the surfaces of two (slices, H, W) bool masks, both ways; None where one is empty."""
    if not found.any() or not lesion.any():
        return None
    spacing = SPACING[::-1]
    surfaces = [mask & ~binary_erosion(mask) for mask in (found, lesion)]
    away = [distance_transform_edt(~surface, spacing) for surface in surfaces]
    values = np.concatenate([away[1][surfaces[0]], away[0][surfaces[1]]])
    return round(float(values.mean()), 3)
