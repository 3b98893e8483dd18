"""The format of our checkpoints, and reading any checkpoint without running the code in it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emim_nnunet.checkpoints.schema import EXPORT, SSL, check_content
from emim_nnunet.errors import UserError
from emim_nnunet.storage.files import atomic_write

SSL_FORMAT = "emim_nnunet.ssl"
EXPORT_FORMAT = "emim_nnunet.export"
FAULT_FORMAT = "emim_nnunet.fault"
OWN_FORMATS = "emim_nnunet."  # the prefix of all our formats, of other packages here and of later versions too
FORMAT_VERSION = 1


def save_checkpoint(checkpoint: dict[str, Any], path: Path, *, keep_as: Path | None = None) -> None:
    """Write a checkpoint atomically; tensors go to the CPU, numpy scalars become Python numbers.

    A tensor that is listed several times is written once (nnU-Net's networks name each layer two or three times).

    Args:
        checkpoint: Nested dicts, lists and tuples of tensors, numbers, strings, bools and None.
        path: The file to write.
        keep_as: Path under which an earlier file of that name is kept, see :func:`atomic_write`.

    Raises:
        ValueError: The checkpoint holds something else, which ``weights_only=True`` could not read; the message names the key.
        OSError: The file system refused; an earlier checkpoint of that name is unchanged then.
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


def read_checkpoint(path: Path, *, mapped: bool = False) -> dict[str, Any]:
    """Read a checkpoint of any program onto the CPU without running any code in it.

    nnU-Net's own checkpoints hold numpy numbers in their log; those are the only objects let in besides what
    ``weights_only=True`` allows.

    Args:
        path: The file.
        mapped: Whether tensors are read from the file when they are used, for those who want the log only.

    Returns:
        The content of the checkpoint.

    Raises:
        UserError: The file is missing, damaged, holds objects that only running code could restore, was written by a newer
            version of ours, or is one of ours that lacks something.
    """
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    try:
        with torch.serialization.safe_globals(_numpy_numbers()):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
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
    """The functions and types that a pickled numpy number names, under the names of numpy 1 and 2."""
    scalar = np.float64(0).__reduce__()[0]
    names = [f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")]
    kinds = ("float16", "float32", "float64", "int32", "int64", "uint8", "bool")
    return [np.dtype, *((scalar, name) for name in names), *dict.fromkeys(type(np.dtype(kind)) for kind in kinds)]


def load_checkpoint(path: Path, *, formats: tuple[str, ...] = (SSL_FORMAT,)) -> dict[str, Any]:
    """Read one of our checkpoints onto the CPU without running any code in it.

    Args:
        path: The file.
        formats: Accepted values of its ``format``.

    Returns:
        The content of the checkpoint.

    Raises:
        UserError: The file is missing, damaged, not of an accepted format, or was written by a newer version.
    """
    checkpoint = read_checkpoint(path)
    if checkpoint.get("format") not in formats:
        raise UserError(f"{path} is not a checkpoint of emim_nnunet (expected format {' or '.join(formats)})")
    return checkpoint
