"""What all pictures have in common.

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
        figure: Made without pyplot.
        path: PNG to write.
        dpi: Dots per inch.
    """
    FigureCanvasAgg(figure)
    atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=dpi, facecolor=figure.get_facecolor()))


def rounded(value: float) -> str:
    """A number for people; ``n/a`` where it is undefined."""
    return f"{value:.3f}" if np.isfinite(value) else "n/a"


def legend_beside(ax: Axes) -> None:
    """A legend to the right of the axes, where it covers no curve; none where there is nothing to explain."""
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)
