"""Which preprocessed cases a finished network is best looked at with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emim_nnunet.checkpoints.source import EncoderSource
from emim_nnunet.dataloading.crops import CropDataset
from emim_nnunet.datasets.channel_names import channel_names
from emim_nnunet.datasets.folders import preprocessed_folder, read_target
from emim_nnunet.datasets.preprocessed import Case, case_identifiers, unlabelled_folder
from emim_nnunet.datasets.splits import read_splits
from emim_nnunet.errors import UserError
from emim_nnunet.nnunet.plans import ConfigurationManager, PlansManager


@dataclass(frozen=True)
class ProbeData:
    """Preprocessed cases to look at.

    Attributes:
        cases: The cases.
        held_out: Whether the network has not been trained on any of them; None = unknown.
        labelled: Cases to read labels off: the labelled ones of ``cases``, or all of the data set where these are too few.
        configuration: That they were preprocessed for.
        channel_names: C names.
        labels: Values in the segmentations, 0 first.
    """

    cases: list[Case]
    held_out: bool | None
    labelled: list[Case]
    configuration: ConfigurationManager
    channel_names: list[str]
    labels: list[int]


def crops_of(cases: Sequence[Case], patch_size: Sequence[int], seed: int) -> CropDataset:
    """Random crops with their labels.

    Args:
        cases: At least one.
        patch_size: Voxels per axis.
        seed: The crops are a function of it.
    """
    return CropDataset(cases, patch_size, seed, with_label=True)


def find_data(source: EncoderSource, dataset_id: int, plans_name: str | None, configuration: str | None) -> ProbeData:
    """The cases that a network is best measured on: those of its own validation fold where that is known, otherwise all.

    Args:
        source: The network.
        dataset_id: Data set.
        plans_name: None = those of the checkpoint.
        configuration: None = that of the checkpoint.

    Returns:
        Cases and what belongs to them.

    Raises:
        UserError: Nothing preprocessed, or the checkpoint names no plans and none are given.
    """
    plans_name, configuration = plans_name or source.plans_name, configuration or source.configuration
    if plans_name is None or configuration is None:
        raise UserError(f"{source.path} does not name its plans: say with -p and -c how the data were preprocessed")
    plans_json, dataset_json = read_target(dataset_id, plans_name)
    plans = PlansManager(plans_json)
    if configuration not in plans.available_configurations:
        raise UserError(
            f"-c {configuration}: the plans '{plans_name}' have {', '.join(plans.available_configurations)}"
        )
    manager = plans.get_configuration(configuration)
    dataset_folder = preprocessed_folder(dataset_id)
    folder = dataset_folder / manager.data_identifier
    present = [Case(f, i) for f in (folder, unlabelled_folder(folder)) for i in case_identifiers(f)]
    if not present:
        raise UserError(f"no preprocessed case in {folder}: preprocess configuration {configuration} first")
    held_out = _held_out(source, dataset_folder)
    validation = [case for case in present if case.identifier in (held_out or [])]
    chosen = validation or present
    labelled = [case for case in chosen if case.folder == folder]
    labels = plans.get_label_manager(dataset_json).all_labels
    return ProbeData(
        cases=chosen,
        held_out=None if held_out is None else bool(validation),
        labelled=labelled if len(labelled) > 1 else [case for case in present if case.folder == folder],
        configuration=manager,
        channel_names=channel_names(dataset_json),
        labels=sorted({0, *labels}),
    )


def _held_out(source: EncoderSource, dataset_folder: Path) -> list[str] | None:
    """Ids of the validation cases of the fold that the network was trained on; None where they are unknown.

    For a fold that is not in the split nnU-Net draws a random one, which nobody notes.
    """
    if source.dataset_name != dataset_folder.name:
        return None
    if "validation_cases" in source.checkpoint:
        return source.checkpoint["validation_cases"]
    if source.fold == "all":
        return []
    splits = read_splits(dataset_folder)
    fold = source.fold
    return splits[fold]["val"] if isinstance(fold, int) and 0 <= fold < len(splits) else None
