"""What the headers of NIfTI and MetaImage files hold, unchanged: ITK repairs or guesses some values without a message."""

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
HEADER_BYTES = 540  # size of a NIfTI-2 header; that of NIfTI-1 is smaller
NIFTI_MAGIC = (b"n+1", b"n+2")
NIFTI_PAIR_MAGIC = (b"ni1", b"ni2")
COMPRESSION = 6  # level of gzip
COMPLEX_CODES = (32, 1792, 2048)  # codes of complex data types in NIfTI
EXTENDER_BYTES = 4  # bytes between a NIfTI header and its extensions or voxels
TEXT_FIELDS = ("descrip", "aux_file", "intent_name", "db_name", "data_type")  # free text; NIfTI-2 has the first three
GZIP_NAME_FLAGS = 0x08 | 0x10  # the name of the file that was compressed, a comment
META_HEADER_BYTES = 1 << 16
META_PLACE = "ElementDataFile"  # the last key of a MetaImage header
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
    """Open a file for reading; it is decompressed if its name ends with ``.gz``."""
    return cast(BinaryIO, gzip.open(file)) if file.suffix.lower() == ".gz" else file.open("rb")


def nifti_header(block: bytes) -> nib.Nifti1Header | None:
    """Parse the header of a NIfTI file without repairing anything.

    Args:
        block: The first :data:`HEADER_BYTES` bytes of the file, decompressed.

    Returns:
        The NIfTI-1 or NIfTI-2 header; None where the block holds none.
    """
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        size = kind.sizeof_hdr
        if len(block) >= size and size in (int.from_bytes(block[:4], order) for order in ("little", "big")):
            return kind(block[:size], check=False)
    return None


def promised_bytes(header: nib.Nifti1Header) -> int:
    """Number of bytes that the voxels take, according to a NIfTI header."""
    size = [int(n) for n in header["dim"][1 : 1 + min(7, max(0, int(header["dim"][0])))]]
    return prod(size) * int(header["bitpix"]) // 8


def meta_header(stream: BinaryIO) -> dict[str, str]:
    """Read the header of a MetaImage.

    Args:
        stream: The file, read from its beginning; afterwards its position is after the header.

    Returns:
        Key -> value, both as text; empty where the file is no MetaImage.
    """
    header: dict[str, str] = {}
    while META_PLACE not in header and stream.tell() < META_HEADER_BYTES:
        key, separator, value = stream.readline(META_HEADER_BYTES).decode("latin-1").partition("=")
        if not separator or META_PLACE in f"{key.removeprefix(META_PLACE)}{value}":  # twice: which one will ITK take?
            return {}
        header[key.strip()] = value.strip()
    return header if META_PLACE in header else {}


def header_problem(file: Path) -> str:
    """Find a fault in the header of a NIfTI or MetaImage file that ITK accepts without a message.

    Args:
        file: Image file that can be read to its end; files of other formats are not checked.

    Returns:
        What is wrong, worded to follow the name of the file in a message; an empty string where nothing is.
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
    """Find a fault in a voxel size. ITK turns a negative size in a MetaImage into a mirrored direction."""
    try:
        values = [float(v) for v in voxel]
    except ValueError:
        return "has a voxel size in its header that is no number"
    if all(np.isfinite(v) and v > 0 for v in values):
        return ""
    return f"has the voxel size {', '.join(f'{v:g}' for v in values)} mm in its header"


def says_orientation(file: Path) -> bool:
    """Whether the header of an image gives its orientation. Where it does not, ITK assumes one and writes it.

    Args:
        file: NIfTI file or MetaImage that can be read to its end; for files of other formats the answer is False.
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
    """Find the places in a NIfTI file that hold text, which may identify a patient.

    Args:
        file: Image file that was checked before; files of other formats than NIfTI have no such places.

    Returns:
        Names of header fields; ``extensions`` for NIfTI extensions; ``gzip`` for a file name or comment that gzip keeps.
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
    """Copy a compressed NIfTI file without the text that :func:`header_text` finds; all else stays, bit for bit.

    Args:
        source: A ``.nii.gz`` file without damage and without a fault in its header.
        target: The copy to write, ``.nii.gz``; its folder must exist.

    Raises:
        OSError: The file system refused, see :func:`atomic_write`.
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
