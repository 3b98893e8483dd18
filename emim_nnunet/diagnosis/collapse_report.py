"""Collapse measurements as files (a table, a report for programs, a picture for people) and as lines of text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

from emim_nnunet.diagnosis.collapse_plots import plot_collapse
from emim_nnunet.diagnosis.reference import Reference
from emim_nnunet.diagnostics import Thresholds, Verdict
from emim_nnunet.storage import tables
from emim_nnunet.storage.figures import rounded
from emim_nnunet.storage.files import plain_json, write_text

SCHEMA, SCHEMA_VERSION = "emim_nnunet.collapse_report", 1
CSV_NAME, REPORT_NAME, PICTURE_NAME = "collapse.csv", "collapse_report.json", "collapse_spectrum.png"
COMPARED = ("effective_rank", "participation_ratio", "top_share", "k99", "trace")


def write_csv(history: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write ``collapse.csv``: a row per evaluation and stage, and per evaluation and modality (``all`` = pooled); of the first
    evaluation also the losses of the baselines, and of a constant under other masks.

    Args:
        history: The measurements, each with ``epoch`` and ``level``.
        folder: The folder to write to.
    """
    tables.write_csv(folder / CSV_NAME, [row for measurement in history for row in _rows(measurement)])


def _rows(measurement: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    about = {"epoch": measurement["epoch"], "step": measurement.get("step"), "verdict": measurement["level"]}
    for name, scores in (measurement["reconstruction"] or {}).items():
        yield about | {"kind": "modality", "name": name} | scores
    for number, stage in enumerate(measurement["stages"]):
        yield about | {"kind": "stage", "name": number} | {k: v for k, v in stage.items() if k != "spectrum"}
    for name, losses in measurement.get("baselines", {}).items():
        for kind, loss in losses.items():
            yield about | {"kind": kind, "name": name, "loss": loss}
    for kind, loss in measurement.get("mask_losses", {}).items():
        yield about | {"kind": "mask", "name": kind, "loss": loss}


def baseline_lines(measurement: Mapping[str, Any]) -> list[str]:
    """Lines of text: what predictions without image content reach.

    Args:
        measurement: The first one of a run; empty where nothing is reconstructed, or an earlier version measured it.
    """
    if "baselines" not in measurement:
        return []
    constants = ", ".join(f"per {k.replace('_', ' ')} {v:.4f}" for k, v in measurement["constant_losses"].items())
    masks = ", ".join(f"{k} {v:.4f}" for k, v in measurement["mask_losses"].items() if isfinite(v))
    return [
        f"Losses of constant predictions on the probe set: {constants}",
        f"Losses without image content: {_ladder(measurement)}. A network that is not below all of them has learnt no more",
        f"Collapsed loss with other masks: {masks}. They agree up to sampling: masks are drawn without a look at the image",
    ]


def _ladder(measurement: Mapping[str, Any]) -> str:
    losses = measurement["baselines"]["all"]
    # 0.0 is added because rounding errors would read -0.000
    skills = {kind: round(1.0 - _ratio(loss, losses["constant"]), 3) + 0.0 for kind, loss in losses.items()}
    return ", ".join(f"{k.replace('_', ' ')} {v:.4f} (skill {rounded(skills[k])})" for k, v in losses.items())


def report(
    history: Sequence[Mapping[str, Any]], verdict: Verdict, thresholds: Thresholds, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Make the content of ``collapse_report.json``.

    Args:
        history: The measurements; the first one is of the untrained network (``epoch`` 0), the last one is reported on.
        verdict: The verdict on the last measurement.
        thresholds: The thresholds that the verdict was made with.
        about: What else is worth knowing as plain values: seed, cases, versions.

    Returns:
        ``schema``, ``schema_version``, ``verdict`` (a level), ``summary`` (a line), ``findings``, ``thresholds``, ``now``,
        ``untrained``, ``relative_to_untrained`` (per stage) and ``about``. Undefined numbers are None.
    """
    now, untrained = history[-1], history[0]
    relative = [
        {key: _ratio(stage[key], twin[key]) for key in COMPARED}
        for stage, twin in zip(now["stages"], untrained["stages"], strict=True)
    ]
    content = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "verdict": verdict.level,
        "summary": verdict.line,
        "findings": [asdict(finding) for finding in verdict.findings],
        "thresholds": asdict(thresholds),
        "now": now,
        "untrained": untrained,
        "relative_to_untrained": relative,
        "about": dict(about),
    }
    return plain_json(content)


def _ratio(value: float, reference: float) -> float:
    return value / reference if reference else float("nan")


def write_report(content: Mapping[str, Any], folder: Path) -> None:
    """Write ``collapse_report.json``.

    Args:
        content: The content, as :func:`report` makes it.
        folder: The folder to write to.
    """
    text = json.dumps(content, indent=1, allow_nan=False)
    write_text(folder / REPORT_NAME, text)


def write_picture(
    history: Sequence[Mapping[str, Any]],
    verdict: Verdict,
    folder: Path,
    others: Mapping[str, Any] | None = None,
    reference: Reference | None = None,
) -> None:
    """Draw ``collapse_spectrum.png``.

    Args:
        history: The measurements; the first one is of the untrained network.
        verdict: The verdict on the last measurement.
        folder: The folder to write to.
        others: Measurements of other networks to draw in the same panels, by name.
        reference: Another stage, whose losses are drawn too.
    """
    plot_collapse(history, folder / PICTURE_NAME, title=verdict.line, others=others, reference=reference)


def table(measured: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Make the lines of a table for the terminal: a row per stage, with the networks side by side, and a line about the skill.

    Args:
        measured: A measurement for each of the names ``untrained``, ``now`` and perhaps ``compared``.
    """
    names = [name for name in ("now", "untrained", "compared") if name in measured]
    with_probe = "dense_probe_r2" in measured["now"]["stages"][0]
    keys = {"effective_rank": "rank", "top_share": "top", "k99": "k99"}
    keys |= {"dense_probe_r2": "probe R2"} if with_probe else {}
    head = ["stage", "channels", "rows", "dead"] + [f"{label} {name}" for label in keys.values() for name in names]
    rows = []
    for number, stage in enumerate(measured["now"]["stages"]):
        few = "" if stage["status"] == "ok" else " (few)"
        cells = [str(number), str(stage["channels"]), f"{stage['count']}{few}", str(stage["dead_channels"])]
        rows.append(cells + [f"{measured[name]['stages'][number][key]:.2f}" for key in keys for name in names])
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in [head, *rows]]
    scores = measured["now"]["reconstruction"]
    if scores is None:
        return [*lines, "Reconstruction: n/a, the checkpoint holds no reconstruction decoder"]
    skill = ", ".join(f"{name} {rounded(values['foreground_skill'])}" for name, values in scores.items())
    lines.append(f"Skill over a constant in the body: {skill}")
    if "baselines" in measured["untrained"]:
        loss = scores["all"]["loss"]
        lines.append(f"Losses without image content: {_ladder(measured['untrained'])}; of the network {loss:.4f}")
    return lines
