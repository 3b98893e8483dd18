"""With how many labelled patients pretraining pays: Dice against their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from measure.common import markdown_table

from emim_nnunet.compare.arms import SCRATCH
from emim_nnunet.compare.efficiency import worth
from emim_nnunet.compare.protocol import FINETUNE
from emim_nnunet.compare.scores import interval
from emim_nnunet.compare.sentences import number_text
from emim_nnunet.storage.figures import save_figure
from real.data import PATIENTS
from real.part import Part
from real.plan import BEST_SCRATCH

CONTROLS = {
    "scratch, linear head": {"arm": SCRATCH} | asdict(BEST_SCRATCH[0]),
    "scratch, U-Net": {"arm": SCRATCH} | asdict(BEST_SCRATCH[1]),
}


def curve(rows: Sequence[dict[str, Any]], part: Part) -> list[dict[str, Any]]:
    """The arm of a part and scratch for every number of labelled patients, in the draws that all of them have.

    Args:
        rows: Trainings, see :func:`report.read_results`.
        part: One with a number of labelled patients, whose first arm and first tuning it is.

    Returns:
        A row per number: ``arm``, ``labelled``, ``draws``; ``dice``, of the arm and each of :data:`CONTROLS` the mean with the
        ends of its 95 % interval; ``minus``, the same of the difference of the arm from each control; ``worth``, how many
        labelled patients each control needs for its Dice, as words, in the draws that all numbers have.
    """
    name = part.arms[0]
    ways = {name: {"arm": name} | asdict(part.tunings[0])} | CONTROLS
    tests = PATIENTS[part.label_fold][1]
    here = [row for row in rows if row["tests"] == tests and row["evaluation"] == "finetune"]
    found = []
    for labelled in part.labelled:
        dice = {way: _end_dice(here, wanted | {"labelled": labelled}) for way, wanted in ways.items()}
        draws = sorted(set.intersection(*(set(of_way) for of_way in dice.values())))
        if len(draws) < 2:
            continue
        values = {way: np.array([of_way[draw] for draw in draws]) for way, of_way in dice.items()}
        means = {way: interval(of_way) for way, of_way in values.items()}
        minus = {control: interval(values[name] - values[control]) for control in CONTROLS}
        found.append({"arm": name, "labelled": labelled, "draws": len(draws), "dice": means, "minus": minus})
    for control in CONTROLS:
        words = _worth(here, ways[name], CONTROLS[control], [row["labelled"] for row in found])
        for row in found:
            row.setdefault("worth", {})[control] = words.get(row["labelled"], "")
    return found


def _worth(
    rows: Sequence[dict[str, Any]], arm: dict[str, Any], control: dict[str, Any], counts: Sequence[int]
) -> dict[int, str]:
    """Labelled patients of an arm -> how many of a control they are worth, with the 95 % interval."""
    dice = {
        (way["arm"], count): _end_dice(rows, way | {"labelled": count}) for way in (arm, control) for count in counts
    }
    draws = set.intersection(*map(set, dice.values())) if dice else set()
    scores = [
        {"arm": name, "labelled": count, "draw": draw, "case": case, "mean": value, "evaluation": FINETUNE}
        for (name, count), of_draw in dice.items()
        for draw in draws
        for case, value in enumerate(of_draw[draw])
    ]
    return {
        row["labelled"]: "{} ({} to {})".format(*(number_text(row[key], counts) for key in ("worth", "low", "high")))
        for row in worth(scores, counts)
    }


def _end_dice(rows: Sequence[dict[str, Any]], wanted: dict[str, Any]) -> dict[int, list[float]]:
    """Draw -> Dice of each test patient at the end of the training that is wanted."""
    return {row["draw"]: list(row["dice"].values())[-1] for row in rows if wanted.items() <= row.items()}


def curve_table(found: Sequence[dict[str, Any]]) -> str:
    """Rows of :func:`curve` as a Markdown table; nothing without any."""
    if not found:
        return ""
    lines = [
        [
            str(row["labelled"]),
            str(row["draws"]),
            *(f"{mean:.3f}" for mean, _, _ in row["dice"].values()),
            *("{:+.3f} ({:+.3f} to {:+.3f})".format(*row["minus"][name]) for name in CONTROLS),
            *(row["worth"][name] for name in CONTROLS),
        ]
        for row in found
    ]
    header = ["labelled", "draws", *found[0]["dice"], *(f"minus {name}" for name in CONTROLS)]
    return markdown_table([*header, *(f"worth, {name}" for name in CONTROLS)], lines)


def plot_curve(found: Sequence[dict[str, Any]], file: Path) -> None:
    """Draw Dice against the number of labelled patients and, because arms are paired, their differences with intervals."""
    figure = Figure(figsize=(9.2, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    labelled = np.array([row["labelled"] for row in found])
    colours = dict(zip(found[0]["dice"], ("tab:orange", "tab:blue", "0.4"), strict=True))
    for name, colour in colours.items():
        left.plot(labelled, [row["dice"][name][0] for row in found], marker="o", color=colour, label=name)
    for shift, name in zip((0.97, 1.03), CONTROLS, strict=True):
        mean, low, high = np.array([row["minus"][name] for row in found]).T
        ends = [mean - low, high - mean]
        right.errorbar(labelled * shift, mean, ends, fmt="o", color=colours[name], label=f"minus {name}", capsize=3)
    right.axhline(0, color="black", linewidth=0.8)
    left.set_title("lesion Dice of patients that nobody has seen", loc="left", fontsize=10)
    right.set_title(f"{found[0]['arm']} minus scratch, 95 % intervals", loc="left", fontsize=10)
    ticks = [f"{row['labelled']}\n{row['draws']} draws" for row in found]
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(labelled, ticks)
        axes.set_xlabel("labelled patients")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=9)
    save_figure(figure, file)
