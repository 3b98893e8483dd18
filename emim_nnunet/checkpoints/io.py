"""Writing that never leaves half a file, reading that never runs code."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import pickle
import shutil
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import numpy as np
import torch

from emim_nnunet.checkpoints.schema import EXPORT, SSL, check_content
from emim_nnunet.errors import UserError

SSL_FORMAT = "emim_nnunet.ssl"
EXPORT_FORMAT = "emim_nnunet.export"
FAULT_FORMAT = "emim_nnunet.fault"
OWN_FORMATS = "emim_nnunet."  # what all of them begin with, those of other rooms and of later versions too
FORMAT_VERSION = 1
TEMPORARY, PARTIAL = ".tmp", ".partial"
CHUNK = 1 << 24


class _Checksummed:
    """What ``write`` of :func:`atomic_write` gets: bytes go on to a file and into a checksum.

    torch.save reports a failed write as a RuntimeError about its own buffer, so the real cause is kept.
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

    The content goes to a temporary file in the same folder, is flushed to the disk, read back, compared and then renamed; an
    earlier file of that name stays until then.

    Args:
        path: Target.
        write: Writes the content into what it gets, which has ``write`` and ``flush``.
        keep_as: Name under which the earlier file stays, in the same folder.

    Raises:
        OSError: As raised by the file system, or what was read back is not what was written; the target is unchanged then.
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
    """Copy the content of a file with :func:`atomic_write`."""
    with source.open("rb") as stream:
        atomic_write(target, lambda file: shutil.copyfileobj(stream, file))


def sha256_of(path: Path) -> str:
    """SHA-256 of the content of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_json(path: Path, content: object, indent: int = 2) -> None:
    """Write JSON with :func:`atomic_write`.

    Args:
        path: Target.
        content: What ``json`` can hold.
        indent: Of the text.

    Raises:
        OSError: As raised by the file system; the target is unchanged then.
    """
    text = json.dumps(content, indent=indent)
    atomic_write(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises:
        UserError: It cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({' '.join(str(error).split())})") from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 with :func:`atomic_write`."""
    atomic_write(path, lambda file: file.write(text.encode()))


def remove_leftovers(path: Path) -> None:
    """Remove temporary files of ``path`` that a killed process left; only for files that one process at a time writes."""
    for leftover in path.parent.glob(f".{path.name}.*{TEMPORARY}"):
        with suppress(OSError):
            leftover.unlink()


def new_work_folder(target: Path) -> Path:
    """A hidden folder beside ``target`` that no other run uses, to be filled and renamed; not made yet."""
    return target.with_name(f".{target.name}.{uuid4().hex[:8]}{PARTIAL}")


def left_work_folders(folder: Path, beginning: str) -> list[Path]:
    """Work folders in ``folder`` that ended runs left, of targets whose names begin so; only where no other run can be."""
    return sorted(folder.glob(f".{glob.escape(beginning)}*{PARTIAL}"))


def _checksum_on_disk(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        if hasattr(os, "posix_fadvise"):  # drop the pages: read the disk, not the memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while chunk := file.read(CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _give_second_name(path: Path, name: Path) -> None:
    """Let ``name`` be the file that ``path`` is; without hard links, ``path`` is missing until it is written again."""
    link = name.with_name(f".{name.name}{TEMPORARY}")
    try:
        link.unlink(missing_ok=True)
        os.link(path, link)
    except OSError:
        link = path
    os.replace(link, name)


def _umask() -> int:
    """The process's umask (mkstemp makes files private; results are shared in a group)."""
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


def save_checkpoint(checkpoint: dict[str, Any], path: Path, *, keep_as: Path | None = None) -> None:
    """Write a checkpoint atomically; tensors go to the CPU, numpy scalars become Python numbers.

    A tensor that is listed several times is written once (nnU-Net's networks name each layer two or three times).

    Args:
        checkpoint: Nested dicts, lists and tuples of tensors, numbers, strings, bools and None.
        path: Target.
        keep_as: See :func:`atomic_write`.

    Raises:
        ValueError: Something else is in it, which ``weights_only=True`` could not read; names the key.
        OSError: As raised by the file system; an earlier checkpoint of that name is unchanged then.
    """
    plain = _plain(checkpoint, "checkpoint", {})
    atomic_write(path, lambda file: torch.save(plain, file), keep_as=keep_as)


def _plain(value: Any, where: str, copies: dict[tuple, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        key = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        if key not in copies:
            copies[key] = value.detach().cpu().clone()
        return copies[key]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, dict):
        return {_plain(k, where, copies): _plain(v, f"{where}[{k!r}]", copies) for k, v in value.items()}
    if isinstance(value, list | tuple):
        items = [_plain(v, f"{where}[{i}]", copies) for i, v in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    raise ValueError(f"{where} is a {type(value).__name__}, which a checkpoint cannot hold")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of any program onto the CPU without running any code in it.

    nnU-Net's own checkpoints hold numpy numbers in their log; those are the only objects let in besides what
    ``weights_only=True`` allows.

    Args:
        path: File.

    Returns:
        The checkpoint.

    Raises:
        UserError: Missing, damaged, holding objects that only running code could restore, of a newer version of ours, or one
            of ours that lacks something.
    """
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    try:
        with torch.serialization.safe_globals(_numpy_numbers()):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is not a checkpoint that can be read: it is damaged, or holds objects that only running code could "
            f"restore, which is refused"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path} is damaged or no checkpoint ({reason})") from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} is not a checkpoint: it holds a {type(checkpoint).__name__}")
    is_ours = str(checkpoint.get("format")).startswith(OWN_FORMATS)
    written_by = checkpoint.get("format_version") if is_ours else 0
    if not isinstance(written_by, int):
        raise UserError(f"{path} is damaged: its format_version is {written_by!r}")
    if written_by > FORMAT_VERSION:
        raise UserError(f"{path} was written by a newer emim_nnunet (format {written_by}): update")
    for kind, schema in ((SSL_FORMAT, SSL), (EXPORT_FORMAT, EXPORT)):
        if checkpoint.get("format") == kind:
            check_content(checkpoint, schema, str(path))
    return checkpoint


def _numpy_numbers() -> list[Any]:
    """What a pickled numpy number is made of, under the names that numpy 1 and 2 give it."""
    scalar = np.float64(0).__reduce__()[0]
    names = [f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")]
    kinds = ("float16", "float32", "float64", "int32", "int64", "uint8", "bool")
    return [np.dtype, *((scalar, name) for name in names), *dict.fromkeys(type(np.dtype(kind)) for kind in kinds)]


def load_checkpoint(path: Path, *, formats: tuple[str, ...] = (SSL_FORMAT,)) -> dict[str, Any]:
    """Read one of our checkpoints onto the CPU without running any code in it.

    Args:
        path: File.
        formats: Accepted values of its ``format``.

    Returns:
        The checkpoint.

    Raises:
        UserError: Missing, damaged, not one of ours, or of a newer version.
    """
    checkpoint = read_checkpoint(path)
    if checkpoint.get("format") not in formats:
        raise UserError(f"{path} is not a checkpoint of emim_nnunet (expected format {' or '.join(formats)})")
    return checkpoint
