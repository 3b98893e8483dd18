"""Tables: CSV for programs, Markdown for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emim_nnunet.storage.files import write_text


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as a CSV with a head line, atomically.

    Args:
        path: The CSV file to write.
        rows: Values by column, one mapping per row. The columns are the union of all keys in order of first appearance; a cell
            is empty where a row lacks the key.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Make the lines of a Markdown table.

    Args:
        header: Names of the columns; the first one may be empty.
        rows: The cells of each row, as many as there are columns.

    Returns:
        The head line, the separator and a line per row.
    """
    lines = [header, *rows]
    head, *rest = ["| " + " | ".join(map(str, line)) + " |" for line in lines]
    return [head, "|---" * len(header) + "|", *rest]
