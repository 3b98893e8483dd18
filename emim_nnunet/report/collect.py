"""Gathers a report from the files that runs leave; what is missing is named, and never in the way of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emim_nnunet.report.content import Page
from emim_nnunet.report.files import Names
from emim_nnunet.report.find import Kind, Run, find_runs
from emim_nnunet.report.results import classification_page, comparison_page
from emim_nnunet.report.segmentation import scores_page, segmentation_page
from emim_nnunet.report.stage import stage_page


@dataclass(frozen=True)
class Report:
    """What a report shows.

    Attributes:
        pages: One per run.
        anonymous: Whether cases are numbered.
    """

    pages: Sequence[Page]
    anonymous: bool


def collect(paths: Sequence[Path], *, anonymous: bool = False) -> Report:
    """Gather the report of some runs.

    Args:
        paths: Folders of runs, or folders that hold some.
        anonymous: Whether cases are numbered instead of named.

    Raises:
        UserError: A path holds no run.
    """
    runs = sorted(dict.fromkeys(run for path in paths for run in find_runs(path)))
    names = Names(anonymous=anonymous)
    return Report([page_of(run, names) for run in runs], anonymous)


def page_of(run: Run, names: Names) -> Page:
    """The page of a run.

    Args:
        run: The run.
        names: How cases are called.
    """
    if run.kind is Kind.DIAGNOSIS:
        return stage_page(run.path, names, diagnosis=True)
    kinds = {
        Kind.COMPARISON: comparison_page,
        Kind.PRETRAINING: stage_page,
        Kind.SEGMENTATION: segmentation_page,
        Kind.CLASSIFICATION: classification_page,
        Kind.SCORES: scores_page,
    }
    return kinds[run.kind](run.path, names)
