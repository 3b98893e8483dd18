"""What readers and writers of image files do not check."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from emim_nnunet.errors import UserError

CHUNK = 1 << 24
HEADER_BYTES = 540  # of NIfTI-2, the larger one
NIFTI_MAGIC = (b"n+1", b"ni1", b"n+2", b"ni2")
PLACES = {
    "qform_code": ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    "sform_code": ("srow_x", "srow_y", "srow_z"),
}


def stream_damage(file: Path) -> str:
    """What is wrong with a file before its content is looked at.

    ITK reads truncated NIfTI files, compressed or not, without complaint and fills the rest with zeros. So compressed streams
    are read to their end, where the checksum is, and the length is compared with what the header promises.

    Args:
        file: Image file, compressed or not.

    Returns:
        The reason, or an empty string.
    """
    head, length = b"", 0
    try:
        with gzip.open(file) if file.suffix.lower() == ".gz" else file.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                head = head or chunk[:HEADER_BYTES]
                length += len(chunk)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        return f"is truncated or damaged ({error})"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    header = _nifti_header(head) if _is_nifti(file) else None
    if header is None:
        return ""
    size = [int(n) for n in header["dim"][1 : 1 + min(7, max(0, int(header["dim"][0])))]]
    promised = prod(size) * int(header["bitpix"]) // 8
    if not length >= promised + float(header["vox_offset"]):  # NaN is not a place either
        return f"is truncated: its header promises {promised} bytes of voxels, the file has {length} in all"
    return ""


def header_problem(file: Path) -> str:
    """What is wrong with the header of a NIfTI file that ITK takes without a word.

    Args:
        file: Image file; others than NIfTI are not looked at.

    Returns:
        The reason, or an empty string.
    """
    if not _is_nifti(file):
        return ""
    with gzip.open(file) if file.suffix.lower() == ".gz" else file.open("rb") as stream:
        header = _nifti_header(stream.read(HEADER_BYTES))
    if header is None or bytes(header["magic"].item())[:3] not in NIFTI_MAGIC:
        return "is not a readable NIfTI (its header is of another kind)"
    voxel = header["pixdim"][1 : 1 + min(3, int(header["dim"][0]))]
    if not (np.isfinite(voxel) & (voxel > 0)).all():
        return f"has the voxel size {', '.join(f'{v:g}' for v in voxel)} mm in its header"
    scaling = [float(header[key]) for key in ("scl_slope", "scl_inter")]
    if np.isinf(scaling).any():  # NaN, and slope 0, mean that there is none
        return f"has the scaling {scaling[0]:g} x + {scaling[1]:g} in its header"
    places = [k for code, keys in PLACES.items() if int(header[code]) > 0 for k in keys]
    if not all(np.isfinite(header[key]).all() for key in places):
        return "has a position or direction in its header that is no number"
    return ""


def _is_nifti(file: Path) -> bool:
    return file.name.lower().endswith((".nii", ".nii.gz"))


def _nifti_header(block: bytes) -> nib.Nifti1Header | None:
    """The header as it stands in a file, nothing mended; None where there is none."""
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        size = kind.sizeof_hdr
        if len(block) >= size and size in (int.from_bytes(block[:4], order) for order in ("little", "big")):
            return kind(block[:size], check=False)
    return None


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
