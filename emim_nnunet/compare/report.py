"""Scores of a comparison as numbers, tables and pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure

from emim_nnunet.compare.arms import SCRATCH
from emim_nnunet.diagnosis.collapse_report import REPORT_NAME
from emim_nnunet.storage.figures import TITLE, save_figure
from emim_nnunet.storage.files import plain_json, write_text
from emim_nnunet.storage.versions import versions

RESAMPLES, LEVEL = 4000, 0.95
RESULTS, TABLE, PICTURE, SPECTRA = "results.json", "results.md", "scores.png", "spectra.png"
TITLES = {"finetune": "Fine-tuned Dice", "linear": "Dice of the linear probe"}


def read_scores(files: Sequence[tuple[dict[str, Any], Path]]) -> list[dict[str, Any]]:
    """Dice per test case from nnU-Net's summaries.

    Args:
        files: What each summary is of, and where it is.

    Returns:
        A row per summary and case: what it is of, ``case``, ``dice`` per label or region, ``mean`` over them (undefined ones,
        where neither prediction nor reference has the label, left out).
    """
    rows = []
    for about, file in files:
        for entry in json.loads(file.read_text())["metric_per_case"]:
            dice = {label: metrics["Dice"] for label, metrics in entry["metrics"].items()}
            defined = [value for value in dice.values() if value == value]
            case = Path(entry["reference_file"]).name.split(".")[0]
            rows.append(
                about | {"case": case, "dice": dice, "mean": float(np.mean(defined)) if defined else float("nan")}
            )
    return rows


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Mean and its 95 % bootstrap interval, seeds and cases drawn independently with replacement.

    Scores of one case with several seeds, and of several cases with one seed, are not independent of each other; drawing both
    keeps that.

    Args:
        values: (seeds, cases) float; NaN is left out.
        seed: Of the bootstrap.

    Returns:
        Mean, lower and upper end.
    """
    rng = np.random.default_rng(seed)
    seeds, cases = values.shape
    means = np.empty(RESAMPLES)
    for number in range(RESAMPLES):
        drawn = values[rng.integers(seeds, size=seeds)][:, rng.integers(cases, size=cases)]
        means[number] = np.nanmean(drawn) if np.isfinite(drawn).any() else np.nan
    low, high = np.nanquantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(np.nanmean(values)), float(low), float(high)


def summarise(scores: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and interval of each arm, and its paired difference from scratch.

    Args:
        scores: Rows of :func:`read_scores`.

    Returns:
        A row per evaluation, number of labelled cases and arm: ``mean``, ``low``, ``high``, ``num_cases``, ``num_seeds`` and,
        where scratch was run and the arm is another one, ``difference``, ``difference_low``, ``difference_high`` and
        ``better_in`` (cases, averaged over seeds, in which the arm is better).
    """
    groups = dict.fromkeys((row["evaluation"], row["labelled"], row["arm"]) for row in scores)
    tables = {key: _table(scores, *key) for key in groups}
    rows = []
    for (evaluation, labelled, arm), values in tables.items():
        mean, low, high = interval(values)
        row = {"evaluation": evaluation, "labelled": labelled, "arm": arm, "mean": mean, "low": low, "high": high}
        row |= {"num_seeds": values.shape[0], "num_cases": values.shape[1]}
        reference = tables.get((evaluation, labelled, SCRATCH))
        if reference is not None and arm != SCRATCH:
            difference = values - reference
            mean, low, high = interval(difference)
            better = int((np.nanmean(difference, 0) > 0).sum())
            row |= {"difference": mean, "difference_low": low, "difference_high": high, "better_in": better}
        rows.append(row)
    return rows


def _table(scores: Sequence[dict[str, Any]], evaluation: str, labelled: int, arm: str) -> np.ndarray:
    """(seeds, cases) mean Dice."""
    chosen = [r for r in scores if (r["evaluation"], r["labelled"], r["arm"]) == (evaluation, labelled, arm)]
    seeds, cases = (sorted({row[key] for row in chosen}) for key in ("seed", "case"))
    table = np.full((len(seeds), len(cases)), np.nan)
    for row in chosen:
        table[seeds.index(row["seed"]), cases.index(row["case"])] = row["mean"]
    return table


def collect_spectra(folders: Sequence[tuple[str, int, Path]]) -> list[dict[str, Any]]:
    """Spectra of the stages at the end of each SSL stage, and of the untrained network.

    Args:
        folders: Arm, seed and output folder of each SSL stage.

    Returns:
        A row per arm, seed and stage: ``share`` of the variance per direction (squared singular values of the centred features
        of cells over their sum), ``effective_rank``, ``untrained_share``, ``untrained_effective_rank``, ``verdict``.
    """
    rows = []
    for arm, seed, folder in folders:
        content = json.loads((folder / REPORT_NAME).read_text())
        for number, (now, before) in enumerate(
            zip(content["now"]["stages"], content["untrained"]["stages"], strict=True)
        ):
            rows.append(
                {
                    "arm": arm,
                    "seed": seed,
                    "stage": number,
                    "share": now["spectrum"],
                    "effective_rank": now["effective_rank"],
                    "untrained_share": before["spectrum"],
                    "untrained_effective_rank": before["effective_rank"],
                    "verdict": content["verdict"],
                }
            )
    return rows


def write_results(results: dict[str, Any], output: Path, json_path: Path | None) -> Path:
    """Write ``results.json``, ``results.md``, ``scores.png`` and ``spectra.png``.

    Args:
        results: Of the comparison.
        output: Folder.
        json_path: Another place for the JSON; the Markdown is written beside it too.

    Returns:
        ``results.md``.
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
    """The tables; the number of cases stands in every one.

    Args:
        results: With ``summary``.
    """
    cases = results["cases"]
    lines = [
        f"# Comparison on {results['dataset']}, {results['configuration']}",
        "",
        f"Pretraining on {cases['unlabelled'] + cases['labelled_pool']} cases ({cases['unlabelled']} without label, "
        f"{cases['labelled_pool']} whose labels it does not see), test on {cases['test']} others, seeds "
        f"{', '.join(map(str, results['seeds']))}. Intervals: 95 %, bootstrap over seeds and cases; they are wide because "
        f"{cases['test']} cases are few. A difference whose interval contains 0 is none.",
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


def _score_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| arm | Dice | 95 % | minus scratch | 95 % | better than scratch in | test cases x seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["arm"], f"{row['mean']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}"]
        if "difference" in row:
            span = f"{row['difference_low']:+.3f} to {row['difference_high']:+.3f}"
            cells += [f"{row['difference']:+.3f}", span, f"{row['better_in']} of {row['num_cases']}"]
        else:
            cells += ["", "", ""]
        lines.append("| " + " | ".join([*cells, f"{row['num_cases']} x {row['num_seeds']}"]) + " |")
    return lines


def _compute_table(compute: dict[str, dict[str, Any]]) -> list[str]:
    lines = ["| arm | method | GFLOPs a step | steps | 1e12 FLOPs in all |", "|---|---|---|---|---|"]
    for arm, cost in compute.items():
        total = 1e6 * cost["exaflops"]
        lines.append(f"| {arm} | {cost['method']} | {cost['gflops_per_step']:.1f} | {cost['steps']} | {total:.3g} |")
    return lines


def _rank_table(spectra: Sequence[dict[str, Any]]) -> list[str]:
    arms, stages = (list(dict.fromkeys(row[key] for row in spectra)) for key in ("arm", "stage"))

    def cell(arm: str, stage: int, key: str) -> str:
        values = [row[key] for row in spectra if (row["arm"], row["stage"]) == (arm, stage)]
        return f"{np.nanmean(np.array(values, dtype=float)):.1f}"

    lines = [
        "| arm | " + " | ".join(f"stage {stage}" for stage in stages) + " | verdicts |",
        "|---" * (len(stages) + 2) + "|",
        "| untrained | " + " | ".join(cell(arms[0], s, "untrained_effective_rank") for s in stages) + " | |",
    ]
    for arm in arms:
        verdicts = [row["verdict"] for row in spectra if (row["arm"], row["stage"]) == (arm, stages[0])]
        ranks = " | ".join(cell(arm, stage, "effective_rank") for stage in stages)
        lines.append(f"| {arm} | {ranks} | {', '.join(verdicts)} |")
    return lines


@style.context("default")
def plot_scores(results: dict[str, Any], path: Path) -> None:
    """A panel per evaluation and number of labelled cases: every case (mean over seeds), mean and interval of each arm.

    Args:
        results: With ``scores`` and ``summary``.
        path: PNG to write.
    """
    panels = list(dict.fromkeys((row["evaluation"], row["labelled"]) for row in results["summary"]))
    arms = list(dict.fromkeys(row["arm"] for row in results["summary"]))
    figure = Figure(figsize=(1.4 + (0.9 + 0.75 * len(arms)) * len(panels), 4.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for ax, (evaluation, labelled) in zip(axes, panels, strict=True):
        for place, arm in enumerate(arms):
            row = next(
                r
                for r in results["summary"]
                if (r["evaluation"], r["labelled"], r["arm"]) == (evaluation, labelled, arm)
            )
            points = np.nanmean(_table(results["scores"], evaluation, labelled, arm), 0)
            shift = np.linspace(-0.18, 0.18, len(points))
            ax.plot(place + shift, points, ".", color=f"C{place}", alpha=0.45, ms=5)
            errors = [[row["mean"] - row["low"]], [row["high"] - row["mean"]]]
            ax.errorbar(place, row["mean"], errors, fmt="D", color="black", ms=5, capsize=4, lw=1.3)
        ax.set_xticks(range(len(arms)), arms, rotation=35, ha="right", fontsize=9)
        ax.set_title(f"{TITLES[evaluation]}, {labelled} labelled", **TITLE)
        ax.grid(axis="y", alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("Dice")
    figure.suptitle(
        f"{results['cases']['test']} test cases (points, mean over {len(results['seeds'])} seeds), mean and 95 % interval",
        fontsize=10,
    )
    save_figure(figure, path)


@style.context("default")
def plot_spectra(spectra: Sequence[dict[str, Any]], path: Path) -> None:
    """Singular values of the features of every stage, relative to the largest one, one line per arm and seed.

    Args:
        spectra: Rows of :func:`collect_spectra`.
        path: PNG to write.
    """
    arms, stages = (list(dict.fromkeys(row[key] for row in spectra)) for key in ("arm", "stage"))
    figure = Figure(figsize=(4.3 * len(stages), 3.9), layout="constrained")
    axes = figure.subplots(1, len(stages), squeeze=False)[0]
    for ax, stage in zip(axes, stages, strict=True):
        rows = [row for row in spectra if row["stage"] == stage]
        first = next(row for row in rows if row["arm"] == arms[0])
        _draw(ax, first["untrained_share"], color="0.5", ls="--", label="untrained")
        for number, arm in enumerate(arms):
            for copy, row in enumerate(r for r in rows if r["arm"] == arm):
                rank = np.mean([r["effective_rank"] for r in rows if r["arm"] == arm])
                label = f"{arm}: effective rank {rank:.1f}" if copy == 0 else None
                _draw(ax, row["share"], color=f"C{number}", label=label)
        ax.set_yscale("log")
        ax.set_ylim(1e-3, 1.3)
        ax.set_title(f"Stage {stage}", **TITLE)
        ax.set_xlabel("direction")
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(fontsize=7.5, framealpha=0.6, edgecolor="none", loc="lower left")
    axes[0].set_ylabel("singular value / the largest")
    save_figure(figure, path)


def _draw(ax: Any, share: Sequence[float], **style: Any) -> None:
    values = np.sqrt(np.maximum(np.array(share, dtype=float), 0.0))
    ax.plot(np.arange(1, len(values) + 1), values / values.max(), lw=1.3, **style)
