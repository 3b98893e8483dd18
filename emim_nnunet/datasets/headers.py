"""What the headers of NIfTI and MetaImage files say, as it stands there: ITK mends or guesses some of it without a word."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import BinaryIO, cast

import nibabel as nib
import numpy as np

from emim_nnunet.storage.files import atomic_write

CHUNK = 1 << 24
HEADER_BYTES = 540  # of NIfTI-2, the larger one
NIFTI_MAGIC = (b"n+1", b"n+2")
NIFTI_PAIR_MAGIC = (b"ni1", b"ni2")
COMPRESSION = 6  # of gzip
COMPLEX_CODES = (32, 1792, 2048)  # of NIfTI
EXTENDER_BYTES = 4  # between a NIfTI header and its extensions or voxels
TEXT_FIELDS = ("descrip", "aux_file", "intent_name", "db_name", "data_type")  # free text; NIfTI-2 has the first three
GZIP_NAME_FLAGS = 0x08 | 0x10  # the name of the file that was compressed, a comment
META_HEADER_BYTES = 1 << 16
META_PLACE = "ElementDataFile"  # the last key of a header
PLACES = {
    "qform_code": ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    "sform_code": ("srow_x", "srow_y", "srow_z"),
}


def is_nifti(file: Path) -> bool:
    """Whether a file is named like a NIfTI file, compressed or not."""
    return file.name.lower().endswith((".nii", ".nii.gz"))


def is_meta(file: Path) -> bool:
    """Whether a file is named like a MetaImage, or like the header of one."""
    return file.name.lower().endswith((".mha", ".mhd"))


def open_decompressed(file: Path) -> BinaryIO:
    """A file for reading, decompressed where its name ends with ``.gz``."""
    return cast(BinaryIO, gzip.open(file)) if file.suffix.lower() == ".gz" else file.open("rb")


def nifti_header(block: bytes) -> nib.Nifti1Header | None:
    """The header of a NIfTI file as it stands there, nothing mended.

    Args:
        block: The first :data:`HEADER_BYTES` bytes of the file, decompressed.

    Returns:
        The header of NIfTI-1 or NIfTI-2; None where there is none.
    """
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        size = kind.sizeof_hdr
        if len(block) >= size and size in (int.from_bytes(block[:4], order) for order in ("little", "big")):
            return kind(block[:size], check=False)
    return None


def promised_bytes(header: nib.Nifti1Header) -> int:
    """Bytes of the voxels that a NIfTI header promises."""
    size = [int(n) for n in header["dim"][1 : 1 + min(7, max(0, int(header["dim"][0])))]]
    return prod(size) * int(header["bitpix"]) // 8


def meta_header(stream: BinaryIO) -> dict[str, str]:
    """The header of a MetaImage.

    Args:
        stream: Stands at the begin of the file, and at the voxels afterwards.

    Returns:
        Key -> value, as text; empty where the file is no MetaImage.
    """
    header: dict[str, str] = {}
    while META_PLACE not in header and stream.tell() < META_HEADER_BYTES:
        key, separator, value = stream.readline(META_HEADER_BYTES).decode("latin-1").partition("=")
        if not separator or META_PLACE in f"{key.removeprefix(META_PLACE)}{value}":  # twice: which one will ITK take?
            return {}
        header[key.strip()] = value.strip()
    return header if META_PLACE in header else {}


def header_problem(file: Path) -> str:
    """What is wrong with the header of a NIfTI or MetaImage file that ITK takes without a word.

    Args:
        file: Image file, whose stream is whole; others than these two are not looked at.

    Returns:
        What is wrong, to follow the name of the file in a message; an empty string where nothing is.
    """
    if is_meta(file):
        with file.open("rb") as stream:
            return _size_problem(meta_header(stream).get("ElementSpacing", "1").split()[:3])
    if not is_nifti(file):
        return ""
    with open_decompressed(file) as stream:
        header = nifti_header(stream.read(HEADER_BYTES))
    magic = b"" if header is None else bytes(header["magic"].item())[:3]
    if magic in NIFTI_PAIR_MAGIC:
        return "is the header of a pair of files (.hdr and .img): write both as one .nii.gz"
    if header is None or magic not in NIFTI_MAGIC:
        return "is not a readable NIfTI (its header is of another kind)"
    if float(header["vox_offset"]) < header.sizeof_hdr + EXTENDER_BYTES:
        return f"has its voxels at byte {float(header['vox_offset']):g} in its header, which is a part of the header"
    size = _size_problem(header["pixdim"][1 : 1 + min(3, int(header["dim"][0]))])
    if size:
        return size
    if int(header["datatype"]) in COMPLEX_CODES:
        return "holds complex numbers: convert their magnitude"
    scaling = [float(header[key]) for key in ("scl_slope", "scl_inter")]
    if np.isinf(scaling).any():  # NaN, and slope 0, mean that there is none
        return f"has the scaling {scaling[0]:g} x + {scaling[1]:g} in its header"
    places = [k for code, keys in PLACES.items() if int(header[code]) > 0 for k in keys]
    if not all(np.isfinite(header[key]).all() for key in places):
        return "has a position or direction in its header that is no number"
    return ""


def _size_problem(voxel: Iterable[float | str]) -> str:
    """ITK makes a mirrored direction of a negative size in a MetaImage."""
    try:
        values = [float(v) for v in voxel]
    except ValueError:
        return "has a voxel size in its header that is no number"
    if all(np.isfinite(v) and v > 0 for v in values):
        return ""
    return f"has the voxel size {', '.join(f'{v:g}' for v in values)} mm in its header"


def says_orientation(file: Path) -> bool:
    """Whether the header of an image says how the patient lay. ITK takes an orientation for granted, and writes it, where not.

    Args:
        file: NIfTI file or MetaImage, whose stream is whole. Files of other formats are taken not to say it.
    """
    if is_meta(file):
        with file.open("rb") as stream:
            return "TransformMatrix" in meta_header(stream)
    if not is_nifti(file):
        return False
    with open_decompressed(file) as stream:
        header = nifti_header(stream.read(HEADER_BYTES))
    return header is not None and any(int(header[code]) > 0 for code in PLACES)


def header_text(file: Path) -> list[str]:
    """Places in a NIfTI file that hold text, which may say who a patient is.

    Args:
        file: Image file, checked; others than NIfTI have none.

    Returns:
        Names of header fields; ``extensions``; ``gzip`` for the name of a file that gzip keeps.
    """
    if not is_nifti(file):
        return []
    found = []
    with file.open("rb") as stream:
        block = stream.read(HEADER_BYTES)
    if file.suffix.lower() == ".gz":
        found += ["gzip"] if len(block) > 3 and block[3] & GZIP_NAME_FLAGS else []
        with gzip.open(file) as stream:
            block = stream.read(HEADER_BYTES)
    header = nifti_header(block)
    if header is None:
        return found
    found += [field for field in _text_fields(header) if bytes(header[field].item()).strip(b"\0 ")]
    if int(header["vox_offset"]) > header.sizeof_hdr + EXTENDER_BYTES:
        found.append("extensions")
    return found


def _text_fields(header: nib.Nifti1Header) -> list[str]:
    """Names of the fields of a header that take free text."""
    return [field for field in TEXT_FIELDS if field in header.keys()]  # noqa: SIM118 - a header is no dict


def copy_without_text(source: Path, target: Path) -> None:
    """Copy a compressed NIfTI file without the text that :func:`header_text` finds; all else, bit for bit, stays.

    Args:
        source: A file ``.nii.gz`` without header problem and damage.
        target: The copy, ``.nii.gz``; its folder exists.

    Raises:
        OSError: As raised by the file system, see :func:`atomic_write`.
    """
    with gzip.open(source) as stream:
        header = nifti_header(stream.read(HEADER_BYTES))
        assert header is not None
        stream.seek(int(header["vox_offset"]))
        voxels = promised_bytes(header)
        for field in _text_fields(header):
            header[field] = b""
        header["vox_offset"] = header.sizeof_hdr + EXTENDER_BYTES

        def write(file: BinaryIO) -> None:
            with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=COMPRESSION, mtime=0) as packed:
                packed.write(header.binaryblock + bytes(EXTENDER_BYTES))
                left = voxels
                while left and (chunk := stream.read(min(CHUNK, left))):
                    packed.write(chunk)
                    left -= len(chunk)

        atomic_write(target, write)
