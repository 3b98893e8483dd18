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
from emim_nnunet.storage.files import read_json, write_json

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
            UserError: The folder holds a comparison of other cases, or with other settings of an arm.
        """
        file = self.preprocessed / SPLITS
        if file.is_file() and read_splits(self.preprocessed) != splits:
            raise UserError(
                f"{self.output} holds a comparison with other cases, seeds or numbers of labelled cases: choose another folder "
                f"with -o"
            )
        written = self.preprocessed / f"{self.plans_name}.json"
        before = read_json(written)["configurations"] if written.is_file() and not written.is_symlink() else {}
        changed = [name for name, content in configurations.items() if before.get(name, content) != content]
        if changed:
            raise UserError(
                f"{self.output} holds a comparison with other settings of {', '.join(changed)}: choose another folder with -o"
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
        write_json(written, plans)
        return plans


def make_splits(
    labelled: Sequence[str], tests: Mapping[int, Sequence[str]], counts: Sequence[int], patients: Mapping[str, str]
) -> list[dict[str, list[str]]]:
    """Make a fold per seed for its SSL stages, all labelled cases but its test cases, and one per count with that many of them.

    Every seed has test cases of its own, so the labelled cases differ between seeds even where the largest count takes all that
    the test leaves.

    Args:
        labelled: Ids of all labelled cases.
        tests: Ids of the test cases of each seed.
        counts: Numbers of labelled training cases; a smaller set is part of the larger ones of the same seed.
        patients: Case -> patient; other cases of the patients of test cases are left out.

    Raises:
        UserError: There are fewer training cases than asked for.
    """
    splits = []
    for seed, test in tests.items():
        tested = {patients.get(case, case) for case in test}
        pool = sorted(case for case in labelled if patients.get(case, case) not in tested)
        if max(counts) > len(pool):
            raise UserError(
                f"--labelled {max(counts)}: of {len(labelled)} labelled cases {len(test)} are for the test, "
                f"which leaves {len(pool)}"
            )
        chosen = [pool, *(draw_cases(pool, count, seed) for count in counts)]
        splits += [{"train": sorted(cases), "val": sorted(test)} for cases in chosen]
    return splits


def draw_cases(cases: Sequence[str], count: int, seed: int) -> list[str]:
    """That many of the cases, chosen by the seed; fewer are part of more."""
    return [cases[i] for i in np.random.default_rng(seed).permutation(len(cases))[:count]]


def configuration_name(base: str, arm: Arm, seed: int) -> str:
    """The name of the configuration of an arm and seed."""
    return f"{base}_{arm.name}_seed{seed}"
