"""The report of a comparison: results as JSON for programs, tables and pictures for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emim_nnunet.compare.plots import plot_scores, plot_spectra
from emim_nnunet.compare.protocol import TITLES
from emim_nnunet.compare.scores import summarise
from emim_nnunet.storage.files import plain_json, write_text
from emim_nnunet.storage.tables import markdown_table
from emim_nnunet.storage.versions import versions

MIN_STEPS = 1000
RESULTS, TABLE, PICTURE, SPECTRA = "results.json", "results.md", "scores.png", "spectra.png"


def write_results(results: dict[str, Any], output: Path, json_path: Path | None) -> Path:
    """Write ``results.json``, ``results.md``, ``scores.png`` and ``spectra.png``.

    Args:
        results: The results of the comparison.
        output: The folder to write to.
        json_path: A second JSON file to write, with the Markdown beside it; None = none.

    Returns:
        The path of ``results.md``.
    """
    results = results | {"summary": summarise(results["scores"]), "versions": versions()}
    text = json.dumps(plain_json(results), indent=1, allow_nan=False)
    page = markdown(results)
    for file in filter(None, (output / RESULTS, json_path)):
        write_text(file, text)
        write_text(file.with_suffix(".md"), page)
    if results["scores"]:
        plot_scores(results, output / PICTURE)
    if results["spectra"]:
        plot_spectra(results["spectra"], output / SPECTRA)
    return output / TABLE


def markdown(results: dict[str, Any]) -> str:
    """Make the text of ``results.md``; every table of scores states its number of cases.

    Args:
        results: The results, with ``summary``.
    """
    cases = results["cases"]
    lines = [
        f"# Comparison on {results['dataset']}, {results['configuration']}",
        "",
        f"Pretraining on {cases['unlabelled'] + cases['labelled_pool']} cases ({cases['unlabelled']} without label, "
        f"{cases['labelled_pool']} whose labels it does not see), test on others, {cases['test']} in all, seeds "
        f"{', '.join(map(str, results['seeds']))}. Each seed chooses its test cases and its labelled cases. Intervals: 95 %, "
        f"bootstrap over seeds and cases; they are wide because {cases['test']} cases are few. A difference whose interval "
        f"contains 0 is none.",
        "",
        *_budget_lines(results["budget"]),
    ]
    for evaluation in dict.fromkeys(row["evaluation"] for row in results["summary"]):
        for labelled in results["labelled"]:
            rows = [r for r in results["summary"] if (r["evaluation"], r["labelled"]) == (evaluation, labelled)]
            title = f"{TITLES[evaluation]}, {labelled} labelled cases"
            lines += ["", f"## {title}", "", *_score_table(rows)]
    if results["compute"]:
        lines += ["", "## Compute of pretraining", "", *_compute_table(results["compute"])]
    if results["spectra"]:
        lines += ["", "## Effective rank of the stages", "", *_rank_table(results["spectra"])]
    return "\n".join(lines) + "\n"


def _budget_lines(budget: dict[str, Any]) -> list[str]:
    steps = budget["finetune_num_epochs"] * budget["finetune_num_iterations_per_epoch"]
    rates = (
        f"{budget['finetune_initial_lr']:g} from a pretrained encoder, {budget['finetune_scratch_lr']:g} from scratch"
    )
    lines = [f"Fine-tuning: {steps} steps, peak rate {rates}."]
    if steps < MIN_STEPS:
        lines += [
            "",
            f"**Fewer than {MIN_STEPS} steps of fine-tuning**: nnU-Net's SGD fails in some runs as short as that, whatever the "
            f"encoder. Raise `finetune_num_epochs` before you read anything into differences.",
        ]
    return lines


def _score_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    for row in rows:
        cells = [row["arm"], f"{row['mean']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}"]
        if "difference" in row:
            span = f"{row['difference_low']:+.3f} to {row['difference_high']:+.3f}"
            cells += [f"{row['difference']:+.3f}", span, f"{row['better_in']} of {row['num_cases']}"]
        else:
            cells += ["", "", ""]
        lines.append([*cells, f"{row['num_cases']}, {row['num_seeds']}"])
    better = "better than scratch in"
    return markdown_table(["arm", "Dice", "95 %", "minus scratch", "95 %", better, "test cases, seeds"], lines)


def _compute_table(compute: dict[str, dict[str, Any]]) -> list[str]:
    rows = [
        [arm, cost["method"], f"{cost['gflops_per_step']:.1f}", cost["steps"], f"{1e6 * cost['exaflops']:.3g}"]
        for arm, cost in compute.items()
    ]
    return markdown_table(["arm", "method", "GFLOPs a step", "steps", "1e12 FLOPs in all"], rows)


def _rank_table(spectra: Sequence[dict[str, Any]]) -> list[str]:
    arms, stages = (list(dict.fromkeys(row[key] for row in spectra)) for key in ("arm", "stage"))

    def cell(arm: str, stage: int, key: str) -> str:
        values = [row[key] for row in spectra if (row["arm"], row["stage"]) == (arm, stage)]
        return f"{np.nanmean(np.array(values, dtype=float)):.1f}"

    rows = [["untrained", *(cell(arms[0], s, "untrained_effective_rank") for s in stages), ""]]
    for arm in arms:
        verdicts = [row["verdict"] for row in spectra if (row["arm"], row["stage"]) == (arm, stages[0])]
        rows.append([arm, *(cell(arm, stage, "effective_rank") for stage in stages), ", ".join(verdicts)])
    return markdown_table(["arm", *(f"stage {stage}" for stage in stages), "verdicts"], rows)
