"""Planning a data set like another one, so that an encoder pretrained there fits: its architecture and patch, own spacing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emim_nnunet.checkpoints.locate import find_checkpoint
from emim_nnunet.checkpoints.source import read_source
from emim_nnunet.datasets.dataset import PreprocessedDataset, configuration_manager
from emim_nnunet.networks.backbones import for_patch
from emim_nnunet.nnunet.plans import PlansManager

DEFAULT_BATCH = 2  # nnU-Net's smallest, where the source does not say


@dataclass(frozen=True)
class Like:
    """What a plan takes over.

    Attributes:
        name: What the source is called in the name of the plans; letters, digits and _.
        configuration: The configuration that is planned like it.
        architecture: The entry ``architecture`` of a configuration of nnU-Net's plans.
        patch_size: Voxels of a training patch per axis.
        batch_size: Samples in a batch of the segmentation stage.
        spacing: mm per axis in the order of the images, None where unknown; used only where asked for.
    """

    name: str
    configuration: str
    architecture: dict[str, Any]
    patch_size: tuple[int, ...]
    batch_size: int
    spacing: tuple[float, ...] | None


def read_like(text: str, plans_name: str, configuration: str) -> Like:
    """The source of a plan.

    Args:
        text: Id of a preprocessed data set, or a checkpoint of ours, of nnU-Net or of nnssl, as
            :func:`.locate.find_checkpoint` takes it.
        plans_name: Name of the plans of the data set; not used for a checkpoint.
        configuration: Configuration of the data set to take over; for a checkpoint, the configuration to plan.

    Raises:
        UserError: The text is neither, the file cannot be read, or the plans have no such configuration.
    """
    if text.isdecimal():
        data = PreprocessedDataset.find(text, plans_name, configuration)
        return _of_plans(data.plans, configuration, data.name.split("_")[0].lower())
    path = Path(text)
    source = read_source(find_checkpoint(path))
    if source.configuration is not None and "plans" in source.checkpoint.get("init_args", source.checkpoint):
        about = source.checkpoint.get("init_args", source.checkpoint)
        return _of_plans(about["plans"], source.configuration, path.stem, configuration)
    name = "".join(c if c.isalnum() else "_" for c in path.stem)
    architecture = for_patch(source.architecture, source.patch_size)
    return Like(name, configuration, architecture, tuple(source.patch_size), DEFAULT_BATCH, None)


def _of_plans(plans: dict[str, Any], configuration: str, name: str, planned: str | None = None) -> Like:
    content = configuration_manager(plans, configuration)
    spacing = None
    if len(content.spacing) == 3:
        spacing = tuple(content.spacing[i] for i in PlansManager(plans).transpose_backward)
    return Like(
        "".join(c if c.isalnum() else "_" for c in name),
        planned or configuration,
        content.configuration["architecture"],
        tuple(content.patch_size),
        content.batch_size,
        spacing,
    )
