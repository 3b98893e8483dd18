"""The export: a file that the stock nnUNetTrainer takes with ``-pretrained_weights``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from emim_nnunet.checkpoints.adaptation_plan import adaptation_plan
from emim_nnunet.checkpoints.encoder import compare_topology, encoder_state, load_encoder
from emim_nnunet.checkpoints.io import EXPORT_FORMAT, FORMAT_VERSION, load_checkpoint, save_checkpoint
from emim_nnunet.errors import UserError

DECODER_SEED = 0
CITATIONS = [
    "E-MIM: arXiv 2407.10377",
    "Isensee et al., nnU-Net, Nature Methods 2021, doi:10.1038/s41592-020-01008-z",
]


@dataclass(frozen=True)
class ExportSummary:
    """What an export did.

    Attributes:
        method: SSL method.
        num_cases: Cases that it learnt from.
        epochs: Epochs that it ran.
        finished: Whether the SSL stage was finished.
        num_tensors: Tensors of the encoder.
        adaptations: A line of text each.
    """

    method: str
    num_cases: int
    epochs: int
    finished: bool
    num_tensors: int
    adaptations: list[str]


def export(
    checkpoint_path: Path, plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any], output: Path
) -> ExportSummary:
    """Put the encoder of an SSL checkpoint into the network that the target plans describe.

    The decoder is freshly initialised, from a fixed seed: exporting twice gives the same file.

    Args:
        checkpoint_path: SSL checkpoint.
        plans: Plans JSON of the target.
        configuration: Of the target.
        dataset_json: Of the target.
        output: File to write; its ``network_weights`` are a full state dict of the target network.

    Returns:
        What was done.

    Raises:
        UserError: Not one of our checkpoints, or the encoders differ; nothing is written then.
    """
    checkpoint = load_checkpoint(checkpoint_path)
    manager = PlansManager(plans)
    if configuration not in manager.available_configurations:
        known = ", ".join(manager.available_configurations)
        raise UserError(f"-c {configuration}: the plans '{manager.plans_name}' have {known}")
    target = manager.get_configuration(configuration)
    source = PlansManager(checkpoint["plans"]).get_configuration(checkpoint["configuration"])
    differences = compare_topology(source.configuration["architecture"], target.configuration["architecture"])
    if differences:
        raise UserError(
            f"the encoder of {checkpoint_path} does not fit configuration {configuration} of {manager.plans_name}: "
            f"{'; '.join(differences)}. Plan the target like the pretraining data"
        )
    channels = determine_num_input_channels(manager, target, dataset_json)
    heads = manager.get_label_manager(dataset_json).num_segmentation_heads
    network = _fresh_network(target.configuration["architecture"], channels, heads)
    state = encoder_state(checkpoint)
    adapted = load_encoder(network.encoder, state, source=str(checkpoint_path))
    content = {
        "format": EXPORT_FORMAT,
        "format_version": FORMAT_VERSION,
        "network_weights": network.state_dict(),
        "nnssl_adaptation_plan": adaptation_plan(
            target.configuration["architecture"],
            network,
            spacing=target.spacing,
            patch_size=target.patch_size,
            num_channels=channels,
        ),
        "citations": CITATIONS,
        "provenance": _provenance(checkpoint, adapted),
    }
    save_checkpoint(content, output)
    return ExportSummary(
        checkpoint["method"],
        len(checkpoint["training_cases"]),
        checkpoint["current_epoch"],
        checkpoint["finished"],
        len({v.data_ptr() for v in network.encoder.state_dict().values()}),
        adapted,
    )


def _fresh_network(architecture: dict[str, Any], channels: int, heads: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(DECODER_SEED)
        return get_network_from_plans(
            architecture["network_class_name"],
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
            channels,
            heads,
            allow_init=True,
            deep_supervision=True,
        )


def _provenance(checkpoint: dict[str, Any], adapted: list[str]) -> dict[str, Any]:
    kept = ("method", "configuration", "fold", "channel_names", "emim", "seed", "versions", "current_epoch", "finished")
    return {key: checkpoint[key] for key in kept} | {
        "dataset_name": checkpoint["plans"]["dataset_name"],
        "plans_name": checkpoint["plans"]["plans_name"],
        "num_training_cases": len(checkpoint["training_cases"]),
        "adapted": adapted,
    }
