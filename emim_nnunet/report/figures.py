"""The figures of a report, as SVG: sharp at every size, in print too. One panel per figure, so that a phone can show it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.image import imsave
from matplotlib.ticker import MaxNLocator

from emim_nnunet.report.content import Figure
from emim_nnunet.storage.figures import rounded

# colours that differ in lightness too (Wong, Nature Methods 8, 2011: for the colour-blind)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7a7a00", "#6a3d9a")
LADDER = {"constant": "#b00020", "sample_constant": "#c76a00", "outline": "#a03aa0", "depth": "#00797a"}
WARNING = "#c76a00"
SIZE = (5.6, 3.5)
SMALLEST_SHARE = 1e-6
SHARES = ("100 %", "10 %", "1 %", "0.1 %", "0.01 %", "0.001 %", "0.0001 %")
JPEG_QUALITY = 82


def data_address(content: bytes, kind: str) -> str:
    """A ``data:`` address, which needs no file and no network."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def png_of(file: Path, alt: str, caption: str = "", *, wide: bool = True) -> Figure:
    """A picture that a run left."""
    return Figure(data_address(file.read_bytes(), "image/png"), alt, caption, wide)


def jpeg_of(picture: np.ndarray) -> str:
    """The ``data:`` address of a picture: (H, W) grey or (H, W, 3) colours, in [0, 1]."""
    grey = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
    file = io.BytesIO()
    pixels = np.ascontiguousarray((np.clip(grey, 0, 1) * 255).astype(np.uint8))
    imsave(file, pixels, format="jpg", pil_kwargs={"quality": JPEG_QUALITY})
    return data_address(file.getvalue(), "image/jpeg")


def _panel() -> tuple[Canvas, Axes]:
    figure = Canvas(figsize=SIZE, layout="constrained")
    ax = figure.subplots()
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    return figure, ax


def _finished(figure: Canvas, alt: str, caption: str) -> Figure:
    file = io.BytesIO()
    FigureCanvasSVG(figure)
    # no date: the same run gives the same page; ids need a salt for that too
    with matplotlib.rc_context({"svg.hashsalt": "emim_nnunet", "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    return Figure(data_address(file.getvalue(), "image/svg+xml"), alt, caption)


def _legend(ax: Axes) -> None:
    """A legend below the axes: beside them it would take a phone's width, in them it would cover curves."""
    handles, _ = ax.get_legend_handles_labels()
    if handles:
        ax.figure.legend(loc="outside lower center", ncols=2, fontsize=8.5, frameon=False)


def _curve(ax: Axes, x: Sequence[float], y: Sequence[float], label: str, **look: Any) -> None:
    look = {"lw": 1.8, "marker": "." if len(x) < 30 else None} | look
    ax.plot(x, y, label=label, **look)


def _warnings(ax: Axes, epochs: Sequence[float]) -> None:
    """Mark the evaluations with a warning or an error."""
    for place, epoch in enumerate(epochs):
        label = "monitor: warning or error" if place == 0 else None
        ax.axvline(epoch, color=WARNING, lw=5, alpha=0.16, zorder=0, label=label)


def _epochs(ax: Axes) -> None:
    ax.set_xlabel("epochs done (0 = untrained)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


@style.context("default")
def reconstruction_loss(
    epochs: Sequence[float], losses: Sequence[float], ladder: Mapping[str, float], warned: Sequence[float]
) -> Figure:
    """The loss of the reconstruction, and the losses of predictions without image content as a ladder of lines.

    Args:
        epochs: Numbers of epochs done.
        losses: The losses.
        ladder: Loss by kind of prediction.
        warned: Epochs with a warning or an error.
    """
    figure, ax = _panel()
    _warnings(ax, warned)
    for kind, loss in ladder.items():
        same = kind == "outline" and np.isclose(loss, ladder.get("constant", np.nan))  # only the body counts
        if isfinite(loss) and not same:
            look: dict[str, Any] = {"color": LADDER.get(kind, "grey"), "ls": ":" if kind == "constant" else "--"}
            ax.axhline(loss, lw=1.5, label=f"{kind.replace('_', ' ')}: {rounded(loss)}", **look)
    _curve(ax, epochs, losses, f"network: {rounded(losses[-1])}", color="black", lw=2.4)
    top = max([loss for loss in ladder.values() if isfinite(loss)] or [0.0])
    if top and len(losses) > 1 and losses[0] > 1.3 * top:  # how bad an untrained network is would flatten the rest
        ax.set_ylim(top=1.3 * top)
    ax.set_ylabel("mean squared error")
    _epochs(ax)
    _legend(ax)
    best = [kind for kind, loss in ladder.items() if isfinite(loss) and losses[-1] < loss]
    said = f"it ends at {rounded(losses[-1])}, below {len(best)} of {len(ladder)} predictions without image content"
    caption = (
        "Loss on the probe set. Each line of the ladder is a prediction that knows no image content: "
        "a network that is not below all of them has learnt no more."
    )
    return _finished(
        figure,
        f"Curve of the reconstruction loss over epochs: {said}.",
        caption if ladder else "Loss on the probe set.",
    )


@style.context("default")
def skill(epochs: Sequence[float], curves: Mapping[str, Sequence[float]], warned: Sequence[float]) -> Figure:
    """Skill inside the body over epochs, a curve per modality; ``all`` is pooled."""
    figure, ax = _panel()
    _warnings(ax, warned)
    ax.axhline(0.0, color=LADDER["constant"], lw=1.4, ls=":", label="a constant")
    for place, (name, values) in enumerate(curves.items()):
        look = {"color": "black", "lw": 2.4} if name == "all" else {"color": COLOURS[place % len(COLOURS)]}
        _curve(ax, epochs, values, f"{name}: {rounded(values[-1])}", **look)
    ax.set_ylim(bottom=max(ax.get_ylim()[0], -0.5))
    ax.set_ylabel("skill in the body")
    _epochs(ax)
    _legend(ax)
    ends = ", ".join(f"{name} {rounded(values[-1])}" for name, values in curves.items())
    caption = "Skill: 1 = perfect, 0 = no better than the best constant."
    return _finished(figure, f"Curves of the skill over epochs, which end at {ends}.", caption)


@style.context("default")
def terms(epochs: Sequence[float], curves: Mapping[str, Sequence[float]], what: str, caption: str) -> Figure:
    """Numbers of the log over epochs; those of the probe set or of validation are dashed."""
    figure, ax = _panel()
    for name, values in curves.items():
        same = [other.removesuffix(", probe").removesuffix(", validation") for other in curves]
        colour = COLOURS[list(dict.fromkeys(same)).index(name.split(", ")[0]) % len(COLOURS)]
        _curve(ax, epochs, values, f"{name}: {rounded(values[-1])}", color=colour, ls="--" if ", " in name else "-")
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.set_ylabel(what)
    _legend(ax)
    ends = ", ".join(f"{name} {rounded(values[-1])}" for name, values in curves.items())
    return _finished(figure, f"Curves of {what} over epochs, which end at {ends}.", caption)


@style.context("default")
def spectrum(number: int, stage: Mapping[str, Any], untrained: Mapping[str, Any] | None) -> Figure:
    """The share of the variance of the features per direction, of one stage now and untrained."""
    figure, ax = _panel()
    said = []
    looks: list[dict[str, Any]] = [{"color": COLOURS[0], "lw": 1.6, "ls": "--"}, {"color": "black", "lw": 2.4}]
    for name, of, look in zip(("untrained", "now"), (untrained, stage), looks, strict=True):
        shares = np.asarray((of or {}).get("spectrum") or [], dtype=float)
        if of is not None and len(shares):
            rank = of.get("effective_rank")
            label = f"{name}: effective rank {rounded(float('nan' if rank is None else rank))}"
            ax.plot(np.arange(1, len(shares) + 1), np.maximum(shares, SMALLEST_SHARE / 10), label=label, **look)
            said.append(label)
    ax.set_yscale("log")
    ax.set_ylim(SMALLEST_SHARE, 1.3)
    ax.set_yticks([10.0**-place for place in range(7)], SHARES)
    ax.minorticks_off()
    ax.set_xlim(left=0)
    ax.set_xlabel("direction")
    ax.set_ylabel("share of the variance")
    _legend(ax)
    few = "" if stage.get("status") == "ok" else f" Too few rows ({stage.get('count')}) for a verdict."
    caption = f"Stage {number}, {stage.get('channels')} channels.{few}"
    return _finished(figure, f"Spectrum of the features of stage {number}. {'; '.join(said)}.", caption)


@style.context("default")
def modality_errors(scores: Mapping[str, Mapping[str, float]]) -> Figure:
    """The error of each modality as bars: network, and best constant."""
    figure, ax = _panel()
    names = list(scores)
    places = np.arange(len(names))
    for shift, key, label, colour in (
        (-0.2, "collapsed_loss", "best constant", "#9aa3ad"),
        (0.2, "loss", "network", COLOURS[0]),
    ):
        values = [scores[name][key] for name in names]
        bars = ax.bar(places + shift, np.nan_to_num(values), width=0.38, color=colour, label=label)
        ax.bar_label(bars, [rounded(value) for value in values], fontsize=8, padding=2)
    ax.set_xticks(places, names)
    ax.set_ylabel("mean squared error")
    ax.grid(axis="x", visible=False)
    _legend(ax)
    said = "; ".join(f"{n}: {rounded(s['loss'])} of {rounded(s['collapsed_loss'])}" for n, s in scores.items())
    return _finished(figure, f"Bars of the error per modality beside that of the best constant. {said}.", "")


@style.context("default")
def dots(groups: Mapping[str, Sequence[float]], what: str, caption: str, lowest: float | None = 0.0) -> Figure:
    """A column of dots per group, one dot per case, with the median."""
    figure, ax = _panel()
    said = []
    for place, (name, values) in enumerate(groups.items()):
        known = np.array([value for value in values if isfinite(value)])
        if not len(known):
            continue
        shift = np.random.default_rng(0).uniform(
            -0.18, 0.18, len(known)
        )  # a fixed scatter: dots do not hide each other
        ax.plot(place + shift, known, "o", ms=5, alpha=0.55, color=COLOURS[place % len(COLOURS)], mew=0)
        ax.plot([place - 0.3, place + 0.3], [np.median(known)] * 2, color="black", lw=2.2)
        said.append(f"{name}: median {rounded(float(np.median(known)))} of {len(known)}")
    turned = sum(map(len, groups)) > 40
    ax.set_xticks(range(len(groups)), list(groups), rotation=25 if turned else 0, ha="right" if turned else "center")
    ax.set_xlim(-0.6, len(groups) - 0.4)
    ax.grid(axis="x", visible=False)
    if lowest is not None:
        ax.set_ylim(bottom=min(lowest, ax.get_ylim()[0]) if lowest else lowest)
    ax.set_ylabel(what)
    return _finished(figure, f"Dots of {what} per case. {'; '.join(said)}.", caption)


@style.context("default")
def ranges(rows: Sequence[tuple[str, Sequence[tuple[float, float, float]], bool]], names: Sequence[str]) -> Figure:
    """Intensities of cases: for each a bar from percentile 5 to 95 and a dot at the median, a group of bars per modality.

    Args:
        rows: Case, (low, middle, high) per modality (NaN where it lacks one), and whether it stands out.
        names: Of the modalities.
    """
    figure, ax = _panel()
    for place in range(len(names)):
        for number, (_, values, stands_out) in enumerate(rows):
            low, middle, high = values[place]
            if isfinite(middle):
                x = place + 0.8 * ((number + 0.5) / len(rows) - 0.5)
                colour = LADDER["constant"] if stands_out else COLOURS[0]
                ax.plot([x, x], [low, high], color=colour, lw=max(1.0, min(4.0, 60 / len(rows))), alpha=0.55)
                ax.plot(x, middle, "o", color=colour, ms=2.5)
        ax.axvline(place - 0.5, color="0.85", lw=0.8)
    ax.set_xticks(range(len(names)), list(names))
    ax.set_xlim(-0.5, len(names) - 0.5)
    ax.grid(axis="x", visible=False)
    ax.set_ylabel("intensity after normalisation")
    out = [case for case, _, stands_out in rows if stands_out]
    said = f"Intensities of {len(rows)} cases per modality; {len(out)} of them stand out"
    caption = "A bar per case: percentiles 5 to 95 in the body, dot at the median; red = stands out."
    return _finished(figure, f"{said}.", caption)
