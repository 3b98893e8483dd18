"""Encoders from anywhere: our SSL checkpoints, nnU-Net's own checkpoints, and files with an nnssl adaptation plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from emim_nnunet.checkpoints.encoder import encoder_state, load_encoder
from emim_nnunet.checkpoints.io import SSL_FORMAT, read_checkpoint
from emim_nnunet.checkpoints.network import planned_network
from emim_nnunet.datasets.channel_names import channel_names
from emim_nnunet.errors import UserError
from emim_nnunet.nnunet.plans import PlansManager, determine_num_input_channels
from emim_nnunet.settings.plans import check_architecture, check_plans, planned


@dataclass(frozen=True)
class EncoderSource:
    """An encoder in a checkpoint, and where it comes from.

    Attributes:
        path: File.
        kind: ``SSL stage``, ``nnU-Net`` or ``adaptation plan``.
        checkpoint: Its content.
        architecture: As in a configuration of nnU-Net's plans.
        num_channels: Of the input.
        patch_size: Voxels per axis.
        epochs: Epochs done, 0 where unknown.
        trainer: Name of the trainer, where known.
        plans_name: Plans that it was trained with, None where unknown.
        configuration: Likewise.
        fold: Likewise.
        dataset_name: Likewise.
        channel_names: Of the input, None where unknown.
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
        """The whole network, untrained, with nnU-Net's initialisation.

        Args:
            num_channels: Of the input.
            seed: The weights are a function of it.

        Raises:
            UserError: Not one of nnU-Net's networks.
        """
        check_architecture(self.architecture, str(self.path))
        with planned(f"the network that {self.path} describes cannot be built", "is it a whole checkpoint?"):
            heads = 2  # the decoder is not looked at
            return planned_network(self.architecture, num_channels, heads, deep_supervision=False, seed=seed)

    def encoder(self, channel_names: Sequence[str]) -> tuple[nn.Module, list[str]]:
        """The encoder with the weights of the checkpoint, to be looked at: they may be NaN.

        Args:
            channel_names: Of the input; the stem is adapted to them.

        Returns:
            The encoder and a line of text for each adaptation.

        Raises:
            UserError: The weights do not fit the architecture that the checkpoint describes.
        """
        encoder = self.fresh_network(len(channel_names), seed=0).get_submodule("encoder")
        names = (self.channel_names, channel_names)
        state = encoder_state(self.checkpoint)
        adapted = load_encoder(encoder, state, source=str(self.path), names=names, finite=False)
        return encoder, adapted


def read_source(path: Path) -> EncoderSource:
    """Find out what a checkpoint is.

    Args:
        path: File.

    Returns:
        The encoder in it.

    Raises:
        UserError: Unreadable, or nothing that describes its own network.
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
        described = plan["architecture_plans"]
        architecture = {
            "network_class_name": described["arch_class_name"],
            "arch_kwargs": described["arch_kwargs"],
            "_kw_requires_import": described["arch_kwargs_requiring_import"],
        }
        channels, patch_size = plan["pretrain_num_input_channels"], tuple(plan["recommended_downstream_patchsize"])
    except (KeyError, TypeError) as error:
        raise UserError(f"the nnssl_adaptation_plan in {path} lacks {error}") from error
    names = checkpoint.get("provenance", {}).get("channel_names")
    return EncoderSource(path, "adaptation plan", checkpoint, architecture, channels, patch_size, channel_names=names)
