"""Records of preprocessed cases: what each was made of and how, so that a repeated preparation does only what is missing.

While a folder is prepared, each finished case has a record of its own in the folder of the work. When it is complete, they are
gathered in ``FOLDER.records`` beside it: a first line about the whole folder, then a line per case, all JSON. The checksums of
the prepared files are not repeated there, they are in ``FOLDER.checksums``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from emim_nnunet.datasets.checksums import Checksums, checksums_of, read_record, write_record
from emim_nnunet.datasets.preprocessed import case_identifiers, case_stamp, properties_file
from emim_nnunet.errors import UserError, listed
from emim_nnunet.storage.files import sha256_of, write_text

FORMAT = 1
Source = tuple[str, int, int, str]


@dataclass(frozen=True)
class Record:
    """How a case was preprocessed.

    Attributes:
        settings: Digest of the settings that decide the result.
        sources: Name, size in bytes, time of change in ns and SHA-256 of its images in the order of channels, and label.
        files: The checksums of what was written, see :mod:`.checksums`.
        shape: Channels and voxels per axis of what was written.
        body: Share of the volume that its body fills, where that was looked for.
        orientation: To which side of the patient the axes of its first image lead; empty = not known.
        warnings: What the user should know about it.
    """

    settings: str
    sources: list[Source]
    files: Checksums = field(default_factory=dict)
    shape: list[int] = field(default_factory=list)
    body: float | None = None
    orientation: str = ""
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The record as a JSON object."""
        return asdict(self)

    @classmethod
    def of_json(cls, content: Any) -> Record | None:
        """The record in a JSON object; None where it is none."""
        try:
            sources = [
                (str(name), int(size), int(time), str(digest)) for name, size, time, digest in content["sources"]
            ]
            files = {name: (int(size), int(time), str(sha)) for name, (size, time, sha) in content["files"].items()}
            return cls(**(content | {"sources": sources, "files": files}))
        except (TypeError, ValueError, KeyError, AttributeError):
            return None


def sources_of(files: Sequence[str | Path]) -> list[Source]:
    """What a record says about the images and the label of a case.

    Args:
        files: Them, in the order of the channels.

    Raises:
        UserError: One cannot be read.
    """
    found = []
    for file in map(Path, files):
        try:
            state = file.stat()
            found.append((file.name, state.st_size, state.st_mtime_ns, sha256_of(file)))
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror})") from error
    return found


def same_sources(sources: Sequence[Source], files: Sequence[str | Path]) -> bool:
    """Whether files are those that a record names. Only files of the same size and another time are read.

    Args:
        sources: Of a record.
        files: Images and label of the case.
    """
    paths = list(map(Path, files))
    if [path.name for path in paths] != [name for name, *_ in sources]:
        return False
    for path, (_, size, time, digest) in zip(paths, sources, strict=True):
        try:
            state = path.stat()
            if state.st_size != size or (state.st_mtime_ns != time and sha256_of(path) != digest):
                return False
        except OSError:
            return False
    return True


def with_files(record: Record, folder: Path, identifier: str) -> Record | None:
    """Look for the files of a record in a folder. Only files of the same size and another time are read.

    Args:
        record: The record of the case.
        folder: Folder of preprocessed cases.
        identifier: The case id.

    Returns:
        The record, with the times that the files have there; None where they are missing or others.
    """
    stamp = case_stamp(folder, identifier)
    recorded = {name: entry[:2] for name, entry in record.files.items()}
    if not stamp or not properties_file(folder, identifier).is_file():
        return None
    if {name: (size, time) for name, size, time in stamp} == recorded:
        return record
    if {name: size for name, size, _ in stamp} != {name: size for name, (size, _) in recorded.items()}:
        return None
    now = checksums_of(folder, identifier)
    same = all(now[name][2] == digest for name, (_, _, digest) in record.files.items())
    return replace(record, files=now) if same else None


def work_place(folder: Path) -> Path:
    """Where cases lie that are prepared already while their folder is not complete: in a hidden folder beside it."""
    return folder.with_name(f".{folder.name}.preparing")


def records_file(folder: Path) -> Path:
    """Path of the records of a folder of preprocessed cases: beside it, because nnU-Net accepts no other files in it."""
    return folder.with_name(f"{folder.name}.records")


def write_records(folder: Path, settings: Mapping[str, Any], records: Mapping[str, Record]) -> None:
    """Write the records and checksums of a whole folder, which mark it as complete; without a case, remove them.

    Args:
        folder: Folder of preprocessed cases, complete.
        settings: What the digest in the records stands for.
        records: Case id -> record.
    """
    write_record(folder, [records[case].files for case in sorted(records)])
    if not records:
        records_file(folder).unlink(missing_ok=True)
        return
    head = {"format": FORMAT, "num_cases": len(records), "settings": dict(settings)}
    lines = [{"case": case} | replace(records[case], files={}).to_json() for case in sorted(records)]
    write_text(records_file(folder), "".join(f"{json.dumps(line)}\n" for line in [head, *lines]))


def read_records(folder: Path) -> tuple[dict[str, Any], dict[str, Record]]:
    """Read the records of a folder.

    Returns:
        The settings that they were made with, and the record of each case; empty where there are none that can be read.
    """
    try:
        with records_file(folder).open() as file:
            head, *lines = [json.loads(line) for line in file]
        if head["format"] != FORMAT:
            return {}, {}
        found = {line.pop("case"): Record.of_json(line) for line in lines}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}, {}
    checksums: dict[str, Checksums] = {}
    for name, entry in (read_record(folder) or {}).items():
        stem = Path(name).name.rpartition(".")[0]
        case = stem if stem in found else stem.removesuffix("_seg")
        checksums.setdefault(case, {})[name] = entry
    return head["settings"], {
        case: replace(record, files=checksums.get(case, {})) for case, record in found.items() if record is not None
    }


def check_complete(folder: Path) -> None:
    """Whether a folder holds all cases that were prepared; one that has no records (of older versions, of nnU-Net) passes.

    Args:
        folder: Folder of preprocessed cases.

    Raises:
        UserError: Cases are missing.
    """
    try:
        with records_file(folder).open() as file:
            expected = int(json.loads(file.readline())["num_cases"])
    except (OSError, ValueError, TypeError, KeyError):
        return
    found = case_identifiers(folder)
    if len(found) < expected:
        missing = sorted(set(read_records(folder)[1]) - set(found))
        raise UserError(
            f"{folder} is not complete: {expected - len(found)} of {expected} prepared cases are missing ({listed(missing)}). "
            f"Copy it again, or repeat emim_plan_and_preprocess"
        )
