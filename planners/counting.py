"""Memory of training steps that was counted already: planning asks for that of equal plans again and again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emim_nnunet.planners.work_folder import digest_of
from emim_nnunet.storage.files import read_json_object, write_json
from emim_nnunet.storage.progress import Progress
from emim_nnunet.storage.versions import versions


class MemoryCounts:
    """Counts of a data set, kept in a file, so that the same command does not count again.

    Args:
        file: Where they are kept; one that cannot be read counts for nothing.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known = read_json_object(file)
        self._new = False
        self._bar: Progress | None = None

    def of(self, what: str, inputs: dict[str, Any], count: Callable[[], float]) -> float:
        """The memory of a step, counted where it is not known.

        Args:
            what: Name of the stage or method.
            inputs: All that it depends on, besides versions of software; values that JSON or ``str`` can write.
            count: Counts it, in units of 1e9 bytes.
        """
        plain = json.loads(json.dumps(inputs, default=str))
        key = digest_of({"what": what, "inputs": plain, "versions": versions()})
        if not isinstance(self._known.get(key), float):
            if self._bar is None:
                self._bar = Progress(desc="Counting the memory of training steps", unit=" steps")
            self._known[key], self._new = count(), True
            self._bar.update()
        return float(self._known[key])

    def save(self) -> None:
        """Write what was counted, if anything is new, and end the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._new:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._file, self._known)
            self._new = False
