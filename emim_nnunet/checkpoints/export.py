"""Exports: a file that the stock nnUNetTrainer takes with ``-pretrained_weights``, or the encoder alone to keep or to share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from emim_nnunet.checkpoints.adaptation_plan import adaptation_plan
from emim_nnunet.checkpoints.encoder import compare_topology, encoder_state, load_encoder, without_decoder
from emim_nnunet.checkpoints.io import EXPORT_FORMAT, FORMAT_VERSION, SSL_FORMAT, save_checkpoint
from emim_nnunet.checkpoints.network import planned_network
from emim_nnunet.checkpoints.source import EncoderSource, read_source
from emim_nnunet.datasets.channel_names import channel_names
from emim_nnunet.datasets.dataset import configuration_manager
from emim_nnunet.errors import UserError
from emim_nnunet.methods import papers_of
from emim_nnunet.networks import encoder_of
from emim_nnunet.nnunet.plans import PlansManager, determine_num_input_channels

DECODER_SEED = 0
NNUNET_PAPER = "Isensee et al., nnU-Net, Nature Methods 2021, doi:10.1038/s41592-020-01008-z"


@dataclass(frozen=True)
class ExportSummary:
    """What an export wrote.

    Attributes:
        method: Class name of the SSL method, or the kind of the source where it is no SSL stage.
        num_cases: Number of cases that the encoder learnt from; None = unknown.
        epochs: Number of epochs that it was trained for.
        finished: Whether the SSL stage was finished; None = unknown.
        num_tensors: Number of different tensors of the encoder.
        adaptations: A line of text for each adaptation of the weights.
    """

    method: str
    num_cases: int | None
    epochs: int
    finished: bool | None
    num_tensors: int
    adaptations: list[str]


def export(
    checkpoint_path: Path, plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any], output: Path
) -> ExportSummary:
    """Put the encoder of an SSL checkpoint into the network that the target plans describe.

    The decoder is freshly initialised, from a fixed seed: exporting twice gives the same file.

    Args:
        checkpoint_path: SSL checkpoint, exported encoder, or any other file that :func:`read_source` knows.
        plans: Plans JSON of the target, as a dict.
        configuration: Name of the target's configuration.
        dataset_json: Content of the target's ``dataset.json``.
        output: File to write; its ``network_weights`` are a full state dict of the target network.

    Returns:
        A summary of the export.

    Raises:
        UserError: The file is no such checkpoint, or the encoders differ; nothing is written then.
    """
    source = read_source(checkpoint_path)
    manager, target = PlansManager(plans), configuration_manager(plans, configuration)
    differences = compare_topology(source.architecture, target.configuration["architecture"])
    if differences:
        raise UserError(
            f"the encoder of {checkpoint_path} does not fit configuration {configuration} of {manager.plans_name}: "
            f"{'; '.join(differences)}. Plan the target like the pretraining data"
        )
    channels = determine_num_input_channels(manager, target, dataset_json)
    heads = manager.get_label_manager(dataset_json).num_segmentation_heads
    network = planned_network(
        target.configuration["architecture"], channels, heads, deep_supervision=True, seed=DECODER_SEED
    )
    encoder, (state, fitted) = encoder_of(network), source.state_for(target.configuration["architecture"])
    names = channel_names(dataset_json)
    adapted = fitted + load_encoder(encoder, state, source=str(checkpoint_path), names=(source.channel_names, names))
    provenance = _provenance(source) | {"adapted": adapted, "channel_names": names}
    plan = adaptation_plan(
        target.configuration["architecture"],
        network,
        spacing=target.spacing,
        patch_size=target.patch_size,
        num_channels=channels,
    )
    save_checkpoint(_content(network.state_dict(), plan, provenance), output)
    return _summary(provenance, encoder, adapted)


def export_encoder(checkpoint_path: Path, output: Path, *, half: bool = False) -> ExportSummary:
    """Write the encoder alone, with what nnU-Net needs to rebuild it: a third of the size of a checkpoint.

    Args:
        checkpoint_path: SSL checkpoint.
        output: File to write; its ``network_weights`` hold only the encoder. :func:`export`, ``emim_diagnose`` and nnU-Net's
            ``nnUNetv2_train_pretrained`` take it.
        half: Whether to store float16, a sixth of the size of a checkpoint (weights become float32 again when they are loaded).

    Returns:
        A summary of the export.

    Raises:
        UserError: The file is no SSL checkpoint; nothing is written then.
    """
    content, summary = encoder_content(read_source(checkpoint_path), half=half)
    save_checkpoint(content, output)
    return summary


def encoder_content(source: EncoderSource, *, half: bool) -> tuple[dict[str, Any], ExportSummary]:
    """What :func:`export_encoder` writes of an SSL checkpoint, and its summary.

    Raises:
        UserError: The source is no SSL checkpoint.
    """
    checkpoint_path = source.path
    if source.checkpoint.get("format") != SSL_FORMAT:
        raise UserError(f"{checkpoint_path} is no checkpoint of an SSL stage: its encoder cannot be exported alone")
    network = source.fresh_network(source.num_channels, DECODER_SEED)
    encoder = encoder_of(network)
    load_encoder(encoder, encoder_state(source.checkpoint), source=str(checkpoint_path))
    if half:
        encoder.half()
    configuration = PlansManager(source.checkpoint["plans"]).get_configuration(source.configuration)
    plan = adaptation_plan(
        source.architecture,
        network,
        spacing=configuration.spacing,
        patch_size=configuration.patch_size,
        num_channels=source.num_channels,
    )
    provenance = _provenance(source) | {"adapted": []}
    weights = without_decoder(network.state_dict())
    return _content(weights, plan, provenance), _summary(provenance, encoder, [])


def _content(weights: dict[str, Tensor], plan: dict[str, Any], provenance: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": EXPORT_FORMAT,
        "format_version": FORMAT_VERSION,
        "network_weights": weights,
        "nnssl_adaptation_plan": plan,
        "citations": [  # as nnU-Net prints them when it loads the file
            {"type": "Method", "name": provenance["method"], "apa_citations": papers_of(provenance["method"])},
            {"type": "Framework", "name": "nnU-Net", "apa_citations": [NNUNET_PAPER]},
        ],
        "provenance": provenance,
    }


def _summary(provenance: dict[str, Any], encoder: nn.Module, adapted: list[str]) -> ExportSummary:
    return ExportSummary(
        provenance["method"],
        provenance["num_training_cases"],
        provenance["current_epoch"],
        provenance["finished"],
        len({v.data_ptr() for v in encoder.state_dict().values()}),
        adapted,
    )


def _provenance(source: EncoderSource) -> dict[str, Any]:
    """Where an encoder comes from; for an export, the provenance that it holds itself."""
    checkpoint = source.checkpoint
    if checkpoint.get("format") == EXPORT_FORMAT:
        return checkpoint["provenance"]
    if checkpoint.get("format") != SSL_FORMAT:
        return {
            "method": source.kind,
            "dataset_name": source.dataset_name,
            "plans_name": source.plans_name,
            "configuration": source.configuration,
            "fold": source.fold,
            "current_epoch": source.epochs,
            "finished": None,
            "num_training_cases": None,
            "channel_names": source.channel_names,
        }
    kept = ("method", "configuration", "fold", "channel_names", "emim", "seed", "versions", "current_epoch", "finished")
    return {key: checkpoint[key] for key in kept} | {
        # what names a path has no place in a file that is shared
        "emim": {key: value for key, value in checkpoint["emim"].items() if key != "collapse_reference"},
        "dataset_name": checkpoint["plans"]["dataset_name"],
        "plans_name": checkpoint["plans"]["plans_name"],
        "num_training_cases": len(checkpoint["training_cases"]),
    }
