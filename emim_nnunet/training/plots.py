"""Pictures of a run: people look rather than read.

Figures are built on the Agg canvas without pyplot, so nothing global changes, and are written atomically.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from emim_nnunet.checkpoints.io import atomic_write

MASK_TINT = np.array([0.16, 0.42, 0.62])
LABEL_COLOURS = ("#e6550d", "#31a354", "#3182bd", "#756bb1", "#fdd835", "#00acc1")
BACKGROUND, TEXT = "#16181d", "#e8e8e8"


def _save(figure: Figure, path: Path, dpi: int = 110) -> None:
    FigureCanvasAgg(figure)
    atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=dpi, facecolor=figure.get_facecolor()))


def plot_progress(history: Sequence[dict[str, float]], path: Path) -> None:
    """Loss terms, skill, learning rate and epoch time over epochs.

    Args:
        history: Rows of :class:`emim_nnunet.training.log.SSLLog`, at least one.
        path: PNG to write.
    """
    figure = Figure(figsize=(13, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    keys = list(dict.fromkeys(key for row in history for key in row))
    epochs = [row["epoch"] for row in history]

    def draw(ax: Axes, key: str, label: str, style: str = "-", colour: str | None = None) -> None:
        values = [row.get(key, np.nan) for row in history]
        ax.plot(epochs, values, style, label=label, color=colour, lw=1.6, marker="." if len(epochs) < 30 else None)

    terms = [k.removeprefix("train/") for k in keys if k.startswith("train/") and not k.endswith("fraction")]
    for number, term in enumerate(t for t in terms if "stage" not in t):
        draw(axes[0, 0], f"train/{term}", f"{term}, training", "-", f"C{number}")
        draw(axes[0, 0], f"val/{term}", f"{term}, probe set", "--", f"C{number}")
    for key in (k for k in keys if k.startswith("skill/")):
        name = key.removeprefix("skill/")
        draw(axes[0, 1], key, name, "-", "black" if name == "all" else None)
    axes[0, 1].axhline(0.0, color="crimson", lw=1, ls=":")
    axes[0, 1].annotate(
        "0 = no better than a constant",
        (0.01, 0.0),
        xycoords=("axes fraction", "data"),
        fontsize=8,
        color="crimson",
        va="bottom",
    )
    draw(axes[1, 0], "lr", "learning rate")
    draw(axes[1, 1], "seconds", "epoch time")
    titles = ("Loss terms", "Skill over the constant prediction", "Learning rate", "Epoch time [s]")
    for ax, title in zip(axes.flat, titles, strict=True):
        ax.set_title(title, fontsize=11, loc="left", fontweight="bold")
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[0]:
        ax.legend(fontsize=8, frameon=False)
    axes[1, 1].set_ylim(bottom=0)
    _save(figure, path)


def plot_reconstruction(
    image: np.ndarray,
    masked_image: np.ndarray,
    reconstruction: np.ndarray,
    masked: np.ndarray,
    path: Path,
    *,
    channel_names: Sequence[str],
    foreground: np.ndarray | None = None,
    title: str = "",
) -> None:
    """Input, masked input, output, output where masked only, and error; one row per modality.

    Args:
        image: (C, *P) float; of 3D patches the slice along the first axis with the most foreground is shown.
        masked_image: (C, *P) float, the network's input.
        reconstruction: (C, *P) float.
        masked: (C, *P) bool, True = hidden from the network.
        path: PNG to write.
        channel_names: C names.
        foreground: (*P) bool; None = where any modality is not 0.
        title: Above the picture.
    """
    foreground = (image != 0).any(0) if foreground is None else foreground
    if image.ndim == 4:
        at = int(foreground.sum((1, 2)).argmax())
        image, masked_image, reconstruction, masked = (a[:, at] for a in (image, masked_image, reconstruction, masked))
        foreground = foreground[at]
    pasted = np.where(masked, reconstruction, image)
    error = np.abs(reconstruction - image)
    columns = ("input", "masked input", "reconstruction", "input + reconstruction", "|error| in the body")
    num = image.shape[0]
    figure = Figure(figsize=(2.3 * len(columns), 2.3 * num + 0.5), layout="constrained", facecolor=BACKGROUND)
    axes = figure.subplots(num, len(columns), squeeze=False)
    for c in range(num):
        inside = image[c][foreground] if foreground.any() else image[c]
        low, high = np.percentile(inside, [1, 99])
        high = high if high > low else low + 1.0
        body = foreground[..., None]  # outside is 0, which is mid-grey in z-scored images: show it black
        shown = [_grey(image[c], low, high) * body, _tinted(masked_image[c], masked[c], low, high)]
        shown += [_grey(reconstruction[c], low, high) * body, _grey(pasted[c], low, high) * body]
        for ax, picture in zip(axes[c], shown, strict=False):
            ax.imshow(picture, interpolation="nearest")
        axes[c, -1].imshow(error[c] * foreground, cmap="inferno", vmin=0, vmax=high - low, interpolation="nearest")
        axes[c, 0].set_ylabel(channel_names[c], color=TEXT, fontsize=11)
    for ax, name in zip(axes[0], columns, strict=True):
        ax.set_title(name, color=TEXT, fontsize=10)
    _bare(axes)
    figure.suptitle(title, color=TEXT, fontsize=11)
    _save(figure, path, dpi=90)


def _grey(picture: np.ndarray, low: float, high: float) -> np.ndarray:
    """(H, W) -> (H, W, 3) in [0, 1]."""
    return np.repeat(np.clip((picture - low) / (high - low), 0, 1)[..., None], 3, axis=2)


def _tinted(picture: np.ndarray, masked: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.where(masked[..., None], MASK_TINT, _grey(picture, low, high))


def _bare(axes: np.ndarray) -> None:
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_facecolor(BACKGROUND)
        for spine in ax.spines.values():
            spine.set_visible(False)


def plot_overlay(
    image: np.ndarray, segmentation: np.ndarray, path: Path, *, reference: np.ndarray | None = None, title: str = ""
) -> None:
    """A segmentation filled over three orthogonal slices, with the reference beside it.

    Args:
        image: (D, H, W) float.
        segmentation: (D, H, W) int, 0 = background.
        path: PNG to write.
        reference: (D, H, W) int or None.
        title: Above the picture.
    """
    shown = [("image", None), ("prediction", segmentation)] + (
        [("reference", reference)] if reference is not None else []
    )
    guide = reference if reference is not None and reference.any() else segmentation
    guide = guide if guide.any() else image
    where = [int((guide != 0).sum(tuple(a for a in range(3) if a != axis)).argmax()) for axis in range(3)]
    body = image[image != 0] if (image != 0).any() else image
    low, high = np.percentile(body, [1, 99])
    high = high if high > low else low + 1.0
    figure = Figure(figsize=(3.2 * 3, 3.2 * len(shown) + 0.7), layout="constrained", facecolor=BACKGROUND)
    axes = figure.subplots(len(shown), 3, squeeze=False)
    labels = sorted({int(v) for _, s in shown if s is not None for v in np.unique(s)} - {0})
    for row, (name, labelled) in zip(axes, shown, strict=True):
        for axis, ax in enumerate(row):
            ax.imshow(_grey(image.take(where[axis], axis), low, high), origin="lower")
            if labelled is not None:
                _fill(ax, labelled.take(where[axis], axis), labels)
        row[0].set_ylabel(name, color=TEXT, fontsize=12)
    _bare(axes)
    for number, label in enumerate(labels):
        axes[-1, 0].plot([], [], "s", color=LABEL_COLOURS[number % len(LABEL_COLOURS)], label=f"label {label}")
    if labels:
        figure.legend(loc="outside lower center", ncols=len(labels), frameon=False, labelcolor=TEXT)
    figure.suptitle(title, color=TEXT)
    _save(figure, path, dpi=90)


def _fill(ax: Axes, labelled: np.ndarray, labels: Sequence[int]) -> None:
    for number, label in enumerate(labels):
        if (labelled == label).any():
            colour = LABEL_COLOURS[number % len(LABEL_COLOURS)]
            ax.contourf(labelled == label, levels=[0.5, 1.5], colors=[colour], alpha=0.45)
            ax.contour(labelled == label, levels=[0.5], colors=[colour], linewidths=1.2)
