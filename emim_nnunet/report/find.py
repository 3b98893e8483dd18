"""Finding runs in folders: each kind is known by the files that it leaves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from emim_nnunet.checkpoints.locate import CHECKPOINT_NAMES
from emim_nnunet.errors import UserError
from emim_nnunet.storage.files import read_json

SSL_LOG, COLLAPSE_CSV, COLLAPSE_REPORT = "ssl_log.csv", "collapse.csv", "collapse_report.json"
COMPARISON, COMPARISON_PAGE = "results.json", "results.md"
CLASS_SCORES, CLASSIFIER = "metrics.json", "classifier.pth"
SUMMARY = "summary.json"  # nnU-Net's scores of predictions
NOT_SEARCHED = ("nnUNet_raw", "nnUNet_preprocessed", "reconstructions", "non_finite", "validation")
DEEPEST = 6


class Kind(IntEnum):
    """What a run is, in the order in which a report shows them."""

    COMPARISON = 0
    PRETRAINING = 1
    DIAGNOSIS = 2
    SEGMENTATION = 3
    CLASSIFICATION = 4
    SCORES = 5


@dataclass(frozen=True, order=True)
class Run:
    """A run that was found.

    Attributes:
        kind: What it is.
        path: Its folder; a file for scores.
    """

    kind: Kind
    path: Path


def find_runs(path: Path) -> list[Run]:
    """Find the runs that a path names: the folder of a run, or a folder that holds some.

    Args:
        path: The folder, or a JSON file of scores that nnU-Net wrote.

    Returns:
        The runs, by kind and path.

    Raises:
        UserError: The path does not exist, or holds no run.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist: give the folder of a run, such as .../fold_0")
    found = sorted(_search(path.absolute(), 0)) if path.is_dir() else []
    if path.is_file() and _is_scores(path):
        found = [Run(Kind.SCORES, path.absolute())]
    if not found:
        raise UserError(
            f"{path} holds no run: give the folder of a fold (.../fold_0), of emim_compare, emim_classify or emim_diagnose, or "
            f"a folder that holds some"
        )
    return found


def _search(folder: Path, depth: int) -> Iterator[Run]:
    kind = kind_of(folder)
    if kind is not None:
        yield Run(kind, folder)
        return
    if depth == DEEPEST:
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.is_dir() and not entry.name.startswith(".") and entry.name not in NOT_SEARCHED:
            yield from _search(Path(entry.path), depth + 1)
        elif entry.name.startswith("metrics_") and entry.name.endswith(".json") and _is_scores(Path(entry.path)):
            yield Run(Kind.SCORES, Path(entry.path))


def kind_of(folder: Path) -> Kind | None:
    """What run a folder holds itself; None where it holds none."""

    def holds(*names: str) -> bool:
        return any((folder / name).is_file() for name in names)

    if holds(COMPARISON) and holds(COMPARISON_PAGE):
        return Kind.COMPARISON
    if holds(SSL_LOG):
        return Kind.PRETRAINING
    if holds(COLLAPSE_REPORT):
        return Kind.DIAGNOSIS
    if holds(CLASSIFIER, CLASS_SCORES):
        return Kind.CLASSIFICATION
    if folder.name.startswith("fold_") and (holds(*CHECKPOINT_NAMES) or (folder / "validation" / SUMMARY).is_file()):
        return Kind.SEGMENTATION
    if holds(SUMMARY) and _is_scores(folder / SUMMARY):
        return Kind.SCORES
    return None


def _is_scores(file: Path) -> bool:
    try:
        return "metric_per_case" in read_json(file)
    except (UserError, TypeError):
        return False
