"""The folders of a comparison: links to the user's preprocessed data, plans and splits of its own, and results."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from emim_nnunet.compare.arms import Arm
from emim_nnunet.datasets.dataset import PreprocessedDataset
from emim_nnunet.datasets.splits import SPLITS, read_splits
from emim_nnunet.errors import UserError, listed
from emim_nnunet.storage.files import read_json, write_json

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
LOGS = "logs"


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

    @property
    def weights(self) -> Path:
        """The folder of the exported weights."""
        return self.output / "weights"

    def environment(self) -> dict[str, str]:
        """The environment variables for nnU-Net's commands, with nnU-Net's folders inside the workspace."""
        return os.environ | {name: str(self.output / name) for name in FOLDERS}

    def results(self, trainer: str, configuration: str, fold: int) -> Path:
        """The folder that nnU-Net writes the results of a trainer, configuration and fold to."""
        name = f"{trainer}__{self.plans_name}__{configuration}"
        return self.output / "nnUNet_results" / self.data.name / name / f"fold_{fold}"

    def holds(self, splits: list[dict[str, list[str]]], configurations: dict[str, dict[str, Any]]) -> bool:
        """Whether :meth:`write` has been done with these, or with more of them."""
        if not self._plans_file.is_file() or self._plans_file.is_symlink():
            return False  # plans are written last
        needed = [self.output / LOGS, self.weights, *(self.preprocessed / e.name for e in self.data.folder.iterdir())]
        same_splits = read_splits(self.preprocessed)[: len(splits)] == splits
        return (
            all(map(Path.exists, needed)) and same_splits and self._written_plans() == self._plans_with(configurations)
        )

    def write(self, splits: list[dict[str, list[str]]], configurations: dict[str, dict[str, Any]]) -> None:
        """Link the data and write plans and splits; folds and configurations that are there already stay.

        Args:
            splits: The folds, in the format of nnU-Net's ``splits_final.json``.
            configurations: Name -> configuration, to add to the plans.

        Raises:
            UserError: The folder holds a comparison of other cases, or with other settings of an arm.
        """
        known = read_splits(self.preprocessed)
        if any(before != now for before, now in zip(known, splits, strict=False)):
            raise UserError(
                f"{self.output} holds a comparison with other cases, seeds or numbers of labelled cases: choose another folder "
                f"with -o"
            )
        before = self._written_plans()["configurations"]
        changed = [name for name, content in configurations.items() if before.get(name, content) != content]
        if changed:
            what = _what_differs(before[changed[0]], configurations[changed[0]])
            raise UserError(
                f"{self.output} holds a comparison with other settings of {listed(changed, 2)} ({what}): choose another folder "
                f"with -o"
            )
        for name in FOLDERS:
            (self.output / name).mkdir(parents=True, exist_ok=True)
        for folder in (self.output / LOGS, self.weights):
            folder.mkdir(exist_ok=True)
        self.preprocessed.mkdir(exist_ok=True)
        for entry in self.data.folder.iterdir():
            link = self.preprocessed / entry.name
            written_here = entry.name in (SPLITS, self._plans_file.name)
            if not written_here and not link.is_symlink():
                link.symlink_to(entry.resolve(), target_is_directory=entry.is_dir())
        write_json(self.preprocessed / SPLITS, max(splits, known, key=len))
        write_json(self._plans_file, self._plans_with(configurations))

    @property
    def _plans_file(self) -> Path:
        return self.preprocessed / f"{self.plans_name}.json"

    def _written_plans(self) -> dict[str, Any]:
        file = self._plans_file
        return read_json(file) if file.is_file() and not file.is_symlink() else {"configurations": {}}

    def _plans_with(self, configurations: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """The user's plans with these configurations and those of earlier runs."""
        before, planned = self._written_plans()["configurations"], self.data.plans["configurations"]
        return self.data.plans | {"configurations": before | planned | configurations}


def _what_differs(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The settings that two configurations do not share, each with both values."""
    then, today = ({**content, **content.get("emim", {})} for content in (before, now))
    keys = [key for key in sorted({*then, *today} - {"emim"}) if then.get(key) != today.get(key)]
    return listed([f"{key} {then.get(key, 'by default')} there, {today.get(key, 'by default')} now" for key in keys], 3)


def make_splits(
    labelled: Sequence[str],
    tests: Mapping[int, Sequence[str]],
    counts: Sequence[int],
    patients: Mapping[str, str],
    draws: Mapping[int, int] = MappingProxyType({}),
) -> list[dict[str, list[str]]]:
    """Make the folds: per seed one for its SSL stages, all labelled cases but its test cases, and one per count; then of the
    further draws one per count.

    Every seed has test cases of its own, so the labelled cases differ between seeds even where the largest count takes all that
    the test leaves. Draws of one seed share its test cases.

    Args:
        labelled: Ids of all labelled cases.
        tests: Ids of the test cases of each seed.
        counts: Numbers of labelled training cases; a smaller set is part of the larger ones of the same draw.
        patients: Case -> patient; other cases of the patients of test cases are left out.
        draws: Number of each draw -> its seed, see :attr:`.protocol.Protocol.draws`; those of the seeds are made anyway.

    Raises:
        UserError: There are fewer training cases than asked for.
    """
    splits, pools = [], {}
    for seed, test in tests.items():
        tested = {patients.get(case, case) for case in test}
        pool = pools[seed] = sorted(case for case in labelled if patients.get(case, case) not in tested)
        if max(counts) > len(pool):
            raise UserError(
                f"--labelled {max(counts)}: of {len(labelled)} labelled cases {len(test)} are for the test, "
                f"which leaves {len(pool)}"
            )
        chosen = [pool, *(draw_cases(pool, count, seed) for count in counts)]
        splits += [{"train": sorted(cases), "val": sorted(test)} for cases in chosen]
    for number, seed in draws.items():
        if number not in tests:
            chosen = [draw_cases(pools[seed], count, number) for count in counts]
            splits += [{"train": sorted(cases), "val": sorted(tests[seed])} for cases in chosen]
    return splits


def draw_cases(cases: Sequence[str], count: int, seed: int) -> list[str]:
    """That many of the cases, chosen by the seed; fewer are part of more."""
    return [cases[i] for i in np.random.default_rng(seed).permutation(len(cases))[:count]]


def configuration_name(base: str, arm: Arm, seed: int, draw: int) -> str:
    """The name of the configuration of an arm, seed and draw; the SSL stage has that of the draw with its number."""
    name = f"{base}_{arm.name}_seed{seed}"
    return name if draw == seed else f"{name}_draw{draw}"
