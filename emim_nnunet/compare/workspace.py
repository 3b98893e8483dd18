"""The folders of a comparison: links to the user's preprocessed data, plans and splits of its own, and results."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emim_nnunet.compare.arms import Arm
from emim_nnunet.datasets.dataset import PreprocessedDataset
from emim_nnunet.datasets.splits import SPLITS, read_splits
from emim_nnunet.errors import UserError
from emim_nnunet.storage.files import write_json

SSL_FOLD = 0
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


class Workspace:
    """The folder in which a comparison runs; nothing outside it is written.

    Args:
        output: The folder of the comparison.
        data: The preprocessed data set of the user.
    """

    def __init__(self, output: Path, data: PreprocessedDataset) -> None:
        self.output = output
        self.data = data

    @property
    def preprocessed(self) -> Path:
        """The folder of the linked data set."""
        return self.output / "nnUNet_preprocessed" / self.data.name

    @property
    def plans_name(self) -> str:
        """The name of the plans."""
        return self.data.plans["plans_name"]

    def environment(self) -> dict[str, str]:
        """The environment variables for nnU-Net's commands, with nnU-Net's folders inside the workspace."""
        return os.environ | {name: str(self.output / name) for name in FOLDERS}

    def results(self, trainer: str, configuration: str, fold: int) -> Path:
        """The folder that nnU-Net writes the results of a trainer, configuration and fold to."""
        name = f"{trainer}__{self.plans_name}__{configuration}"
        return self.output / "nnUNet_results" / self.data.name / name / f"fold_{fold}"

    def write(self, splits: list[dict[str, list[str]]], configurations: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Link the data and write plans and splits.

        Args:
            splits: The folds, in the format of nnU-Net's ``splits_final.json``.
            configurations: Name -> configuration, to add to the plans.

        Returns:
            The plans with these configurations.

        Raises:
            UserError: The folder holds a comparison with other cases, seeds or numbers of labelled cases.
        """
        file = self.preprocessed / SPLITS
        if file.is_file() and read_splits(self.preprocessed) != splits:
            raise UserError(
                f"{self.output} holds a comparison with other cases, seeds or numbers of labelled cases: choose another folder "
                f"with -o"
            )
        for name in FOLDERS:
            (self.output / name).mkdir(parents=True, exist_ok=True)
        self.preprocessed.mkdir(exist_ok=True)
        for entry in self.data.folder.iterdir():
            link = self.preprocessed / entry.name
            written_here = entry.name in (SPLITS, f"{self.plans_name}.json")
            if not written_here and not link.is_symlink():
                link.symlink_to(entry.resolve(), target_is_directory=entry.is_dir())
        plans = self.data.plans | {"configurations": self.data.plans["configurations"] | configurations}
        write_json(file, splits)
        write_json(self.preprocessed / f"{self.plans_name}.json", plans)
        return plans


def make_splits(
    labelled: Sequence[str],
    test: Sequence[str],
    counts: Sequence[int],
    seeds: Sequence[int],
    patients: Mapping[str, str],
) -> list[dict[str, list[str]]]:
    """Make the folds: fold 0 for the SSL stages, then one for each seed and number of labelled cases.

    The training cases of fold 0 are all labelled cases except the test cases; those of the others are drawn from them.

    Args:
        labelled: Ids of all labelled cases.
        test: Ids of the test cases, which are the validation cases of every fold.
        counts: Numbers of labelled training cases; a smaller set is part of the larger ones of the same seed.
        seeds: Seeds of the choice of training cases.
        patients: Case -> patient; other cases of the patients of test cases are left out.

    Raises:
        UserError: There are fewer training cases than asked for.
    """
    tested = {patients.get(case, case) for case in test}
    pool = sorted(case for case in labelled if patients.get(case, case) not in tested)
    if max(counts) > len(pool):
        raise UserError(
            f"--labelled {max(counts)}: of {len(labelled)} labelled cases {len(test)} are for the test, "
            f"which leaves {len(pool)}"
        )
    splits = [{"train": pool, "val": sorted(test)}]
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(len(pool))
        splits += [{"train": sorted(pool[i] for i in order[:count]), "val": sorted(test)} for count in counts]
    return splits


def configuration_name(base: str, arm: Arm, seed: int) -> str:
    """The name of the configuration of an arm and seed."""
    return f"{base}_{arm.name}_seed{seed}"
