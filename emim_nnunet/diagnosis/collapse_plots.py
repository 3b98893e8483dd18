"""The picture of the collapse monitor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from emim_nnunet.diagnosis.reference import Reference
from emim_nnunet.diagnostics import isotropic_eigenvalues
from emim_nnunet.storage.figures import TITLE, legend_beside, rounded, save_figure

SMALLEST_SHARE = 1e-6  # smaller shares are noise of float32 features
CHARACTERS = 150
BASELINES = {"constant": "crimson", "sample_constant": "darkorange", "outline": "orchid", "depth": "teal"}
HIGHEST = (
    1.2  # times the loss of a constant; what an untrained network puts out may be far above, and is of no interest
)


@style.context("default")
def plot_collapse(
    history: Sequence[Mapping[str, Any]],
    path: Path,
    *,
    title: str = "",
    others: Mapping[str, Mapping[str, Any]] | None = None,
    reference: Reference | None = None,
) -> None:
    """Draw the spectrum of every stage, and the curves of skill and loss where the network reconstructs.

    Each panel shows the share of the variance per direction on a logarithmic axis: now, after the first epoch, for the
    untrained twin, and for uncorrelated channels with the same number of rows (a fall that has no meaning).

    Args:
        history: Measurements with ``epoch``; those with a ``spectrum`` are drawn. The first one is of the untrained network.
        path: The PNG file to write.
        title: The verdict, which is written above the picture.
        others: Measurements of other networks, by name.
        reference: Another stage, whose losses are drawn beside these.
    """
    num_stages = len(history[-1]["stages"])
    with_skill = history[-1]["reconstruction"] is not None
    panels = num_stages + 2 * with_skill
    columns = min(4, max(2, ceil(panels / 2)))
    rows = ceil(panels / columns)
    figure = Figure(figsize=(4.4 * columns, 3.5 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for stage in range(num_stages):
        _draw_spectra(axes[stage], history, stage, others or {})
    if with_skill:
        _draw_skills(axes[num_stages], history)
        _draw_losses(axes[num_stages + 1], history, reference)
    for ax in axes[panels:]:
        ax.set_axis_off()
    figure.suptitle(fill(f"Verdict: {title}", CHARACTERS), fontsize=11)
    save_figure(figure, path)


def _draw_spectra(
    ax: Axes, history: Sequence[Mapping[str, Any]], stage: int, others: Mapping[str, Mapping[str, Any]]
) -> None:
    now, untrained = history[-1]["stages"][stage], history[0]["stages"][stage]
    channels, count = now["channels"], now["count"]
    if count > 1:
        null = isotropic_eigenvalues(count, channels).numpy()
        _draw_spectrum(ax, null / null.sum(), "uncorrelated channels", color="0.6", ls="--", lw=1.2)
    if history[0]["epoch"] == 0:
        _draw_spectrum(ax, untrained["spectrum"], _label("untrained", untrained), color="C0", lw=1.4)
    first = next((m for m in history[:-1] if m["epoch"] == 1 and "spectrum" in m["stages"][stage]), None)
    if first is not None:
        _draw_spectrum(
            ax, first["stages"][stage]["spectrum"], _label("first", first["stages"][stage]), color="C1", lw=1.2
        )
    _draw_spectrum(ax, now["spectrum"], _label("now", now), color="black", lw=2.2)
    for number, (name, other) in enumerate(others.items()):
        there = other["stages"][stage]
        _draw_spectrum(ax, there["spectrum"], _label(name, there), color=f"C{3 + number}", lw=1.8)
    ax.set_yscale("log")
    ax.set_ylim(SMALLEST_SHARE, 1.3)
    ax.set_xlim(left=0)
    few = "" if now["status"] == "ok" else f"\ntoo few rows ({count}) for a verdict"
    ax.set_title(f"Stage {stage}: {channels} channels{few}", **TITLE)
    ax.set_xlabel("direction")
    ax.set_ylabel("share of the variance")
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=7.5, framealpha=0.6, edgecolor="none", loc="lower left")


def _label(name: str, stage: Mapping[str, Any]) -> str:
    return f"{name}: effective rank {stage['effective_rank']:.1f}"


def _draw_spectrum(ax: Axes, shares: Sequence[float], label: str, **style: Any) -> None:
    values = np.asarray(shares, dtype=float)
    marker = "." if len(values) <= 16 else None
    ax.plot(np.arange(1, len(values) + 1), np.maximum(values, SMALLEST_SHARE / 10), label=label, marker=marker, **style)


def _draw_skills(ax: Axes, history: Sequence[Mapping[str, Any]]) -> None:
    """Draw the foreground skill of each modality and pooled, and the pooled skill over the outline."""
    epochs = [m["epoch"] for m in history]
    marker = "." if len(epochs) < 30 else None
    between = "-" if len(epochs) > 2 else ":"  # two measurements make no curve
    ax.axhline(0.0, color="crimson", lw=1.2, ls=":")
    for name in history[-1]["reconstruction"]:
        values = [m["reconstruction"][name]["foreground_skill"] for m in history]
        style = {"color": "black", "lw": 2.2} if name == "all" else {"lw": 1.3}
        ax.plot(epochs, values, label=f"{name}: {rounded(values[-1])}", marker=marker, ls=between, **style)
    outline = [m["reconstruction"]["all"]["outline_skill"] for m in history]
    ax.plot(epochs, outline, color="crimson", lw=1.4, ls="--", label=f"all, over the outline: {rounded(outline[-1])}")
    ax.set_ylim(max(min(0.0, *(v for v in ax.get_ylim())), -0.3))
    ax.set_title("Skill in the body (dotted: a constant)", **TITLE)
    _finish_curves(ax)


def _draw_losses(ax: Axes, history: Sequence[Mapping[str, Any]], reference: Reference | None) -> None:
    """Reconstruction loss; as horizontal lines those of the baselines; another stage, and where it ended."""
    epochs, losses = [m["epoch"] for m in history], [m["reconstruction"]["all"]["loss"] for m in history]
    baselines = history[0].get("baselines", {}).get("all", {})
    for kind, loss in baselines.items():
        if kind == "outline" and np.isclose(loss, baselines["constant"]):  # only the body counts
            continue
        label = f"{kind.replace('_', ' ')}: {rounded(loss)}"
        ax.axhline(loss, color=BASELINES[kind], lw=1.4, ls=":" if kind == "constant" else "--", label=label)
    if reference is not None:
        label = f"reference: {rounded(reference.losses[-1])}"
        ax.plot(reference.epochs, reference.losses, color="C0", lw=1.4, label=label)
        ax.axhline(reference.losses[-1], color="C0", lw=1.0, ls="-.")
    between, marker = "-" if len(epochs) > 2 else ":", "." if len(epochs) < 30 else None
    ax.plot(epochs, losses, color="black", lw=2.2, ls=between, marker=marker, label=f"network: {rounded(losses[-1])}")
    shown = np.asarray([*losses, *baselines.values(), *(reference.losses[-1:] if reference else [])], dtype=float)
    shown = shown[np.isfinite(shown)]
    highest = HIGHEST * history[-1]["reconstruction"]["all"]["collapsed_loss"]
    if len(shown) and np.isfinite(highest):
        top = max(min(shown.max(), highest), losses[-1] if np.isfinite(losses[-1]) else 0.0)
        room = 0.05 * (top - shown.min()) or 0.05
        ax.set_ylim(shown.min() - room, top + room)
    ax.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    ax.set_title("Loss, and losses without image content", **TITLE)
    _finish_curves(ax)


def _finish_curves(ax: Axes) -> None:
    ax.set_xlabel("epochs done (0 = untrained)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    legend_beside(ax)
