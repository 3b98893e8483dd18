"""Checksums of preprocessed cases, which show whether a run continues with the same data.

Preparation writes ``FOLDER.checksums`` beside a folder of cases. It holds size, time of change and SHA-256 of each file of
voxels, and of each body that is kept apart. An entry is valid as long as size and time are those of the file; other files are
read again, so a copied folder and one that a run may not write to work as well.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Container, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

from emim_nnunet.datasets.preprocessed import BODY, Case, Stamp, body_folder, case_folders, case_stamp, stamped_file
from emim_nnunet.errors import UserError, listed
from emim_nnunet.storage.files import sha256_of, write_text

logger = logging.getLogger(__name__)
Checksums = dict[str, tuple[int, int, str]]
THREADS = 8


def record_file(folder: Path) -> Path:
    """Path of the checksums of a folder of preprocessed cases: beside it, because nnU-Net accepts no other files in it."""
    return folder.with_name(f"{folder.name}.checksums")


def checksums_of(folder: Path, identifier: str) -> Checksums:
    """Compute the checksums of the files of a case.

    Args:
        folder: Folder of the preprocessed cases.
        identifier: The case id.

    Returns:
        File name -> size in bytes, time of change in ns, and SHA-256.

    Raises:
        OSError: A file cannot be read.
    """
    return _read(folder, identifier, case_stamp(folder, identifier))


def _read(folder: Path, identifier: str, stamp: Stamp) -> Checksums:
    return {name: (size, changed, sha256_of(stamped_file(folder, identifier, name))) for name, size, changed in stamp}


def write_record(folder: Path, checksums: Iterable[Checksums]) -> None:
    """Write the checksums of a whole folder; without any checksum, the file of an earlier folder is removed.

    Args:
        folder: Folder of preprocessed cases, complete.
        checksums: The checksums of each case, see :func:`checksums_of`.
    """
    content = {name: entry for case in checksums for name, entry in case.items()}
    if content:
        write_text(record_file(folder), json.dumps(content, indent=0))
    else:
        record_file(folder).unlink(missing_ok=True)


def read_record(folder: Path) -> Checksums | None:
    """Read the checksums of a folder; None where there are none, or they cannot be read."""
    try:
        content = json.loads(record_file(folder).read_text())
        return {name: (int(size), int(changed), str(digest)) for name, (size, changed, digest) in content.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None


def case_digests(cases: Sequence[Case], needed: Container[str] = ()) -> dict[str, str]:
    """Compute digests of the voxels of cases; only files that have changed since their checksums were written are read.

    Args:
        cases: Preprocessed cases.
        needed: Ids of the cases whose digests are wanted even if the folder has no checksums (older versions wrote none).

    Returns:
        Case id -> 32 hexadecimal digits; from folders without checksums only the needed cases.

    Raises:
        UserError: The files of a case are missing or cannot be read, or its body is gone.
    """
    digests: dict[str, str] = {}
    for folder in case_folders(cases):
        record = read_record(folder)
        chosen = [c.identifier for c in cases if c.folder == folder and (record is not None or c.identifier in needed)]
        digests |= _digests(folder, chosen, record)
    return digests


def _digests(folder: Path, identifiers: Sequence[str], record: Checksums | None) -> dict[str, str]:
    known = record or {}
    stamps = {identifier: case_stamp(folder, identifier) for identifier in identifiers}
    lost = [i for i, stamp in stamps.items() if f"{BODY}/{i}.b2nd" in {*known} - {name for name, _, _ in stamp}]
    if lost:
        raise UserError(
            f"the bodies of {len(lost)} preprocessed cases are not in {body_folder(folder)} ({listed(lost)}): copy that folder "
            f"too, or preprocess anew, with --no_body to do without"
        )
    changed = [i for i, stamp in stamps.items() if any(known.get(name, ())[:2] != (s, t) for name, s, t in stamp)]
    if len(changed) > 1:
        logger.info(
            "Reading %d preprocessed cases of %s that are newer than their checksums", len(changed), folder.name
        )
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            news = list(pool.map(lambda identifier: _read(folder, identifier, stamps[identifier]), changed))
        except OSError as error:
            raise UserError(f"a preprocessed case in {folder} cannot be read ({error}): preprocess it anew") from error
    known = known | {name: entry for new in news for name, entry in new.items()}
    return {i: _digest([known[name][2] for name, _, _ in stamp]) for i, stamp in stamps.items()}


def _digest(checksums: Sequence[str]) -> str:
    return sha256(" ".join(checksums).encode()).hexdigest()[:32]
