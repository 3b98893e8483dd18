"""Files that are written as a whole or not at all, and their checksums."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from emim_nnunet.errors import UserError

TEMPORARY, PARTIAL = ".tmp", ".partial"
CHUNK = 1 << 24


class _Checksummed:
    """The file object that ``write`` of :func:`atomic_write` gets: it passes bytes on to a file and into a checksum.

    torch.save reports a failed write as a RuntimeError about its own buffer, so the original error is kept here.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.checksum = file, 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.checksum = zlib.crc32(data, self.checksum)
        return memoryview(data).nbytes

    def flush(self) -> None:
        self.file.flush()


def atomic_write(path: Path, write: Callable[[Any], object], *, keep_as: Path | None = None) -> None:
    """Write a file as a whole or not at all.

    The content is written to a temporary file in the same folder, flushed to the disk, read back and compared; then the file is
    renamed. An earlier file of that name stays until then.

    Args:
        path: The file to write.
        write: Writes the content into the object that it gets, which has ``write`` and ``flush``.
        keep_as: Path in the same folder under which the earlier file is kept; None = it is replaced.

    Raises:
        OSError: The file system refused, or the bytes read back differ from those written; an earlier file is unchanged then.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY)
    try:
        with os.fdopen(descriptor, "wb") as file:
            checked = _Checksummed(file)
            try:
                write(checked)
            except Exception:
                if checked.error is not None:
                    raise checked.error from None
                raise
            file.flush()
            os.fsync(file.fileno())
        if _checksum_on_disk(Path(temporary)) != checked.checksum:
            raise OSError(f"{path} was not written correctly: what the disk holds differs from what was written")
        os.chmod(temporary, 0o666 & ~_umask())
        if keep_as is not None and path.exists():
            _give_second_name(path, keep_as)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def copy_file(source: Path, target: Path) -> None:
    """Copy the content of a file to ``target`` with :func:`atomic_write`."""
    with source.open("rb") as stream:
        atomic_write(target, lambda file: shutil.copyfileobj(stream, file))


def sha256_of(path: Path) -> str:
    """The SHA-256 of the content of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object of ours, for what can be made again; empty where there is none that can be read."""
    try:
        content = read_json(path)
    except UserError:
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: object, indent: int = 2) -> None:
    """Write JSON with :func:`atomic_write`.

    Args:
        path: The file to write.
        content: A value that ``json`` can write.
        indent: Number of spaces per level of the text.

    Raises:
        OSError: The file system refused; an earlier file is unchanged then.
    """
    text = json.dumps(content, indent=indent)
    atomic_write(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: The file cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({' '.join(str(error).split())})") from error


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8 with :func:`atomic_write`."""
    atomic_write(path, lambda file: file.write(text.encode()))


def remove_leftovers(path: Path) -> None:
    """Remove temporary files of ``path`` that a killed process left; only for files that one process at a time writes."""
    for leftover in path.parent.glob(f".{path.name}.*{TEMPORARY}"):
        with suppress(OSError):
            leftover.unlink()


def remove_all_leftovers(folder: Path) -> None:
    """As :func:`remove_leftovers` for all files of a folder, which need not exist; only where one process at a time writes."""
    for leftover in folder.glob(f".*{TEMPORARY}"):
        with suppress(OSError):
            leftover.unlink()


def new_work_folder(target: Path) -> Path:
    """Path, not made yet, of a hidden folder beside ``target`` that no other run uses, to be filled and then renamed."""
    return target.with_name(f".{target.name}.{uuid4().hex[:8]}{PARTIAL}")


def left_work_folders(folder: Path, beginning: str) -> list[Path]:
    """Work folders that ended runs left, of targets whose names start with ``beginning``; only where no other run can be."""
    return sorted(folder.glob(f".{glob.escape(beginning)}*{PARTIAL}"))


def plain_json(value: Any) -> Any:
    """Replace undefined and infinite numbers by None, because JSON has no NaN.

    Args:
        value: Nested dicts, lists and tuples of plain values.
    """
    if isinstance(value, dict):
        return {key: plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _checksum_on_disk(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        if hasattr(os, "posix_fadvise"):  # drop the pages: read the disk, not the memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while chunk := file.read(CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _give_second_name(path: Path, name: Path) -> None:
    """Give the file ``path`` a second name; without hard links it is renamed, so ``path`` is missing until written again."""
    link = name.with_name(f".{name.name}{TEMPORARY}")
    try:
        link.unlink(missing_ok=True)
        os.link(path, link)
    except OSError:
        link = path
    os.replace(link, name)


def _umask() -> int:
    """The umask of the process; mkstemp makes private files, but results are shared in a group."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
