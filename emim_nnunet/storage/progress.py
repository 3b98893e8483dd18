"""Progress of long work: a bar on a terminal, now and then a line of the log elsewhere."""

from __future__ import annotations

import io
import logging
import sys
from typing import Any

from tqdm import tqdm

LOG_SECONDS = 30.0
logger = logging.getLogger(__name__)


class Progress(tqdm):
    """tqdm's bar; where stderr is no terminal, a line of the log at most every 30 s, so that a log file shows it too.

    Args:
        arguments: As tqdm's.
        options: As tqdm's, without ``disable`` and ``file``.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._logs = not sys.stderr.isatty()
        if self._logs:
            options |= {"file": io.StringIO(), "mininterval": LOG_SECONDS, "miniters": 1}
        super().__init__(*arguments, **options)

    def display(self, *arguments: Any, **options: Any) -> None:
        """Show how far the work is."""
        if not self._logs:
            super().display(*arguments, **options)
        elif self.n and self.format_dict["elapsed"] >= LOG_SECONDS:
            of = f" of {self.total}" if self.total else ""
            logger.info("%s: %d%s", (self.desc or "done").removesuffix(": "), self.n, of)
