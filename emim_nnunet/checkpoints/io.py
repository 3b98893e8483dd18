"""Writing that never leaves half a file, reading that never runs code."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from emim_nnunet.errors import UserError

SSL_FORMAT = "emim_nnunet.ssl"
EXPORT_FORMAT = "emim_nnunet.export"
FORMAT_VERSION = 1


def atomic_write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file as a whole or not at all.

    The content goes to a temporary file in the same folder, is flushed to the disk and then renamed; an earlier file of that
    name stays until then.

    Args:
        path: Target.
        write: Writes the content into an open binary file.

    Raises:
        OSError: As raised by the file system; the target is unchanged then.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


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


def save_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint atomically; tensors go to the CPU, numpy scalars become Python numbers.

    A tensor that is listed several times is written once (nnU-Net's networks name each layer two or three times).

    Args:
        checkpoint: Nested dicts, lists and tuples of tensors, numbers, strings, bools and None.
        path: Target.

    Raises:
        ValueError: Something else is in it, which ``weights_only=True`` could not read; names the key.
        OSError: As raised by the file system; an earlier checkpoint of that name is unchanged then.
    """
    plain = _plain(checkpoint, "checkpoint", {})
    atomic_write(path, lambda file: torch.save(plain, file))


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
        UserError: Missing, damaged, or holding objects that only running code could restore.
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
    if checkpoint["format_version"] > FORMAT_VERSION:
        raise UserError(f"{path} was written by a newer emim_nnunet (format {checkpoint['format_version']}): update")
    return checkpoint
