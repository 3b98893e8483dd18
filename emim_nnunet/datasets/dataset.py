"""Preprocessed data sets and their cases: the one place that opens a configuration of a preprocessed data set."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from emim_nnunet.datasets.channel_names import channel_names
from emim_nnunet.datasets.folders import preprocessed_folder, read_plans
from emim_nnunet.datasets.preprocessed import Case, case_identifiers, unlabelled_folder
from emim_nnunet.datasets.records import check_complete, work_place
from emim_nnunet.datasets.splits import read_origins, read_patients, read_splits
from emim_nnunet.errors import UserError
from emim_nnunet.nnunet.plans import ConfigurationManager, PlansManager
from emim_nnunet.settings.plans import inheritance, planned


@dataclass(frozen=True, eq=False)
class PreprocessedDataset:
    """A preprocessed data set in one configuration of its plans.

    What is stored in other files than plans and ``dataset.json`` is read when it is first asked for, and then remembered; only
    the splits, which training may write, are read each time.

    Attributes:
        folder: Folder of the data set in ``nnUNet_preprocessed``.
        plans: The plans JSON as a dict.
        dataset_json: The content of ``dataset.json``.
        configuration: The name of a configuration of the plans.

    Raises:
        UserError: The plans do not have the configuration.
    """

    folder: Path
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    configuration: str

    def __post_init__(self) -> None:
        inheritance(self.plans, self.configuration)

    @classmethod
    def find(cls, dataset: int | str, plans_name: str, configuration: str) -> PreprocessedDataset:
        """Find a data set that a command names.

        Args:
            dataset: The id of the data set, or the name of its folder.
            plans_name: The name of the plans.
            configuration: The name of a configuration of the plans.

        Raises:
            UserError: Folder, plans or configuration are missing or not valid.
        """
        folder = preprocessed_folder(dataset)
        return cls(folder, *read_plans(folder, plans_name), configuration)

    @property
    def name(self) -> str:
        """The name of the data set, ``DatasetXXX_NAME``."""
        return self.folder.name

    @cached_property
    def manager(self) -> ConfigurationManager:
        """nnU-Net's view of the configuration."""
        return configuration_manager(self.plans, self.configuration)

    @property
    def channel_names(self) -> list[str]:
        """The names of the C channels, in nnU-Net's order."""
        return channel_names(self.dataset_json)

    @cached_property
    def labelled_folder(self) -> Path:
        """The folder of the preprocessed cases with segmentation."""
        links = inheritance(self.plans, self.configuration)
        content = {key: value for link in links for key, value in link.items()}
        with planned(f"configuration '{self.configuration}' of the plans cannot be used"):
            return self.folder / content["data_identifier"]

    @cached_property
    def labelled(self) -> list[Case]:
        """The cases with segmentation, sorted by id."""
        return [Case(self.labelled_folder, i) for i in case_identifiers(self.labelled_folder)]

    @cached_property
    def unlabelled(self) -> list[Case]:
        """The cases without segmentation, sorted by id."""
        folder = unlabelled_folder(self.labelled_folder)
        return [Case(folder, i) for i in case_identifiers(folder)]

    @property
    def labelled_ids(self) -> list[str]:
        """Sorted ids of the cases with segmentation."""
        return [case.identifier for case in self.labelled]

    @property
    def unlabelled_ids(self) -> list[str]:
        """Sorted ids of the cases without segmentation."""
        return [case.identifier for case in self.unlabelled]

    @cached_property
    def cases(self) -> dict[str, Case]:
        """All cases by id, those with segmentation first."""
        return {case.identifier: case for case in [*self.labelled, *self.unlabelled]}

    def require_cases(self, *, labelled: bool = False) -> None:
        """Check that there are preprocessed cases.

        Args:
            labelled: Whether cases with segmentation are needed.

        Raises:
            UserError: There is no such case, or cases that were prepared are missing.
        """
        for folder in (self.labelled_folder, unlabelled_folder(self.labelled_folder)):
            check_complete(folder)
        if not self.labelled and (labelled or not self.unlabelled):
            begun = work_place(self.labelled_folder).is_dir()
            advice = "its preparation is not complete, repeat" if begun else "run"
            more = "" if begun else " first"
            raise UserError(f"no preprocessed case in {self.labelled_folder}: {advice} emim_plan_and_preprocess{more}")

    @property
    def splits(self) -> list[dict[str, list[str]]]:
        """The folds, see :func:`read_splits`."""
        return read_splits(self.folder)

    @cached_property
    def patients(self) -> dict[str, str]:
        """Case -> patient where some patient has several cases, see :func:`read_patients`."""
        return read_patients(self.folder)

    @cached_property
    def origins(self) -> dict[str, str]:
        """Case -> data set where several were pooled, see :func:`read_origins`."""
        return read_origins(self.folder)


def configuration_manager(plans: dict[str, Any], configuration: str) -> ConfigurationManager:
    """nnU-Net's view of a configuration; the data of the plans need not be on this machine.

    Args:
        plans: The plans JSON as a dict.
        configuration: The name of a configuration of the plans.

    Raises:
        UserError: The configuration is unknown, or inherits from itself.
    """
    inheritance(plans, configuration)
    return PlansManager(plans).get_configuration(configuration)
