"""The report of the experiment on what collapses: a table, whether the criterion is met, and loss curves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from measure.common import markdown_table

from emim_nnunet.storage.figures import save_figure

NETWORKS = ("zero", "learned", "sin-cos", "convolution")  # where positions come from
MASKS = ("position", "hybrid")
SCALES = ("z-score, body", "max, all voxels")  # of the images, and what the loss counts
COLLAPSED, ALIVE = 0.02, 0.05  # of the criterion
HIGHEST = 1.5  # of the picture: nobody needs the first steps


def report(results: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], str]:
    """The table, and whether the criterion is met."""
    lines, verdict = [], {}
    lengths = sorted({run["steps"] for run in results})
    for steps, scale, network, mask in product(lengths, SCALES, NETWORKS, MASKS):
        runs = _of(results, steps, scale, network, mask)
        if not runs:
            continue
        last = [run["history"][-1] for run in runs]
        first = [run["history"][0] for run in runs]
        constant = np.mean([m["collapsed_loss"] for m in first])
        ladder = [
            np.mean([m["baselines"][k] for m in first]) / constant for k in ("sample_constant", "outline", "depth")
        ]
        cells = [f"{np.mean([m['loss'] for m in last]):.4f}", f"{constant:.4f}", " ".join(f"{x:.3f}" for x in ladder)]
        cells += [_spread([m["skill"] for m in last]), _spread([m["within"] for m in last])]
        cells += [_spread([run["probe_r2"] for run in runs]), _spread([m["effective_rank"] for m in last], 1)]
        lines.append([str(steps), scale, network, mask, str(len(runs)), *cells])
        if network == "zero" and steps == lengths[0]:
            within = [m["within"] for m in last]
            met = [value < COLLAPSED for value in within] if mask == "position" else [value > ALIVE for value in within]
            verdict[f"{scale}, {mask}"] = {"met": sum(met), "of": len(met)}
    header = [
        "steps",
        "images, loss",
        "positions",
        "mask",
        "seeds",
        "loss",
        "of a constant",
        "sample constant, outline, depth over it",
    ]
    header += ["skill", "within", "probe R2", "effective rank"]
    text = (
        markdown_table(header, lines)
        + "\nThe criterion, without positions: "
        + "; ".join(f"{name}: {found['met']} of {found['of']}" for name, found in verdict.items())
    )
    return {"criterion": verdict, "runs": len(results)}, text + ".\n"


def _of(results: Sequence[dict[str, Any]], *about: object) -> list[dict[str, Any]]:
    """The runs of so many steps, of images, network and mask."""
    return [run for run in results if tuple(run[key] for key in ("steps", "scale", "network", "mask")) == about]


def _spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean (lowest to highest)."""
    return f"{np.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def write_picture(results: Sequence[dict[str, Any]], file: Path) -> None:
    """Loss curves over the constant's loss, a panel per kind of positions, with the baselines as horizontal lines."""
    figure = Figure(figsize=(12, 5.4), layout="constrained")
    panels = figure.subplots(len(SCALES), len(NETWORKS), sharex=True, sharey="row")
    for (row, scale), (column, network) in product(enumerate(SCALES), enumerate(NETWORKS)):
        axes = panels[row][column]
        for mask, colour in zip(MASKS, ("tab:red", "tab:blue"), strict=True):
            runs = _of(results, min(run["steps"] for run in results), scale, network, mask)
            for number, run in enumerate(runs):
                constant = run["history"][0]["collapsed_loss"]
                steps = [m["step"] for m in run["history"][1:]]
                losses = [m["loss"] / constant for m in run["history"][1:]]
                axes.plot(steps, losses, color=colour, linewidth=1, label=f"{mask} mask" if number == 0 else None)
            if runs and mask == "position":
                baselines = runs[0]["history"][0]["baselines"]
                for name, style in (("sample_constant", ":"), ("outline", "-."), ("depth", "--")):
                    label = name.replace("_", " ")
                    axes.axhline(baselines[name] / baselines["constant"], color="grey", linestyle=style, label=label)
        axes.axhline(1, color="black", linewidth=0.8, label="constant: collapsed")
        axes.set_ylim(top=min(axes.get_ylim()[1], HIGHEST))
        axes.set_title(f"positions: {network}" if row == 0 else "", loc="left", fontsize=10)
        if column == 0:
            axes.set_ylabel(f"loss over the constant's\n({scale})", fontsize=9)
        if row:
            axes.set_xlabel("step")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    save_figure(figure, file)
