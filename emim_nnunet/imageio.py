"""What readers and writers of image files do not check."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import SimpleITK as sitk
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


def save_image(image: sitk.Image, target: Path) -> None:
    """Write an image as a whole or not at all; it is read back and compared first.

    Args:
        image: Scalar image.
        target: File; its ending says the format.

    Raises:
        OSError: It could not be written, or what was read back differs.
    """
    temporary = target.with_name(f".partial.{target.name}")
    try:
        sitk.WriteImage(image, str(temporary))
        written = None if stream_damage(temporary) else sitk.GetArrayFromImage(sitk.ReadImage(str(temporary)))
        if written is None or not np.array_equal(written, sitk.GetArrayViewFromImage(image)):
            raise OSError(f"{target} was not written correctly: what the disk holds differs from what was written")
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except RuntimeError as error:
        raise OSError(f"{target} cannot be written ({str(error).strip().splitlines()[-1].strip()})") from error
    finally:
        temporary.unlink(missing_ok=True)
