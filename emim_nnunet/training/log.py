"""The numbers of an SSL stage, one row per epoch."""

from __future__ import annotations

import os
from pathlib import Path

from emim_nnunet.storage.tables import write_csv

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def without_paths(text: object) -> str:
    """Replace the folders of nnU-Net's variables in a text by the names of the variables: a log may be shown to others.

    Args:
        text: A line of a log, or anything that ``str`` turns into one.

    Returns:
        The line, for example with ``$nnUNet_results/Dataset137_X/...``, which a shell understands.
    """
    line = str(text)
    for name in FOLDERS:
        folder = os.environ.get(name)
        for written in dict.fromkeys((os.path.abspath(folder), folder.rstrip("/"))) if folder else ():
            line = line.replace(written, f"${name}")
    return line


class SSLLog:
    """Append-only rows of numbers that travel in the checkpoint and are written as a CSV.

    nnU-Net's own logger accepts no keys but its own (LocalLogger asserts).
    """

    def __init__(self) -> None:
        self._rows: list[dict[str, float]] = []

    def append(self, row: dict[str, float]) -> None:
        """Add the row of an epoch.

        Args:
            row: The numbers by name, ``epoch`` (from 0) among them; NaN stays NaN.

        Raises:
            ValueError: The row has no key ``epoch``.
        """
        if "epoch" not in row:
            raise ValueError(f"a row of the log needs the key 'epoch', got {list(row)}")
        self._rows.append({"epoch": int(row["epoch"])} | {k: float(v) for k, v in row.items() if k != "epoch"})

    def state(self) -> list[dict[str, float]]:
        """Copies of all rows, oldest first, for a checkpoint."""
        return [dict(row) for row in self._rows]

    def load_state(self, rows: list[dict[str, float]]) -> None:
        """Replace all rows by those of a checkpoint."""
        self._rows = [dict(row) for row in rows]

    def write(self, path: Path) -> None:
        """Write all rows as a CSV, atomically.

        Args:
            path: File to write. Its columns are the union of all keys in order of first appearance, ``epoch`` first; a cell is
                empty where a row lacks the key.
        """
        write_csv(path, self._rows)
