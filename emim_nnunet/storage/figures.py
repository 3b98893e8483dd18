"""Helpers for all pictures.

Figures are built on the Agg canvas without pyplot, so nothing global changes, and are written atomically.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from emim_nnunet.storage.files import atomic_write

TITLE: dict[str, Any] = {"loc": "left", "fontsize": 11, "fontweight": "bold"}


def save_figure(figure: Figure, path: Path, dpi: int = 110) -> None:
    """Write a figure as PNG, atomically.

    Args:
        figure: The figure, made without pyplot.
        path: The PNG file to write.
        dpi: Resolution in dots per inch.
    """
    FigureCanvasAgg(figure)
    atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=dpi, facecolor=figure.get_facecolor()))


def rounded(value: float) -> str:
    """A number with three decimals for people to read; ``n/a`` where it is undefined or infinite."""
    return f"{value:.3f}" if np.isfinite(value) else "n/a"


def legend_beside(ax: Axes) -> None:
    """Draw the legend to the right of the axes, where it covers no curve; draws none where no curve has a label."""
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)
