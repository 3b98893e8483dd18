"""The work on a raw data set: a hidden folder beside it, which goes on where it was interrupted, by one process or by shards.

Every converted case has a record there, written after its files: how and of what it was made, and what the look at its source
has found, so that it is neither read nor written again. Records name no file of the source.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from emim_nnunet.dataset_conversion.case import SourceCase, SourceFile
from emim_nnunet.dataset_conversion.family import DatasetFamily
from emim_nnunet.dataset_conversion.options import Options
from emim_nnunet.dataset_conversion.writing import files_of, write_case
from emim_nnunet.datasets.background import Background
from emim_nnunet.datasets.raw import FOLDERS
from emim_nnunet.storage.files import read_json_object, sha256_of, write_json
from emim_nnunet.storage.versions import versions

FACTS = (  # of a checked case
    "on_other_grid",
    "shape",
    "spacing",
    "sha256",
    "background",
    "set_to_zero",
    "filled_with",
    "header_text",
    "lost_labels",
    "label_outside_mask",
)
NEVER, OTHERWISE, CHANGED, LOST = (
    "not converted yet",
    "other options or versions",
    "their files have changed",
    "what was written of them is missing or others",
)


class WorkFolder:
    """The work on a raw data set, which takes its place when it is complete.

    Args:
        target: ``nnUNet_raw/DatasetXXX_NAME``.
        family: The table that describes the data set.
        options: How the cases are converted.
    """

    def __init__(self, target: Path, family: DatasetFamily, options: Options) -> None:
        self.place = target.with_name(f".{target.name}.converting")
        self.family, self.options = family, options
        named = {"family": repr(replace(family, finder=None)), "options": repr(options), "versions": versions()}
        self.digest = sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[
            :16
        ]  # a function has no lasting name

    def begin(self) -> None:
        """Make the folder, where it is not there yet."""
        for sub in (*FOLDERS, "records", "failed"):
            (self.place / sub).mkdir(parents=True, exist_ok=True)

    def restore(self, case: SourceCase) -> str:
        """Give a case what its record says, if it is converted as it should be.

        Args:
            case: As it was found in the source.

        Returns:
            Why it must be converted; empty where it is.
        """
        record = read_json_object(self._record(case.identifier))
        if not record:
            return NEVER
        if record.get("settings") != self.digest:
            return OTHERWISE
        try:
            if not _same(record["sources"], _sources(case), record["facts"]["sha256"], case.files):
                return CHANGED
            if record["files"] != self._written(case):
                return LOST
            for name in FACTS:
                setattr(case, name, record["facts"][name])
            case.shape, case.spacing = tuple(case.shape), tuple(case.spacing)
            case.background = {channel: Background(**found) for channel, found in record["facts"]["background"].items()}
        except (OSError, KeyError, TypeError, AttributeError):
            return LOST
        return ""

    def do(self, case: SourceCase) -> None:
        """Convert a case, then write its record.

        Args:
            case: Checked and without problems.

        Raises:
            OSError: A file could not be written.
        """
        self.forget(case)
        sources = _sources(case)
        write_case(self.family, case, self.place, self.options)
        facts = {name: getattr(case, name) for name in FACTS}
        facts["background"] = {channel: found._asdict() for channel, found in case.background.items()}
        record = {"settings": self.digest, "sources": sources, "files": self._written(case), "facts": facts}
        write_json(self._record(case.identifier), record)

    def forget(self, case: SourceCase) -> None:
        """Remove what there is of a case, its record first."""
        for file in (self._record(case.identifier), self._failure(case.identifier)):
            file.unlink(missing_ok=True)
        for name in files_of(self.family, case):
            (self.place / name).unlink(missing_ok=True)

    def note_failure(self, case: SourceCase) -> None:
        """Remember why a case cannot be converted, until it is tried again."""
        self.forget(case)
        write_json(self._failure(case.identifier), {"reason": case.problems[0]})

    def failure(self, case: SourceCase) -> str:
        """Why a case could not be converted when that was last tried; empty where it could, or was not tried."""
        return str(read_json_object(self._failure(case.identifier)).get("reason", ""))

    def _record(self, case: str) -> Path:
        return self.place / "records" / f"{case}.json"

    def _failure(self, case: str) -> Path:
        return self.place / "failed" / f"{case}.json"

    def _written(self, case: SourceCase) -> dict[str, int]:
        """The sizes of the files of a case; those that a link leads to are of the source."""
        return {name: os.lstat(self.place / name).st_size for name in files_of(self.family, case)}


def _sources(case: SourceCase) -> dict[str, list[int]]:
    """Channel -> size in bytes and time of change in ns of its file."""
    states = {what: file.path.stat() for what, file in sorted(case.files.items())}
    return {what: [state.st_size, state.st_mtime_ns] for what, state in states.items()}


def _same(
    recorded: dict[str, list[int]], now: dict[str, list[int]], sha256s: dict[str, str], files: dict[str, SourceFile]
) -> bool:
    """Whether files are those of a record. Only files of the same size and another time are read."""
    if {what: size for what, (size, _) in recorded.items()} != {what: size for what, (size, _) in now.items()}:
        return False
    others: Iterable[str] = (what for what in now if now[what] != recorded[what])
    return all(sha256s[what] == sha256_of(files[what].path) for what in others)
