"""Checks of image files that the readers do not make."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from emim_nnunet.errors import UserError

CHUNK = 1 << 24


def stream_damage(file: Path) -> str:
    """What is wrong with a file before its content is looked at.

    ITK reads a truncated .nii.gz without complaint and fills the rest with zeros, so compressed streams are read to their
    end, where the checksum is.

    Args:
        file: Image file, compressed or not.

    Returns:
        The reason, or an empty string.
    """
    try:
        with gzip.open(file) if file.suffix.lower() == ".gz" else file.open("rb") as stream:
            while stream.read(CHUNK):
                pass
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        return f"is truncated or damaged ({error})"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return ""


def check_streams(files: Iterable[Path], num_threads: int) -> None:
    """Check many files.

    Args:
        files: Image files.
        num_threads: Files read at a time.

    Raises:
        UserError: Naming the first damaged file.
    """
    files = list(files)
    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        damages = tqdm(pool.map(stream_damage, files), "Checking files", len(files), disable=None)
        for file, damage in zip(files, damages, strict=True):
            if damage:
                raise UserError(f"{file} {damage}")
