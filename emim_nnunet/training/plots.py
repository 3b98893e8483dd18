"""Pictures of a training run.

Figures are built on the Agg canvas without pyplot, so nothing global changes, and are written atomically. They are drawn with
matplotlib's defaults, whatever is set in the process: nnU-Net's own progress.png enlarges all letters for good (seaborn).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from emim_nnunet.storage.figures import TITLE, legend_beside, rounded, save_figure

MASK_TINT = np.array([0.16, 0.42, 0.62])
LABEL_COLOURS = ("#e6550d", "#31a354", "#3182bd", "#756bb1", "#fdd835", "#00acc1")
BACKGROUND, TEXT, MARKS = "#16181d", "#e8e8e8", "#ffd54f"
OPPOSITE = dict(zip("LRAPIS", "RLPASI", strict=True))


@style.context("default")
def plot_progress(history: Sequence[dict[str, float]], path: Path) -> None:
    """Loss terms, skill, learning rate and epoch time over epochs.

    Args:
        history: Rows of :class:`emim_nnunet.training.log.SSLLog`, at least one. Keys: ``epoch``; ``train/TERM``,
            ``val/TERM``; ``skill/MODALITY``, ``skill/all``; ``lr``; ``seconds``. All but ``epoch`` may be absent or NaN.
        path: The PNG file to write.
    """
    figure = Figure(figsize=(16, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    _draw_losses(axes[0, 0], history)
    _draw_skill(axes[0, 1], history)
    _draw_line(axes[1, 0], history, "lr", "learning rate")
    axes[1, 0].set_title("Learning rate", **TITLE)
    _draw_line(axes[1, 1], history, "seconds", "epoch time")
    axes[1, 1].set_title("Epoch time [s]", **TITLE)
    for ax in axes.flat:
        ax.set_xlabel("epoch")
        ax.set_xlim(history[0]["epoch"] - 0.5, history[-1]["epoch"] + 0.5)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[1]:
        ax.set_ylim(bottom=0)
    axes[1, 0].yaxis.set_major_formatter("{x:.1e}")
    save_figure(figure, path)


def _draw_line(ax: Axes, history: Sequence[dict[str, float]], key: str, label: str, **style: Any) -> None:
    """Draw one key over epochs, with its last value in the legend; draws nothing when no row has the key."""
    values = [row.get(key, np.nan) for row in history]
    if not any(key in row for row in history):
        return
    marker = "." if len(history) < 30 else None
    style = {"lw": 1.6, "marker": marker} | style
    ax.plot([row["epoch"] for row in history], values, label=f"{label}: {rounded(values[-1])}", **style)


def _draw_losses(ax: Axes, history: Sequence[dict[str, float]]) -> None:
    keys = dict.fromkeys(key for row in history for key in row)
    terms = dict.fromkeys(key.split("/", 1)[1] for key in keys if key.startswith(("train/", "val/")))
    # masked fractions are no losses, and the levels of the pyramid are in the CSV
    shown = [term for term in terms if not term.endswith("fraction") and "stage" not in term]
    for number, term in enumerate(shown):
        _draw_line(ax, history, f"train/{term}", f"{term}, training", color=f"C{number}")
        _draw_line(ax, history, f"val/{term}", f"{term}, probe set", color=f"C{number}", ls="--")
    ax.set_title("Loss terms", **TITLE)
    legend_beside(ax)


def _draw_skill(ax: Axes, history: Sequence[dict[str, float]]) -> None:
    keys = [key for key in dict.fromkeys(key for row in history for key in row) if key.startswith("skill/")]
    ax.axhline(0.0, color="crimson", lw=1.2, ls=":")
    for key in keys:
        name = key.removeprefix("skill/")
        _draw_line(ax, history, key, name, **({"color": "black", "lw": 2.4} if name == "all" else {}))
    ax.set_title("Skill: 1 = perfect, 0 = no better than a constant (dotted)", **TITLE)
    ax.set_ylim(bottom=max(ax.get_ylim()[0], -1.0))  # how far below is of no interest, and would flatten the rest
    legend_beside(ax)


@style.context("default")
def plot_reconstruction(
    image: np.ndarray,
    masked_image: np.ndarray,
    reconstruction: np.ndarray,
    masked: np.ndarray,
    path: Path,
    *,
    channel_names: Sequence[str],
    foreground: np.ndarray | None = None,
    spacing: Sequence[float] | None = None,
    orientation: str = "",
    title: str = "",
) -> None:
    """Draw input, masked input, output, the input with its masked voxels replaced by the output, and error; a row per modality.

    All pictures of a row share a grey window, written beside it: percentiles 1 to 99 of the modality inside the foreground. The
    scale bar is in mm; letters for the sides of the patient are drawn only where the orientation is known.

    Args:
        image: (C, *P) float, a 2D or 3D patch; of a 3D patch the slice along the first axis with the most foreground is shown.
        masked_image: (C, *P) float, the network's input.
        reconstruction: (C, *P) float, the network's output.
        masked: (C, *P) bool, True = hidden from the network.
        path: The PNG file to write.
        channel_names: The names of the C modalities.
        foreground: (*P) bool, True inside the body; None = where any modality is not 0.
        spacing: mm per voxel along the axes of the patch; None = unknown.
        orientation: For each axis of the patch the letter of the side to which it leads, as ``SPL``; empty = unknown.
        title: Text above the picture.
    """
    foreground = (image != 0).any(0) if foreground is None else foreground
    if image.ndim == 4:
        depth, at = image.shape[1], int(foreground.sum((1, 2)).argmax())
        image, masked_image, reconstruction, masked = (a[:, at] for a in (image, masked_image, reconstruction, masked))
        foreground = foreground[at]
        towards = f" (counted towards {orientation[0]})" if orientation else ""
        title = f"{title}, slice {at + 1} of {depth} of the crop{towards}"
    if not orientation:
        title = f"{title}; orientation unknown"
    pasted = np.where(masked, reconstruction, image)
    error = np.abs(reconstruction - image)
    columns = ("input", "masked input", "reconstruction", "input + reconstruction", "|error| in the body")
    num = image.shape[0]
    aspect = 1.0 if spacing is None else spacing[-2] / spacing[-1]
    height = 2.3 * float(np.clip(aspect * image.shape[-2] / image.shape[-1], 0.5, 2.0))
    figure = Figure(figsize=(2.3 * len(columns) + 0.7, height * num + 0.6), layout="constrained", facecolor=BACKGROUND)
    axes = figure.subplots(num, len(columns), squeeze=False)
    for c in range(num):
        pictures = (image[c], masked_image[c], reconstruction[c], pasted[c], error[c])
        low, high = _draw_modality(axes[c], pictures, masked[c], foreground, aspect)
        axes[c, 0].set_ylabel(f"{channel_names[c]}\ngrey {low:.2f} to {high:.2f}", color=TEXT, fontsize=9)
        _draw_letters(axes[c, 0], orientation[-2:])
        _draw_bar(axes[c, 0], image.shape[-1], spacing)
    for ax, name in zip(axes[0], columns, strict=True):
        ax.set_title(name, color=TEXT, fontsize=10)
    _bare(axes)
    figure.suptitle(title, color=TEXT, fontsize=11)
    save_figure(figure, path, dpi=90)


def _draw_modality(
    axes: np.ndarray, pictures: Sequence[np.ndarray], masked: np.ndarray, foreground: np.ndarray, aspect: float
) -> tuple[float, float]:
    """Draw input, masked input, output, pasted output and error of a modality, (H, W) each; returns their grey window."""
    low, high = _window(pictures[0], foreground)
    body = foreground[..., None]  # outside is 0, which is mid-grey in z-scored images: show it black
    shown = [_grey(picture, low, high) * body for picture in pictures[:-1]]
    shown[1] = np.where(masked[..., None], MASK_TINT, shown[1])
    for ax, picture in zip(axes, shown, strict=False):
        ax.imshow(picture, interpolation="nearest", aspect=aspect)
    error = pictures[-1] * foreground
    drawn = axes[-1].imshow(error, cmap="inferno", vmin=0, vmax=high - low, interpolation="nearest", aspect=aspect)
    scale = axes[-1].figure.colorbar(drawn, ax=axes[-1], fraction=0.05, pad=0.02)
    scale.ax.tick_params(colors=TEXT, labelsize=7)
    scale.outline.set_visible(False)
    return low, high


def _draw_letters(ax: Axes, orientation: str) -> None:
    """Letter the sides of a picture. ``orientation``: the sides to which its rows and columns lead; empty = draw nothing."""
    if not orientation:
        return
    down, right = tuple(orientation)
    sides = ((0.5, 0.99, OPPOSITE[down]), (0.5, 0.01, down), (0.01, 0.5, OPPOSITE[right]), (0.99, 0.5, right))
    for x, y, letter in sides:
        across, up = {0.01: "left", 0.99: "right"}.get(x, "center"), {0.01: "bottom", 0.99: "top"}.get(y, "center")
        ax.text(x, y, letter, transform=ax.transAxes, color=MARKS, fontsize=9, weight="bold", ha=across, va=up)


def _draw_bar(ax: Axes, width: int, spacing: Sequence[float] | None) -> None:
    """Draw a bar of a round number of mm, at most a third of the ``width`` (pixels) of the picture; none if 1 mm is longer."""
    if spacing is None:
        return
    lengths = [mm for mm in (1, 2, 5, 10, 20, 50, 100) if mm <= width * spacing[-1] / 3]
    if lengths:
        share = lengths[-1] / spacing[-1] / width
        ax.plot([0.04, 0.04 + share], [0.05, 0.05], transform=ax.transAxes, color=MARKS, lw=2, solid_capstyle="butt")
        ax.text(0.04, 0.07, f"{lengths[-1]} mm", transform=ax.transAxes, color=MARKS, fontsize=7, va="bottom")


def _window(picture: np.ndarray, foreground: np.ndarray) -> tuple[float, float]:
    """Percentiles 1 and 99 of the foreground, or of the whole picture where there is no foreground; never of width 0."""
    inside = picture[foreground] if foreground.any() else picture
    low, high = (float(value) for value in np.percentile(inside, [1, 99]))
    return low, high if high > low else low + 1.0


def _grey(picture: np.ndarray, low: float, high: float) -> np.ndarray:
    """A picture in shades of grey: (H, W) -> (H, W, 3) in [0, 1], clipped to the window from ``low`` to ``high``."""
    return np.repeat(np.clip((picture - low) / (high - low), 0, 1)[..., None], 3, axis=2)


def _bare(axes: np.ndarray) -> None:
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_facecolor(BACKGROUND)
        for spine in ax.spines.values():
            spine.set_visible(False)


@style.context("default")
def plot_overlay(
    image: np.ndarray,
    segmentation: np.ndarray,
    path: Path,
    *,
    reference: np.ndarray | None = None,
    label_names: dict[int, str] | None = None,
    title: str = "",
) -> None:
    """Draw a segmentation as filled areas over three orthogonal slices, with the reference below it.

    The slices are those in which the labels are largest, taken from the reference where there is one.

    Args:
        image: (D, H, W) float, axes as SimpleITK gives them (z, y, x).
        segmentation: (D, H, W) int, the predicted labels, 0 = background.
        path: The PNG file to write.
        reference: (D, H, W) int, the true labels; None = not drawn.
        label_names: Label -> its name in the legend; None = ``label 1``, ...
        title: Text above the picture.
    """
    layers: list[tuple[str, np.ndarray | None]] = [("image", None), ("prediction", segmentation)]
    if reference is not None:
        layers.append(("reference", reference))
    where = _slices(next((a for a in (reference, segmentation) if a is not None and a.any()), image != 0))
    low, high = _window(image, image != 0)
    figure = Figure(figsize=(3.2 * 3, 3.2 * len(layers) + 0.7), layout="constrained", facecolor=BACKGROUND)
    axes = figure.subplots(len(layers), 3, squeeze=False)
    labels = sorted({int(v) for _, layer in layers if layer is not None for v in np.unique(layer)} - {0})
    for row, (name, layer) in zip(axes, layers, strict=True):
        for axis, ax in enumerate(row):
            # y grows towards the back, z upwards: anterior and superior are shown on top
            origin = "upper" if axis == 0 else "lower"
            cut = image.take(where[axis], axis)
            ax.imshow(_grey(cut, low, high) * (cut != 0)[..., None], origin=origin, interpolation="nearest")
            if layer is not None:
                _fill(ax, layer.take(where[axis], axis), labels)
        row[0].set_ylabel(name, color=TEXT, fontsize=12)
    for ax, name in zip(axes[0], ("axial", "coronal", "sagittal"), strict=True):
        ax.set_title(name, color=TEXT, fontsize=10)
    _bare(axes)
    for number, label in enumerate(labels):
        name = (label_names or {}).get(label, f"label {label}")
        axes[-1, 0].plot([], [], "s", color=LABEL_COLOURS[number % len(LABEL_COLOURS)], label=name)
    if labels:
        figure.legend(loc="outside lower center", ncols=len(labels), frameon=False, labelcolor=TEXT)
    figure.suptitle(title, color=TEXT)
    save_figure(figure, path, dpi=90)


def _slices(labelled: np.ndarray) -> list[int]:
    """For each axis the slice that shows the labels best; each label counts by its area relative to its largest slice."""
    best = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        areas = [(labelled == label).sum(others) for label in np.unique(labelled) if label != 0]
        score = sum(area / area.max() for area in areas) if areas else np.zeros(labelled.shape[axis])
        ties = np.flatnonzero(score == score.max())
        best.append(int(ties[len(ties) // 2]))
    return best


def _fill(ax: Axes, labelled: np.ndarray, labels: Sequence[int]) -> None:
    for number, label in enumerate(labels):
        if (labelled == label).any():
            colour = LABEL_COLOURS[number % len(LABEL_COLOURS)]
            ax.contourf(labelled == label, levels=[0.5, 1.5], colors=[colour], alpha=0.45)
            ax.contour(labelled == label, levels=[0.5], colors=[colour], linewidths=1.2)
