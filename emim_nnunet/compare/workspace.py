"""The folders of a comparison: the user's preprocessed data linked, plans and splits of its own, results beside them."""

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
    """Where a comparison runs; nothing outside it is written.

    Args:
        output: Folder of the comparison.
        data: Of the user.
    """

    def __init__(self, output: Path, data: PreprocessedDataset) -> None:
        self.output = output
        self.data = data

    @property
    def preprocessed(self) -> Path:
        """The linked data set."""
        return self.output / "nnUNet_preprocessed" / self.data.name

    @property
    def plans_name(self) -> str:
        """Name of the plans."""
        return self.data.plans["plans_name"]

    def environment(self) -> dict[str, str]:
        """Variables for nnU-Net's commands."""
        return os.environ | {name: str(self.output / name) for name in FOLDERS}

    def results(self, trainer: str, configuration: str, fold: int) -> Path:
        """Where nnU-Net writes."""
        name = f"{trainer}__{self.plans_name}__{configuration}"
        return self.output / "nnUNet_results" / self.data.name / name / f"fold_{fold}"

    def write(self, splits: list[dict[str, list[str]]], configurations: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Link the data and write plans and splits.

        Args:
            splits: nnU-Net's folds.
            configurations: To add to the plans.

        Returns:
            The plans.

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
    """Per seed a fold for its SSL stages, all labelled cases but its test cases, and one per count with that many of them.

    Every seed has test cases of its own, so the labelled cases differ between seeds even where the largest count takes all that
    the test leaves.

    Args:
        labelled: All labelled cases.
        tests: Test cases of each seed.
        counts: Numbers of labelled training cases; a smaller set is part of the larger ones of the same seed.
        patients: Case -> patient; other cases of the patients of test cases are left out.

    Raises:
        UserError: Fewer training cases than asked for.
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
    """Name of the configuration of an arm and seed."""
    return f"{base}_{arm.name}_seed{seed}"
