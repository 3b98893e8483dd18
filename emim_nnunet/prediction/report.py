"""What subsets of the modalities are worth, for people: Markdown and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure

from emim_nnunet.prediction.model import TrainedModel
from emim_nnunet.prediction.subsets import Measured
from emim_nnunet.storage.figures import TITLE, save_figure
from emim_nnunet.storage.tables import markdown_table


def markdown(model: TrainedModel, measured: Sequence[Measured]) -> list[str]:
    """Make the page of a model.

    Args:
        model: The model.
        measured: What each subset is worth.

    Returns:
        Lines of Markdown.
    """
    header = [*model.channels, "n", "Dice", "change", "surface distance in mm", "trained"]
    rows = []
    for row in measured:
        marks = ["x" if channel in row.modalities else "" for channel in model.channels]
        distance = "n/a" if row.surface_distance is None else f"{row.surface_distance:.2f} ({row.num_distances})"
        trained = "yes" if model.was_trained_for(row.modalities) else "no"
        rows.append([*marks, row.num_cases, _shown(row.dice), _shown(row.change, "+"), distance, trained])
    return [
        f"# Dice by modalities: {model.folder.name}",
        "",
        f"Validation cases of fold {', '.join(model.folds)}; each fold's network on its own cases. x = the network saw the "
        f"modality, 0 stands for the others.",
        "n: cases that have all of them. Dice: mean over the labels, of each over the cases. Change: mean difference from the",
        "Dice with all modalities, over the cases that have all. Surface distance: mean of both ways; in brackets how many",
        "segmentations have one, because an empty one has none.",
        "Trained: whether the training dropped modalities so.",
        "",
        *markdown_table(header, rows),
    ]


def _shown(value: float | None, sign: str = "") -> str:
    return "n/a" if value is None else f"{value:{sign}.3f}"


@style.context("default")
def plot_subsets(
    model: TrainedModel, measured: Sequence[Measured], scores: Sequence[dict[str, Any]], path: Path
) -> None:
    """Draw the Dice of each subset and of each case in it, above a matrix of what the network saw.

    Args:
        model: The model.
        measured: What each subset is worth, a column each.
        scores: A score per case and subset: ``modalities`` and ``dice`` per label.
        path: The PNG file to write.
    """
    num, channels = len(measured), model.channels
    figure = Figure(figsize=(2.2 + 0.42 * num, 3.4 + 0.3 * len(channels)), layout="constrained")
    top, matrix = figure.subplots(2, 1, sharex=True, height_ratios=[3.0, 0.35 * len(channels)])
    for place, row in enumerate(measured):
        trained = model.was_trained_for(row.modalities)
        top.bar(place, row.dice or 0.0, color="C0" if trained else "0.75", width=0.7)
        own = [list(s["dice"].values()) for s in scores if tuple(s["modalities"]) == row.modalities]
        points = [np.nanmean(values) for values in own if np.isfinite(values).any()]
        top.plot(place + np.linspace(-0.2, 0.2, len(points)), points, ".", color="black", ms=4, alpha=0.6)
        top.annotate(f"{row.num_cases}", (place, 0.0), (0, 2), textcoords="offset points", ha="center", fontsize=7)
        seen = [channel in row.modalities for channel in channels]
        for line, is_seen in enumerate(seen):
            matrix.plot(place, line, "o", ms=8, color="black" if is_seen else "0.88")
        lines = [line for line, is_seen in enumerate(seen) if is_seen]
        matrix.plot([place, place], [min(lines), max(lines)], color="black", lw=1.5)
    top.set_ylim(0, 1)
    top.set_ylabel("Dice")
    top.set_title("Dice by modalities (points: cases; number: n; grey: not trained for)", **TITLE | {"fontsize": 9})
    top.grid(axis="y", alpha=0.25)
    matrix.set_yticks(range(len(channels)), channels)
    matrix.set_ylim(len(channels) - 0.5, -0.5)
    matrix.set_xticks([])
    for ax in (top, matrix):
        ax.spines[["top", "right"]].set_visible(False)
    matrix.spines[["left", "bottom"]].set_visible(False)
    matrix.tick_params(length=0)
    save_figure(figure, path)
