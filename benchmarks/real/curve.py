"""With how many labelled patients pretraining pays: Dice against their number, in a fold of the second hypothesis."""

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
from real.data import COHORT
from real.plan import BEST_SCRATCH, PARTS, PRIMARY, PRIMARY_ARM

ARMS = {
    PRIMARY_ARM: {"arm": PRIMARY_ARM} | asdict(PRIMARY),
    "scratch, linear head": {"arm": SCRATCH} | asdict(BEST_SCRATCH[0]),
    "scratch, U-Net": {"arm": SCRATCH} | asdict(BEST_SCRATCH[1]),
}


def curve(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The arms for every number of labelled patients, in the draws that all of them have.

    Args:
        rows: Trainings, see :func:`report.read_results`.

    Returns:
        A row per number: ``labelled``, ``draws``; ``arms``, for each of :data:`ARMS` the mean Dice with the ends of its 95 %
        interval; ``minus``, the same of the difference of :data:`~plan.PRIMARY_ARM` from each other one; ``worth``, how many
        labelled patients each other one needs for its Dice, as words, in the draws that all numbers have.
    """
    here = [row for row in rows if row["tests"] == f"all sites, {COHORT[0]}" and row["evaluation"] == "finetune"]
    found = []
    for labelled in PARTS["curve"].labelled:
        dice = {name: _end_dice(here, wanted | {"labelled": labelled}) for name, wanted in ARMS.items()}
        draws = sorted(set.intersection(*(set(of_arm) for of_arm in dice.values())))
        if len(draws) < 2:
            continue
        values = {name: np.array([of_arm[draw] for draw in draws]) for name, of_arm in dice.items()}
        arms = {name: interval(of_arm) for name, of_arm in values.items()}
        minus = {name: interval(values[PRIMARY_ARM] - values[name]) for name in ARMS if name != PRIMARY_ARM}
        found.append({"labelled": labelled, "draws": len(draws), "arms": arms, "minus": minus})
    for name in ARMS:
        if name != PRIMARY_ARM:
            words = _worth(here, name, [row["labelled"] for row in found])
            for row in found:
                row.setdefault("worth", {})[name] = words.get(row["labelled"], "")
    return found


def _worth(rows: Sequence[dict[str, Any]], control: str, counts: Sequence[int]) -> dict[int, str]:
    """Labelled patients of :data:`~plan.PRIMARY_ARM` -> how many of the control they are worth, with the 95 % interval."""
    dice = {
        (arm, count): _end_dice(rows, ARMS[arm] | {"labelled": count})
        for arm in (PRIMARY_ARM, control)
        for count in counts
    }
    draws = set.intersection(*map(set, dice.values())) if dice else set()
    scores = [
        {"arm": SCRATCH if arm == control else arm, "labelled": count, "draw": draw, "case": case, "mean": value}
        | {"evaluation": FINETUNE}
        for (arm, count), of_draw in dice.items()
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
    others = [name for name in ARMS if name != PRIMARY_ARM]
    lines = [
        [
            str(row["labelled"]),
            str(row["draws"]),
            *(f"{row['arms'][name][0]:.3f}" for name in ARMS),
            *("{:+.3f} ({:+.3f} to {:+.3f})".format(*row["minus"][name]) for name in others),
            *(row["worth"][name] for name in others),
        ]
        for row in found
    ]
    header = ["labelled", "draws", *ARMS, *(f"minus {name}" for name in others), *(f"worth, {name}" for name in others)]
    return markdown_table(header, lines)


def plot_curve(found: Sequence[dict[str, Any]], file: Path) -> None:
    """Draw Dice against the number of labelled patients and, because arms are paired, their differences with intervals."""
    figure = Figure(figsize=(9.2, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    labelled = np.array([row["labelled"] for row in found])
    colours = dict(zip(ARMS, ("tab:orange", "tab:blue", "0.4"), strict=True))
    for name in ARMS:
        left.plot(labelled, [row["arms"][name][0] for row in found], marker="o", color=colours[name], label=name)
    for shift, name in ((0.97, "scratch, linear head"), (1.03, "scratch, U-Net")):
        mean, low, high = np.array([row["minus"][name] for row in found]).T
        ends = [mean - low, high - mean]
        right.errorbar(labelled * shift, mean, ends, fmt="o", color=colours[name], label=f"minus {name}", capsize=3)
    right.axhline(0, color="black", linewidth=0.8)
    left.set_title("lesion Dice of patients that nobody has seen", loc="left", fontsize=10)
    right.set_title(f"{PRIMARY_ARM} minus scratch, 95 % intervals", loc="left", fontsize=10)
    ticks = [f"{row['labelled']}\n{row['draws']} draws" for row in found]
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(labelled, ticks)
        axes.set_xlabel("labelled patients")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=9)
    save_figure(figure, file)
