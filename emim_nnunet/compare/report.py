"""The report of a comparison: results as JSON for programs, tables and pictures for people."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emim_nnunet.compare.efficiency import worth
from emim_nnunet.compare.plots import plot_efficiency, plot_scores, plot_spectra
from emim_nnunet.compare.power import power_rows
from emim_nnunet.compare.protocol import TITLES
from emim_nnunet.compare.scores import summarise
from emim_nnunet.compare.sentences import conclusions, number_text, stopping
from emim_nnunet.compare.sources import remark
from emim_nnunet.compare.speed import TARGET, speed_rows
from emim_nnunet.errors import counted
from emim_nnunet.storage.figures import rounded
from emim_nnunet.storage.files import plain_json, write_text
from emim_nnunet.storage.tables import markdown_table
from emim_nnunet.storage.versions import versions

MIN_STEPS = 1000
RESULTS, TABLE = "results.json", "results.md"
PICTURE, SPECTRA, EFFICIENCY = "scores.png", "spectra.png", "efficiency.png"


def write_results(results: dict[str, Any], output: Path, json_path: Path | None) -> Path:
    """Write ``results.json``, ``results.md``, ``scores.png``, ``efficiency.png`` and ``spectra.png``.

    Args:
        results: The results of the comparison.
        output: The folder to write to.
        json_path: A second JSON file to write, with the Markdown beside it; None = none.

    Returns:
        The path of ``results.md``.
    """
    scores = results["scores"]
    results = results | {
        "summary": summarise(scores),
        "worth": worth(scores, results["labelled"]),
        "power": power_rows(scores),
        "speed": speed_rows(results["curves"]),
        "versions": versions(),
    }
    text = json.dumps(plain_json(results), indent=1, allow_nan=False)
    page = markdown(results)
    for file in filter(None, (output / RESULTS, json_path)):
        write_text(file, text)
        write_text(file.with_suffix(".md"), page)
    if results["scores"]:
        plot_scores(results, output / PICTURE)
        plot_efficiency(results, output / EFFICIENCY)
    if results["spectra"]:
        plot_spectra(results["spectra"], output / SPECTRA)
    return output / TABLE


def markdown(results: dict[str, Any]) -> str:
    """Make the text of ``results.md``; every table of scores states its number of cases.

    Args:
        results: The results, with ``summary``.
    """
    lines = [*_head(results), "", *_budget_lines(results["budget"], {row["evaluation"] for row in results["summary"]})]
    for evaluation in dict.fromkeys(row["evaluation"] for row in results["summary"]):
        for labelled in results["labelled"]:
            rows = [r for r in results["summary"] if (r["evaluation"], r["labelled"]) == (evaluation, labelled)]
            title = f"{TITLES[evaluation]}, {labelled} labelled cases"
            lines += ["", f"## {title}", "", *_score_table(rows)]
    if results["worth"]:
        lines += ["", "## Worth in labelled cases from scratch", "", *_worth_table(results)]
    if results["power"]:
        lines += ["", "## What this run could have seen", "", *_power_table(results)]
    if results["speed"]:
        lines += ["", "## Speed of the fine-tuning", "", *_speed_table(results["speed"])]
    if results["compute"]:
        lines += ["", "## Compute of pretraining", "", *_compute_table(results["compute"])]
    if results["spectra"]:
        lines += ["", "## Effective rank of the stages", "", *_rank_table(results["spectra"])]
    said = conclusions(results)
    if results["until"]:
        said.append(stopping(results["until"], results["num_draws"]))
    if said:
        lines += ["", "## In short", "", *(f"- {sentence}" for sentence in said)]
    return "\n".join(lines) + "\n"


def _head(results: dict[str, Any]) -> list[str]:
    cases, seeds, draws = results["cases"], results["seeds"], results["draws"]
    chosen = "Each seed chooses its test cases and its labelled cases."
    if len(draws) > len(seeds):
        chosen = (
            f"{len(draws)} draws of labelled cases use the encoders of these seeds in turn; draws of one seed share its test "
            f"cases. The intervals are about other labelled cases and other test cases, not about other encoders."
        )
    lines = [
        f"# Comparison on {results['dataset']}, {results['configuration']}",
        "",
        f"Pretraining on {cases['unlabelled'] + cases['labelled_pool']} cases ({cases['unlabelled']} without label, "
        f"{cases['labelled_pool']} whose labels it does not see), test on others, {cases['test']} in all, seeds "
        f"{', '.join(map(str, seeds))}. {chosen} Intervals: 95 %, "
        f"bootstrap over draws and cases; they are wide where cases are few ({cases['test']} for the test). A difference whose "
        f"interval contains 0 is none.",
    ]
    for labelled, different in results["labelled_sets"].items():
        if different < len(draws):
            few = counted(labelled, "labelled case")
            lines += ["", f"With {few} only {different} of {len(draws)} draws are different sets."]
    for arm, about in results["files"].items():
        lines += ["", remark(arm, about, results["dataset"], results["test_cases"])]
    return lines


def _budget_lines(budget: dict[str, Any], evaluations: Collection[str]) -> list[str]:
    steps = budget["finetune_num_epochs"] * budget["finetune_num_iterations_per_epoch"]
    rates = "{:g} from a pretrained encoder, {:g} from scratch"
    paragraphs = []
    if "linear_first" in evaluations:
        peak = rates.format(budget["linear_first_lr"], budget["linear_first_scratch_lr"])
        paragraphs.append(f"Linear head first: {steps} steps with AdamW, peak rate {peak}.")
    if "finetune" in evaluations:
        peak = rates.format(budget["finetune_initial_lr"], budget["finetune_scratch_lr"])
        paragraphs.append(f"Fine-tuning: {steps} steps, peak rate {peak}.")
        if steps < MIN_STEPS:
            paragraphs.append(
                f"**Fewer than {MIN_STEPS} steps of fine-tuning**: nnU-Net's SGD fails in some runs as short as that, whatever "
                f"the encoder. Raise `finetune_num_epochs` before you read anything into differences."
            )
    return [line for paragraph in paragraphs for line in (paragraph, "")][:-1]


def _score_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    for row in rows:
        cells = [row["arm"], f"{row['mean']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}"]
        if "difference" in row:
            span = f"{row['difference_low']:+.3f} to {row['difference_high']:+.3f}"
            cells += [f"{row['difference']:+.3f}", span, f"{row['better_in']} of {row['num_cases']}"]
        else:
            cells += ["", "", ""]
        lines.append([*cells, f"{row['num_cases']}, {row['num_draws']}"])
    better = "better than scratch in"
    return markdown_table(["arm", "Dice", "95 %", "minus scratch", "95 %", better, "test cases, draws"], lines)


def _worth_table(results: dict[str, Any]) -> list[str]:
    counts = results["labelled"]
    rows = []
    for row in results["worth"]:
        number, low, high = (number_text(row[key], counts) for key in ("worth", "low", "high"))
        rows.append([row["arm"], row["labelled"], number, f"{low} to {high}"])
    return markdown_table(["arm", "labelled cases", "worth from scratch", "95 %"], rows)


def _power_table(results: dict[str, Any]) -> list[str]:
    rows = []
    for row in results["power"]:
        by_seed = ", ".join(f"{value:+.3f}" for value in row["by_seed"].values())
        cells = [row["arm"], row["labelled"], row["draws"], rounded(row["sd"]), rounded(row["detectable"]), by_seed]
        rows.append([TITLES[row["evaluation"]], *cells])
    header = ["", "arm", "labelled cases", "draws", "sd of the paired difference", "detectable", "difference by seed"]
    note = "Detectable: found in 80 % of such runs by a paired two-sided t-test over draws at 5 %."
    return [*markdown_table(header, rows), "", note]


def _speed_table(speed: Sequence[dict[str, Any]]) -> list[str]:
    rows = []
    for row in speed:
        share = row.get("share", float("nan"))
        reached = f"{row['reached']} of {row['draws']}" if "reached" in row else ""
        dice = [rounded(row[key]) for key in ("quarter", "half", "end")]
        rows.append([row["labelled"], row["arm"], *dice, f"{share:.0%}" if np.isfinite(share) else "n/a", reached])
    target = f"{TARGET:.0%} of scratch's end after"
    header = ["labelled cases", "arm", "at 1/4", "at 1/2", "at the end", target, "reached in"]
    note = (
        "nnU-Net's moving average of the pseudo Dice (on patches of the test cases) along the training, mean over draws; the "
        "share of the epochs is that of the median draw, n/a where most never get there. An average over some ten epochs lags "
        "behind."
    )
    return [*markdown_table(header, rows), "", note]


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
