"""What an SSL stage leaves: read once, whatever version wrote it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emim_nnunet.diagnostics.case_scores import CASE_SCORES
from emim_nnunet.report.content import Page
from emim_nnunet.report.files import log_lines, number, part_of, read_log_of, read_rows
from emim_nnunet.report.find import COLLAPSE_CSV, COLLAPSE_REPORT, SSL_LOG
from emim_nnunet.storage.files import read_json


@dataclass
class StageFiles:
    """What a stage left; parts that are missing are empty.

    Attributes:
        folder: Its folder.
        log: Rows of ``ssl_log.csv``.
        collapse: Rows of ``collapse.csv``.
        report: Content of ``collapse_report.json``.
        checkpoint: The newest checkpoint without its weights.
        plans: The plans.
        dataset_json: The ``dataset.json``.
        lines: Lines of nnU-Net's logs.
        case_scores: Rows of ``case_scores.csv``.
    """

    folder: Path
    log: list[dict[str, str]]
    collapse: list[dict[str, str]]
    report: dict[str, Any]
    checkpoint: dict[str, Any]
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    lines: list[str]
    case_scores: list[dict[str, str]]

    @property
    def about(self) -> dict[str, Any]:
        """What the collapse report says about the run."""
        return self.report.get("about") or {}

    @property
    def channels(self) -> list[str]:
        """Names of the modalities."""
        named = self.checkpoint.get("channel_names") or self.dataset_json.get("channel_names") or {}
        if named:
            return list(named.values() if isinstance(named, dict) else named)
        return [name for name in (self.report.get("now") or {}).get("reconstruction") or {} if name != "all"]

    @property
    def configuration(self) -> str:
        """Name of the configuration; empty where nothing says it."""
        return str(self.checkpoint.get("configuration") or self.about.get("configuration") or "")

    @property
    def held_out(self) -> list[str]:
        """Cases that are measured on and not learnt from."""
        if "validation_cases" in self.checkpoint:
            return list(self.checkpoint["validation_cases"])
        return list(self.about.get("probe_cases", [])) if self.about.get("probe_is_held_out") else []

    @property
    def learnt(self) -> list[str]:
        """Cases that are learnt from."""
        return list(self.checkpoint.get("training_cases", []))

    @property
    def left_out(self) -> list[str]:
        """Cases that the log says were left out because of their patients."""
        lines = [line.split(": ", 1)[1] for line in self.lines if line.startswith("Left out ") and ": " in line]
        return [case for line in lines for case in line.split(" and ")[0].split(", ")]

    def measured(self, name: str, key: str) -> list[tuple[float, float]]:
        """A column of ``collapse.csv`` of a modality: epochs done and values."""
        rows = [row for row in self.collapse if row.get("kind") == "modality" and row.get("name") == name]
        return [(number(row["epoch"]), number(row.get(key))) for row in rows]


def read_stage(folder: Path, page: Page) -> StageFiles:
    """Read what a stage left.

    Args:
        folder: Its folder.
        page: Its page, which names what is missing.
    """
    stage = StageFiles(folder, [], [], {}, {}, {}, {}, [], [])
    for name, attribute, read in (
        (SSL_LOG, "log", read_rows),
        (COLLAPSE_CSV, "collapse", read_rows),
        (COLLAPSE_REPORT, "report", read_json),
        (CASE_SCORES, "case_scores", read_rows),
    ):
        if not (folder / name).is_file():
            page.absent.append(f"{name} is not there")
            continue
        with part_of(page, name):
            setattr(stage, attribute, read(folder / name))
    with part_of(page, "checkpoint"):
        stage.checkpoint = read_log_of(folder)
    for name, key in (("plans.json", "plans"), ("dataset.json", "dataset_json")):
        with part_of(page, name):
            file = folder.parent / name
            setattr(stage, key, stage.checkpoint.get(key) or (read_json(file) if file.is_file() else {}))
    with part_of(page, "log"):
        stage.lines = log_lines(folder)
    return stage
