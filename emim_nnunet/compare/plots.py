"""The pictures of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure

from emim_nnunet.compare.protocol import TITLES
from emim_nnunet.compare.scores import mean_dice
from emim_nnunet.errors import counted
from emim_nnunet.storage.figures import TITLE, legend_beside, save_figure


@style.context("default")
def plot_scores(results: dict[str, Any], path: Path) -> None:
    """Draw the Dice of every test case (mean over draws), and mean and interval of each arm.

    There is a panel per evaluation and number of labelled cases.

    Args:
        results: The results, with ``scores`` and ``summary``.
        path: The PNG file to write.
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
            points = np.nanmean(mean_dice(results["scores"], evaluation, labelled, arm), 0)
            shift = np.linspace(-0.18, 0.18, len(points))
            ax.plot(place + shift, points, ".", color=f"C{place}", alpha=0.45, ms=5)
            errors = [[row["mean"] - row["low"]], [row["high"] - row["mean"]]]
            ax.errorbar(place, row["mean"], errors, fmt="D", color="black", ms=5, capsize=4, lw=1.3)
        ax.set_xticks(range(len(arms)), arms, rotation=35, ha="right", fontsize=9)
        ax.set_title(f"{TITLES[evaluation]}\n{labelled} labelled", **TITLE)
        ax.grid(axis="y", alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("Dice")
    figure.suptitle(
        f"{counted(results['cases']['test'], 'test case')} (points, mean over {counted(len(results['draws']), 'draw')}), "
        f"mean and 95 % interval",
        fontsize=10,
    )
    save_figure(figure, path)


@style.context("default")
def plot_efficiency(results: dict[str, Any], path: Path) -> None:
    """Draw the Dice against the number of labelled cases, a line with its interval per arm and a panel per evaluation.

    Args:
        results: The results, with ``summary`` and ``labelled``.
        path: The PNG file to write.
    """
    evaluations = list(dict.fromkeys(row["evaluation"] for row in results["summary"]))
    figure = Figure(figsize=(1.8 + 4.3 * len(evaluations), 4.2), layout="constrained")
    axes = figure.subplots(1, len(evaluations), squeeze=False)[0]
    for ax, evaluation in zip(axes, evaluations, strict=True):
        own = [row for row in results["summary"] if row["evaluation"] == evaluation]
        for number, arm in enumerate(dict.fromkeys(row["arm"] for row in own)):
            rows = sorted((row for row in own if row["arm"] == arm), key=lambda row: row["labelled"])
            counts, mean, low, high = ([row[key] for row in rows] for key in ("labelled", "mean", "low", "high"))
            ax.fill_between(counts, low, high, color=f"C{number}", alpha=0.15, lw=0)
            ax.plot(counts, mean, "o-", color=f"C{number}", ms=4, lw=1.5, label=arm)
        ax.set_xscale("log", base=2)
        ax.set_xticks(results["labelled"], [str(count) for count in results["labelled"]])
        ax.set_xlabel("labelled cases")
        ax.set_title(TITLES[evaluation], **TITLE)
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("Dice, mean and 95 % interval")
    legend_beside(axes[-1])
    save_figure(figure, path)


@style.context("default")
def plot_spectra(spectra: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the singular values of the features of every stage, relative to the largest one, a line per arm and seed.

    Args:
        spectra: The rows of :func:`collect_spectra`.
        path: The PNG file to write.
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
