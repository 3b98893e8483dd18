"""The report of the collapse experiment: a table and figures from the results of its jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
from arms import ARMS, PLATEAU_ARMS
from experiment import Budget
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from emim_nnunet.diagnostics import Thresholds, judge
from emim_nnunet.storage.figures import TITLE, save_figure
from emim_nnunet.storage.tables import markdown_table

DEEP = (2, 3)  # stages that the table shows; the JSON holds all
REFERENCE, HMP = "scratch", "HMP"
SHORT_RUNS = Thresholds(patience_steps=0)  # runs have some hundred steps: three evaluations in a row suffice
LEVEL_FLAGGED = ("warning", "error")


def summarise(results: Sequence[dict[str, Any]], budget: Budget) -> dict[str, Any]:
    """Summarise each arm: values of every seed, mean and 95 % t-interval over seeds, paired differences.

    Args:
        results: What :func:`experiment.run_job` returned for each job.
        budget: The budget that the jobs ran with.

    Returns:
        Name of the arm -> ``skill``, ``foreground_skill`` and ``std_ratio`` at the end, ``plateau_end`` (see
        :func:`plateau_end`), ``flagged`` (share of evaluations with a warning or an error), ``effective_rank``,
        ``participation_ratio``, ``untrained_rank`` and ``probe`` (lists over stages), ``constant_losses``, and ``dice`` by
        number of labelled phantoms, with the paired differences to scratch and to HMP.
    """
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        by_arm.setdefault(result["arm"], []).append(result)
    for runs in by_arm.values():
        runs.sort(key=lambda run: run["seed"])
    return {name: _arm(runs, by_arm, budget) for name, runs in by_arm.items()}


def _arm(runs: list[dict[str, Any]], by_arm: dict[str, list[dict[str, Any]]], budget: Budget) -> dict[str, Any]:
    summary: dict[str, Any] = {"seeds": [run["seed"] for run in runs]}
    if "history" in runs[0]:
        last = [run["history"][-1] for run in runs]
        for key in ("skill", "foreground_skill", "std_ratio"):
            summary[key] = interval([m["reconstruction"]["all"][key] for m in last])
        summary["plateau_end"] = [plateau_end(run["history"]) for run in runs]
        summary["flagged"] = [float(np.mean([f in LEVEL_FLAGGED for f in levels(run["history"])[1:]])) for run in runs]
        summary["constant_losses"] = {
            kind: float(np.mean([run["constant_losses"][kind] for run in runs])) for kind in runs[0]["constant_losses"]
        }
        for key in ("effective_rank", "participation_ratio"):
            summary[key] = [interval([m["stages"][s][key] for m in last]) for s in range(len(last[0]["stages"]))]
        summary["untrained_rank"] = [
            interval([run["history"][0]["stages"][s]["effective_rank"] for run in runs])
            for s in range(len(last[0]["stages"]))
        ]
    if "probe" in runs[0]:
        summary["probe"] = [interval([run["probe"][s] for run in runs]) for s in range(len(runs[0]["probe"]))]
        summary["dice"] = {str(n): _dice(runs, by_arm, str(n)) for n in budget.labelled}
    return summary


def _dice(runs: list[dict[str, Any]], by_arm: dict[str, list[dict[str, Any]]], labelled: str) -> dict[str, Any]:
    scores = {run["seed"]: run["finetuned"][labelled]["mean"] for run in runs}
    result = {"dice": interval(list(scores.values()))}
    for name in (REFERENCE, HMP):
        others = {run["seed"]: run["finetuned"][labelled]["mean"] for run in by_arm.get(name, [])}
        if others and runs[0]["arm"] != name:
            result[f"minus_{name}"] = interval([scores[seed] - others[seed] for seed in scores if seed in others])
    return result


def interval(values: Iterable[float]) -> dict[str, Any]:
    """Mean and 95 % interval of Student's t over seeds.

    Args:
        values: One value per seed.

    Returns:
        ``mean``, ``low``, ``high`` (both None for a single value) and ``values``.
    """
    array = np.asarray(list(values), dtype=float)
    mean = float(array.mean())
    half = float(stats.t.ppf(0.975, len(array) - 1) * stats.sem(array)) if len(array) > 1 else float("nan")
    low, high = (None, None) if isnan(half) else (mean - half, mean + half)
    return {"mean": mean, "low": low, "high": high, "values": array.tolist()}


def plateau_end(history: Sequence[dict[str, Any]]) -> int | None:
    """First step from which on the foreground skill stays at or above the monitor's threshold; None = not reached."""
    end = None
    for measurement in reversed(history):
        if measurement["reconstruction"]["all"]["foreground_skill"] < Thresholds().no_skill:
            break
        end = measurement["step"]
    return end


def levels(history: Sequence[dict[str, Any]]) -> list[str]:
    """The level of the verdict at each evaluation; rules about several evaluations begin after a tenth of the run."""
    warmup = (len(history) - 1) // 10
    return [judge(history[: i + 1], warmup_epochs=warmup, thresholds=SHORT_RUNS).level for i in range(len(history))]


# ------------------------------------------------------------------------------------------------------------ table


def write_table(report: dict[str, Any], path: Path) -> str:
    """Make a Markdown table and write it to a file.

    Args:
        report: The report that ``run.py`` makes.
        path: The file to write.

    Returns:
        The text of the table.
    """
    labelled = [str(n) for n in report["budget"]["labelled"]]
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "skill": lambda a: _interval(a.get("skill")),
        "plateau ends at step": lambda a: _plateaus(a.get("plateau_end")),
    }
    for stage in DEEP:
        columns[f"effective rank, stage {stage}"] = lambda a, s=stage: _interval(_at(a.get("effective_rank"), s), 1)
        columns[f"PR, stage {stage}"] = lambda a, s=stage: _interval(_at(a.get("participation_ratio"), s), 1)
    for stage in (1, 2, 3):
        columns[f"probe R2, stage {stage}"] = lambda a, s=stage: _interval(_at(a.get("probe"), s))
    for n in labelled:
        columns[f"Dice, {n} labelled"] = lambda a, n=n: _interval(a.get("dice", {}).get(n, {}).get("dice"), 3)
        columns[f"minus scratch, {n}"] = lambda a, n=n: _signed(a.get("dice", {}).get(n, {}).get("minus_scratch"))
        columns[f"minus HMP, {n}"] = lambda a, n=n: _signed(a.get("dice", {}).get(n, {}).get("minus_HMP"))
    lines = [
        f"Command: `{report['command']}`. Seeds {report['seeds']}, {report['budget']['unlabelled']} unlabelled and "
        f"{report['budget']['test']} test phantoms each; {report['budget']['ssl_steps']} steps of pretraining, "
        f"{report['budget']['finetune_steps']} of fine-tuning. Mean over seeds [95 % interval]; differences are "
        f"paired by seed; **bold**: the interval excludes 0.",
        "",
        *markdown_table(
            ["arm", *columns],
            [[name, *(cell(arm) for cell in columns.values())] for name, arm in report["arms"].items()],
        ),
    ]
    text = "\n".join(lines) + "\n"
    path.write_text(text)
    return text


def _at(values: Sequence[Any] | None, index: int) -> Any:
    return None if values is None else values[index]


def _interval(value: dict[str, Any] | None, digits: int = 2) -> str:
    if value is None:
        return ""
    if isnan(value["mean"]):
        return "no rows"
    if value["low"] is None:
        return f"{value['mean']:.{digits}f}"
    return f"{value['mean']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def _signed(value: dict[str, Any] | None) -> str:
    if value is None:
        return ""
    if value["low"] is None:
        return f"{value['mean']:+.3f}"
    text = f"{value['mean']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"
    return f"**{text}**" if value["low"] > 0 or value["high"] < 0 else text


def _plateaus(values: Sequence[int | None] | None) -> str:
    return "" if values is None else ", ".join("never" if v is None else str(v) for v in values)


# ------------------------------------------------------------------------------------------------------------ figures


def write_figures(results: Sequence[dict[str, Any]], curves_path: Path, dice_path: Path) -> None:
    """Draw skill and rank over steps, and the fine-tuned Dice of every seed.

    Args:
        results: What :func:`experiment.run_job` returned for each job.
        curves_path: The PNG file for skill and rank.
        dice_path: The PNG file for Dice.
    """
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        by_arm.setdefault(result["arm"], []).append(result)
    curves = {name: runs for name, runs in by_arm.items() if "history" in runs[0]}
    if curves:
        _draw_curves(curves, curves_path)
    tuned = {name: runs for name, runs in by_arm.items() if "finetuned" in runs[0]}
    if tuned:
        _draw_dice(tuned, dice_path)


def _draw_curves(by_arm: dict[str, list[dict[str, Any]]], path: Path) -> None:
    groups = {
        "Masks": [n for n in by_arm if n in ARMS and "PBT" not in n],
        "PBT": [n for n in by_arm if n in ARMS and ("PBT" in n or n == HMP)],
        "Large cells": [n for n in by_arm if n in PLATEAU_ARMS],
    }
    groups = {title: names for title, names in groups.items() if names}
    figure = Figure(figsize=(7 * len(groups), 9), layout="constrained")
    axes = figure.subplots(2, len(groups), squeeze=False)
    for column, (title, names) in zip(axes.T, groups.items(), strict=True):
        for number, name in enumerate(names):
            style = {"color": f"C{number % 10}", "ls": "-" if number < 10 else "--"}
            _curve(column[0], by_arm[name], lambda m: m["reconstruction"]["all"]["foreground_skill"], name, style)
            if by_arm[name][0]["history"][0]["stages"][2]["count"]:  # large cells: none lies in the body by half
                _curve(column[1], by_arm[name], lambda m: m["stages"][2]["effective_rank"], name, style)
        column[0].axhline(Thresholds().no_skill, color="crimson", ls=":", lw=1.2)
        column[0].set_ylim(bottom=-0.1)
        column[0].set_title(f"{title}: foreground skill (dotted: the monitor's threshold)", **TITLE)
        column[1].set_title(f"{title}: effective rank of stage 2 (32 channels)", **TITLE)
    for ax in axes.flat:
        ax.set_xlabel("step")
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
        if ax.lines:
            ax.legend(fontsize=8, framealpha=0.6, edgecolor="none")
        else:
            ax.set_axis_off()
    save_figure(figure, path, dpi=65)


def _curve(ax: Axes, runs: list[dict[str, Any]], value: Callable, name: str, style: dict[str, Any]) -> None:
    """Draw the mean of a value over seeds as a line, and its range over seeds as a band."""
    steps = [m["step"] for m in runs[0]["history"]]
    values = np.array([[value(m) for m in run["history"]] for run in runs])
    ax.plot(steps, values.mean(0), label=name, lw=1.8, **style)
    ax.fill_between(steps, values.min(0), values.max(0), color=style["color"], alpha=0.12, lw=0)


def _draw_dice(by_arm: dict[str, list[dict[str, Any]]], path: Path) -> None:
    budgets = list(next(iter(by_arm.values()))[0]["finetuned"])
    figure = Figure(figsize=(7 * len(budgets), 1.5 + 0.42 * len(by_arm)), layout="constrained")
    axes = figure.subplots(1, len(budgets), squeeze=False, sharey=True)[0]
    scratch = {run["seed"]: run["finetuned"] for run in by_arm.get(REFERENCE, [])}
    for ax, labelled in zip(axes, budgets, strict=True):
        for row, runs in enumerate(by_arm.values()):
            dice = [run["finetuned"][labelled]["mean"] - _mean(scratch, run["seed"], labelled) for run in runs]
            ax.plot(dice, [row] * len(dice), ".", color="0.55", ms=7)
            summary = interval(dice)
            if summary["low"] is not None:
                ax.plot([summary["low"], summary["high"]], [row, row], color="C0", lw=2)
            ax.plot(summary["mean"], row, "D", color="C0", ms=6)
        ax.set_yticks(range(len(by_arm)), list(by_arm))
        if scratch:
            ax.axvline(0, color="crimson", ls=":", lw=1.2)
        what = "difference to scratch, paired by seed" if scratch else "of each seed; scratch was not run"
        ax.set_title(f"Dice, {labelled} labelled: {what}", **TITLE)
        ax.grid(alpha=0.25, axis="x")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    save_figure(figure, path)


def _mean(scratch: dict[int, Any], seed: int, labelled: str) -> float:
    return scratch[seed][labelled]["mean"] if seed in scratch else 0.0
