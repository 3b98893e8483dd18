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
        path: Target.
        rows: Values by column; columns are the union of all keys in order of first appearance. What a row does not have is left
            empty.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of a Markdown table.

    Args:
        header: Names of the columns; the first one may be empty.
        rows: As many cells each.
    """
    lines = [header, *rows]
    head, *rest = ["| " + " | ".join(map(str, line)) + " |" for line in lines]
    return [head, "|---" * len(header) + "|", *rest]
