"""The choice of the preprocessed cases that a trained network is measured on."""

from __future__ import annotations

from dataclasses import dataclass

from emim_nnunet.checkpoints.source import EncoderSource
from emim_nnunet.datasets.dataset import PreprocessedDataset
from emim_nnunet.datasets.preprocessed import Case
from emim_nnunet.errors import UserError
from emim_nnunet.nnunet.plans import PlansManager


@dataclass(frozen=True)
class ProbeData:
    """Preprocessed cases to measure networks on.

    Attributes:
        dataset: The data set that the cases belong to.
        cases: The cases to measure on.
        held_out: Whether the network has not been trained on any of them; None = unknown.
        labelled: Cases for the dense probe: the labelled ones of ``cases``, or all labelled ones of the data set where these
            are fewer than two.
        labels: The values in the segmentations, sorted, 0 among them.
    """

    dataset: PreprocessedDataset
    cases: list[Case]
    held_out: bool | None
    labelled: list[Case]
    labels: list[int]


def choose_cases(
    source: EncoderSource, dataset_id: int, plans_name: str | None, configuration: str | None
) -> ProbeData:
    """Choose the cases to measure a network on: those of its own validation fold where that is known, otherwise all.

    Args:
        source: The checkpoint of the network.
        dataset_id: Id of the preprocessed data set.
        plans_name: Name of the plans; None = those of the checkpoint.
        configuration: Name of the configuration; None = that of the checkpoint.

    Returns:
        The cases, and what is known about them.

    Raises:
        UserError: No case is preprocessed, or the checkpoint names no plans or configuration and none are given.
    """
    plans_name, configuration = plans_name or source.plans_name, configuration or source.configuration
    if plans_name is None or configuration is None:
        raise UserError(f"{source.path} does not name its plans: say with -p and -c how the data were preprocessed")
    data = PreprocessedDataset.find(dataset_id, plans_name, configuration)
    data.require_cases()
    held_out = _held_out(source, data)
    present = [*data.labelled, *data.unlabelled]
    validation = [case for case in present if case.identifier in (held_out or [])]
    chosen = validation or present
    labelled = [case for case in chosen if case.folder == data.labelled_folder]
    labels = PlansManager(data.plans).get_label_manager(data.dataset_json).all_labels
    return ProbeData(
        dataset=data,
        cases=chosen,
        held_out=None if held_out is None else bool(validation),
        labelled=labelled if len(labelled) > 1 else data.labelled,
        labels=sorted({0, *labels}),
    )


def _held_out(source: EncoderSource, data: PreprocessedDataset) -> list[str] | None:
    """Ids of the validation cases of the fold that the network was trained on; None where they are unknown.

    For a fold that is not in the split, nnU-Net draws a random one, which is not stored anywhere.
    """
    if source.dataset_name != data.name:
        return None
    if "validation_cases" in source.checkpoint:
        return source.checkpoint["validation_cases"]
    if source.fold == "all":
        return []
    splits, fold = data.splits, source.fold
    return splits[fold]["val"] if isinstance(fold, int) and 0 <= fold < len(splits) else None
