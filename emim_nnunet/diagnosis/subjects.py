"""The networks that a diagnosis measures: that of a checkpoint, and its untrained twin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from emim_nnunet.checkpoints.encoder import load_encoder
from emim_nnunet.checkpoints.network import planned_method
from emim_nnunet.checkpoints.source import EncoderSource
from emim_nnunet.checkpoints.stem import explain
from emim_nnunet.datasets.channel_names import any_known
from emim_nnunet.errors import UserError
from emim_nnunet.methods import method_class
from emim_nnunet.methods.base import SSLConfig, SSLMethod
from emim_nnunet.networks import encoder_of, planned_geometry
from emim_nnunet.planners.ssl_plan import cell_size as planned_cell_size
from emim_nnunet.settings.plans import planned


@dataclass
class Subject:
    """A network to measure.

    Attributes:
        name: Name of the network, for tables.
        epochs: Number of epochs done, 0 = untrained.
        encoder: The encoder, in evaluation mode.
        patch_size: Voxels per axis of the patches that it was made for.
        method: The whole SSL method, whose reconstruction is measured too; None where the checkpoint holds none that fits the
            data.
    """

    name: str
    epochs: int
    encoder: nn.Module
    patch_size: tuple[int, ...]
    method: SSLMethod | None = None

    @property
    def crop_size(self) -> tuple[int, ...]:
        """Voxels per axis of the crops that it takes; the patch is the middle of the crop."""
        if self.method is None:
            return self.patch_size
        return self.method.crop_size(self.method.config, self.method.patch_size)


def subjects(source: EncoderSource, channel_names: Sequence[str]) -> tuple[Subject, Subject, list[str]]:
    """Build the network of a checkpoint and its untrained twin.

    Args:
        source: The checkpoint.
        channel_names: Names of the channels of the data.

    Returns:
        The trained network, the untrained one, and a line of text for each adaptation.

    Raises:
        UserError: The weights do not fit the network.
    """
    name, epochs = f"{source.path.parent.name}/{source.path.name}", max(1, source.epochs)
    patch_size, names = source.patch_size, (source.channel_names, channel_names)
    remarks = _obsolete(source)
    if source.kind == "SSL stage" and not remarks and _same_channels(source, channel_names):
        method, before = (_method(source) for _ in range(2))
        method.load_state_dict(source.checkpoint["network_weights"])
        trained = Subject(name, epochs, method.get_submodule("encoder"), patch_size, method.eval())
        return trained, Subject("untrained", 0, before.get_submodule("encoder"), patch_size, before.eval()), []
    encoder, adapted = source.encoder(channel_names)
    twin = encoder_of(source.fresh_network(source.num_channels, seed=0))
    fresh = encoder_of(source.fresh_network(len(channel_names), seed=0))
    load_encoder(fresh, twin.state_dict(), source="the untrained twin", names=names)
    trained = Subject(name, epochs, encoder.eval(), patch_size)
    return trained, Subject("untrained", 0, fresh.eval(), patch_size), remarks + adapted


def _obsolete(source: EncoderSource) -> list[str]:
    """Why the method of a checkpoint of an earlier version cannot be built any more; empty where it can."""
    if source.kind != "SSL stage" or "settings" in source.checkpoint:
        return []
    try:
        _config(source)
    except UserError as error:
        return [f"Only the encoder is measured: {error}"]
    return []


def _same_channels(source: EncoderSource, channel_names: Sequence[str]) -> bool:
    """Whether the whole method takes the channels of the data as they are; unknown names are compared by position."""
    if len(channel_names) != source.num_channels:
        return False
    old = source.channel_names
    return old is None or not any_known(old, channel_names) or not explain(old, channel_names)


def _method(source: EncoderSource) -> SSLMethod:
    """The SSL method of a checkpoint with the same weights as before its first step."""
    kind, config = _config(source)
    with planned(f"the network that {source.path} describes cannot be built", "is it a whole checkpoint?"):
        return planned_method(
            kind, source.architecture, source.num_channels, source.patch_size, config, seed=source.checkpoint["seed"]
        )


def _config(source: EncoderSource) -> tuple[type[SSLMethod], SSLConfig]:
    kind = method_class(source.checkpoint["method"])
    return kind, kind.config_class.of_checkpoint(source.checkpoint, source.checkpoint["emim"])


def mask_cell_size(source: EncoderSource) -> tuple[int, ...]:
    """Voxels of a mask cell per axis: those of an SSL stage's checkpoint, otherwise what the planner would choose.

    Args:
        source: The checkpoint.
    """
    if source.kind == "SSL stage":
        return tuple(source.checkpoint["emim"]["cell_size"])
    return planned_cell_size(planned_geometry(source.architecture)[0], source.patch_size)
