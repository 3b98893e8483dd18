"""Encoders from anywhere: our SSL checkpoints, nnU-Net's own checkpoints, and files with an nnssl adaptation plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from emim_nnunet.checkpoints.adaptation_plan import architecture_of
from emim_nnunet.checkpoints.encoder import encoder_state, fit_positions, load_encoder
from emim_nnunet.checkpoints.io import SSL_FORMAT, read_checkpoint
from emim_nnunet.checkpoints.network import planned_network
from emim_nnunet.datasets.channel_names import channel_names
from emim_nnunet.errors import UserError
from emim_nnunet.networks import encoder_of
from emim_nnunet.networks.backbones import primus_grid
from emim_nnunet.nnunet.plans import PlansManager, determine_num_input_channels
from emim_nnunet.settings.plans import check_architecture, check_plans, planned


@dataclass(frozen=True)
class EncoderSource:
    """A checkpoint that holds an encoder, and what it says about its origin.

    Attributes:
        path: The checkpoint file.
        kind: What the file is: ``SSL stage``, ``nnU-Net`` or ``adaptation plan``.
        checkpoint: The content of the file.
        architecture: The network, as ``architecture`` in a configuration of nnU-Net's plans.
        num_channels: Number of input channels.
        patch_size: Voxels per axis of the patches that the network is made for.
        epochs: Number of epochs done, 0 where unknown.
        trainer: Class name of the trainer, None where unknown.
        plans_name: Name of the plans that it was trained with, None where unknown.
        configuration: Name of the configuration that it was trained with, None where unknown.
        fold: The fold that it was trained on, None where unknown.
        dataset_name: Name of the data set that it was trained on, None where unknown.
        channel_names: Names of the input channels, None where unknown.
    """

    path: Path
    kind: str
    checkpoint: dict[str, Any]
    architecture: dict[str, Any]
    num_channels: int
    patch_size: tuple[int, ...]
    epochs: int = 0
    trainer: str | None = None
    plans_name: str | None = None
    configuration: str | None = None
    fold: int | str | None = None
    dataset_name: str | None = None
    channel_names: list[str] | None = None

    def fresh_network(self, num_channels: int, seed: int) -> nn.Module:
        """Build the whole network, untrained, with nnU-Net's initialisation.

        Args:
            num_channels: Number of input channels, which may differ from the checkpoint's.
            seed: Seed of the weights.

        Raises:
            UserError: The checkpoint describes no network of nnU-Net's.
        """
        check_architecture(self.architecture, str(self.path))
        with planned(f"the network that {self.path} describes cannot be built", "is it a whole checkpoint?"):
            heads = 2  # any number: the decoder is not used
            return planned_network(self.architecture, num_channels, heads, deep_supervision=False, seed=seed)

    def state_for(self, architecture: dict[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
        """Weights of the encoder for another network.

        Args:
            architecture: The ``architecture`` of that network, in which :func:`compare_topology` finds no difference.

        Returns:
            As of :func:`encoder_state`, with the learned positions of a Primus interpolated to its patch, and a line of text
            for each adaptation.
        """
        grids = [primus_grid(of) for of in (self.architecture, architecture)]
        return fit_positions(encoder_state(self.checkpoint), *grids)

    def encoder(self, channel_names: Sequence[str]) -> tuple[nn.Module, list[str]]:
        """Build the encoder with the weights of the checkpoint, for a diagnosis: they may be NaN.

        Args:
            channel_names: Names of the input channels, to which the stem is adapted.

        Returns:
            The encoder, and a line of text for each adaptation.

        Raises:
            UserError: The weights do not fit the architecture that the checkpoint describes.
        """
        encoder = encoder_of(self.fresh_network(len(channel_names), seed=0))
        names = (self.channel_names, channel_names)
        state = encoder_state(self.checkpoint)
        adapted = load_encoder(encoder, state, source=str(self.path), names=names, finite=False)
        return encoder, adapted


def read_source(path: Path) -> EncoderSource:
    """Read a checkpoint and find out which kind it is.

    Args:
        path: The checkpoint file.

    Returns:
        The checkpoint with what it says about its encoder.

    Raises:
        UserError: The file is unreadable, or does not describe its own network.
    """
    checkpoint = read_checkpoint(path)
    if "network_weights" not in checkpoint:
        raise UserError(f"{path} has no 'network_weights': it is no checkpoint of nnU-Net, nnssl or emim_nnunet")
    if checkpoint.get("format") == SSL_FORMAT:
        return _planned(path, "SSL stage", checkpoint, checkpoint)
    if "nnssl_adaptation_plan" in checkpoint:
        return _adaptation_plan(path, checkpoint)
    if "init_args" in checkpoint:
        return _planned(path, "nnU-Net", checkpoint, checkpoint["init_args"])
    raise UserError(f"{path} does not say which network it is of (no init_args, no nnssl_adaptation_plan)")


def _planned(path: Path, kind: str, checkpoint: dict[str, Any], about: dict[str, Any]) -> EncoderSource:
    lacking = [key for key in ("plans", "configuration", "dataset_json", "fold") if key not in about]
    if lacking:
        raise UserError(f"{path} does not say its {', '.join(lacking)}")
    try:
        check_plans(about["plans"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    with planned(f"{path} does not describe its network", "is it a whole checkpoint?"):
        plans = PlansManager(about["plans"])
        configuration = plans.get_configuration(about["configuration"])
        check_architecture(configuration.configuration["architecture"], str(path))
        return EncoderSource(
            path=path,
            kind=kind,
            checkpoint=checkpoint,
            architecture=configuration.configuration["architecture"],
            num_channels=determine_num_input_channels(plans, configuration, about["dataset_json"]),
            patch_size=tuple(configuration.patch_size),
            epochs=checkpoint["current_epoch"],
            trainer=checkpoint["trainer_name"],
            plans_name=plans.plans_name,
            configuration=about["configuration"],
            fold=about["fold"],
            dataset_name=plans.dataset_name,
            channel_names=channel_names(about["dataset_json"]),
        )


def _adaptation_plan(path: Path, checkpoint: dict[str, Any]) -> EncoderSource:
    plan = checkpoint["nnssl_adaptation_plan"]
    try:
        channels, patch_size = plan["pretrain_num_input_channels"], tuple(plan["recommended_downstream_patchsize"])
        architecture = architecture_of(plan["architecture_plans"], _pretrained_patch(plan) or patch_size, str(path))
    except (KeyError, TypeError) as error:
        raise UserError(f"the nnssl_adaptation_plan in {path} lacks {error}") from error
    provenance = checkpoint.get("provenance", {})  # our exports have one
    return EncoderSource(
        path,
        "adaptation plan",
        checkpoint,
        architecture,
        channels,
        patch_size,
        epochs=provenance.get("current_epoch", 0),
        channel_names=provenance.get("channel_names"),
    )


def _pretrained_patch(plan: dict[str, Any]) -> tuple[int, ...] | None:
    """Voxels of the patches that a network was pretrained with, None where the plan does not say."""
    configurations = list(plan.get("pretrain_plan", {}).get("configurations", {}).values())
    return tuple(configurations[0]["patch_size"]) if configurations else None
