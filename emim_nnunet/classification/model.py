"""A classifier of whole cases: the encoder's features, averaged over the body, and one linear layer per class or number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emim_nnunet.checkpoints.encoder import load_encoder, require_finite
from emim_nnunet.checkpoints.io import FORMAT_VERSION, load_checkpoint, save_checkpoint
from emim_nnunet.checkpoints.network import planned_network
from emim_nnunet.checkpoints.source import read_source
from emim_nnunet.dataloading.batch import prepare
from emim_nnunet.dataloading.crops import crop_box
from emim_nnunet.datasets.dataset import PreprocessedDataset
from emim_nnunet.datasets.preprocessed import OUTSIDE, Case, open_body, open_case, readable
from emim_nnunet.errors import UserError
from emim_nnunet.networks import PlannedEncoder, encoder_of
from emim_nnunet.nnunet.inference import compute_steps_for_sliding_window
from emim_nnunet.nnunet.plans import PlansManager, determine_num_input_channels
from emim_nnunet.settings.plans import planned
from emim_nnunet.views.boxes import adaptive_pool

CLASSIFIER_FORMAT = "emim_nnunet.classifier"


class CaseClassifier(nn.Module):
    """Linear classifiers on standardised features of an encoder.

    The features of a case are the averages over its body of the outputs of *all* stages. (The average over everything of a
    single stage would say little: instance normalisation has fixed it.)

    Args:
        encoder: An encoder of nnU-Net that returns the outputs of all stages.
        num_classes: Number of classes of each target; 1 = the target is a number.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: PlannedEncoder, num_classes: Sequence[int]) -> None:
        super().__init__()
        self.encoder = encoder
        width = sum(encoder.output_channels)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.num_classes = tuple(num_classes)
        self.heads = nn.ModuleList(nn.Linear(width, number) for number in num_classes)

    def sums(self, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
        """Features summed over the body, and the weights by which the sums must be divided.

        Args:
            image: (B, C, *P) float, patches as :func:`prepare` makes them.
            foreground: (B, 1, *P) bool, True inside the body.

        Returns:
            Sums (B, width) float32 and weights (B, width) float32; both may be added up over the patches of a case.
        """
        totals, counts = [], []
        for output in self.encoder(image):
            share = adaptive_pool(foreground.float(), output.shape[2:])
            totals.append((output.float() * share).flatten(2).sum(2))
            counts.append(share.flatten(2).sum(2).expand_as(totals[-1]))
        return torch.cat(totals, 1), torch.cat(counts, 1)

    def classify(self, vectors: Tensor) -> list[Tensor]:
        """Logits (N, classes), or numbers (N, 1), for each target, from feature vectors (N, width)."""
        rows = (vectors - self.mean) / self.std
        return [head(rows) for head in self.heads]

    def forward(self, image: Tensor, foreground: Tensor) -> list[Tensor]:
        """Logits (B, classes) for each target, from patches (B, C, *P) and their body (B, 1, *P) bool."""
        totals, counts = self.sums(image, foreground)
        return self.classify(totals / counts.clamp_min(1e-6))


def build_encoder(data: PreprocessedDataset, checkpoint: Path | None, seed: int) -> tuple[PlannedEncoder, list[str]]:
    """The planned encoder with the weights of a checkpoint, or from scratch.

    Args:
        data: The data set whose plans describe the network.
        checkpoint: File of any kind that :func:`read_source` knows; None = from scratch.
        seed: Seed of the initialisation.

    Returns:
        The encoder, and a line of text for each adaptation of the weights.

    Raises:
        UserError: The weights do not fit the plans.
    """
    manager = data.manager
    channels = determine_num_input_channels(PlansManager(data.plans), manager, data.dataset_json)
    architecture, heads = manager.configuration["architecture"], 2  # any number of heads: the decoder is not used
    network = planned_network(architecture, channels, heads, deep_supervision=False, seed=seed)
    if checkpoint is None:
        return encoder_of(network), []
    source = read_source(checkpoint)
    names = (source.channel_names, data.channel_names)
    encoder, (state, fitted) = encoder_of(network), source.state_for(architecture)
    return encoder, fitted + load_encoder(encoder, state, source=str(checkpoint), names=names)


def tiles(data: PreprocessedDataset, case: Case) -> Iterator[tuple[Tensor, Tensor]]:
    """Patches that cover a whole case; those without any voxel of the body are left out.

    Args:
        data: The data set that the case belongs to.
        case: The case.

    Yields:
        ``image`` (1, C, *P) float32 and ``foreground`` (1, 1, *P) bool, on the CPU.
    """
    for _, image, foreground in tiles_in_boxes(data, case, data.manager.patch_size):
        yield image, foreground


def tiles_in_boxes(
    data: PreprocessedDataset, case: Case, patch_size: Sequence[int]
) -> Iterator[tuple[list[list[int]], Tensor, Tensor]]:
    """As :func:`tiles`, with patches of a given size, and where they lie.

    Args:
        data: The data set that the case belongs to.
        case: The case.
        patch_size: Voxels per axis of a patch, two or three of them.

    Yields:
        First and last voxel (exclusive) of the patch per axis of the case, which may lie outside of it; ``image`` (1, C, *P)
        float32 and ``foreground`` (1, 1, *P) bool, on the CPU.
    """
    patch = tuple(patch_size)
    size = (1, *patch) if len(patch) == 2 else patch
    image, masks = open_masked(case)
    for lower in product(*(_starts(n, p) for n, p in zip(image.shape[1:], size, strict=True))):
        box = [[start, start + p] for start, p in zip(lower, size, strict=True)]
        mask = torch.from_numpy(crop_box(masks, box, False))
        if not mask[0].any():
            continue
        with readable(case.identifier):
            voxels = torch.from_numpy(crop_box(image, box, 0).astype(np.float32, copy=False))
        if len(patch) == 2:
            voxels, mask = voxels[:, 0], mask[:, 0]
        patch_of_case = {"image": voxels[None], "foreground": mask[None, :1], "inside": mask[None, -1:]}
        yield box, *prepare(patch_of_case, torch.device("cpu"), data.manager.use_mask_for_norm)


def open_masked(case: Case) -> tuple[Any, np.ndarray]:
    """Open the image of a case, and read its masks.

    Args:
        case: The case.

    Returns:
        Image (C, *shape), of which voxels are read when they are asked for, and masks (1 or 2, *shape) bool: the first is the
        body, the last what nnU-Net takes for it.

    Raises:
        UserError: The case cannot be read.
    """
    with readable(case.identifier):
        image, seg = open_case(case.folder, case.identifier)
        inside = np.asarray(seg)[:1] != OUTSIDE
        body = open_body(case.folder, case.identifier, image.shape[1:])
        return image, inside if body is None else np.concatenate([body[:], inside])


def _starts(length: int, patch: int) -> list[int]:
    """First voxels of the fewest windows with which nnU-Net covers an axis; a short axis is centred in its patch."""
    if length <= patch:
        return [-((patch - length) // 2)]
    return compute_steps_for_sliding_window((length,), (patch,), 1.0)[0]


@torch.no_grad()
def case_vector(model: CaseClassifier, data: PreprocessedDataset, case: Case, device: torch.device) -> Tensor:
    """Features of a whole case, averaged over all its tiles; a voxel counts once for each tile that it is in.

    Args:
        model: The classifier in evaluation mode, on ``device``.
        data: The data set that the case belongs to.
        case: The case.
        device: The device to compute on.

    Returns:
        (width,) float32 on the CPU.

    Raises:
        UserError: The case has no body.
    """
    summed: tuple[Tensor, Tensor] | None = None
    for image, foreground in tiles(data, case):
        sums, weights = model.sums(image.to(device), foreground.to(device))
        summed = (sums, weights) if summed is None else (summed[0] + sums, summed[1] + weights)
    if summed is None:
        raise UserError(f"case {case.identifier} holds nothing but background")
    total, count = summed
    return (total / count.clamp_min(1e-6))[0].cpu()


def probabilities(model: CaseClassifier, vectors: Tensor) -> list[np.ndarray]:
    """Probabilities (N, classes) or numbers (N, 1), float64, for each target, from vectors (N, width) on the CPU; moves the
    model there.
    """
    with torch.no_grad():
        outputs = [values.double() for values in model.cpu().classify(vectors)]
    return [(values if values.shape[1] == 1 else F.softmax(values, 1)).numpy() for values in outputs]


def save_classifier(model: CaseClassifier, data: PreprocessedDataset, about: dict[str, Any], path: Path) -> None:
    """Write a classifier that :func:`load_classifier` reads.

    Args:
        model: The classifier.
        data: The data set that it was trained on.
        about: ``targets``, ``classes`` (none for a number) and whatever else is worth knowing, as plain values.
        path: The file to write.
    """
    content = {
        "format": CLASSIFIER_FORMAT,
        "format_version": FORMAT_VERSION,
        "network_weights": model.state_dict(),
        "plans": data.plans,
        "dataset_json": data.dataset_json,
        "configuration": data.configuration,
    }
    save_checkpoint(content | about, path)


def load_classifier(path: Path) -> tuple[CaseClassifier, dict[str, Any]]:
    """Load a classifier: the model in evaluation mode on the CPU, and the content of its file.

    Raises:
        UserError: The file is no classifier of ours, or its weights do not fit or are not finite.
    """
    checkpoint = load_checkpoint(path, formats=(CLASSIFIER_FORMAT,))
    described = (checkpoint[key] for key in ("plans", "dataset_json", "configuration"))
    data = PreprocessedDataset(path.parent, *described)  # no folder is read
    encoder, _ = build_encoder(data, None, seed=0)
    with planned(f"{path} does not hold the weights of its network", "is it a whole classifier?"):
        model = CaseClassifier(encoder, [len(checkpoint["classes"][t]) or 1 for t in checkpoint["targets"]])
        model.load_state_dict(checkpoint["network_weights"])
    require_finite(model.state_dict(), str(path))
    return model.eval(), checkpoint
