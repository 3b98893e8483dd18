"""What readers and writers of image files do not check."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from emim_nnunet.errors import UserError
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
PACKED_CHUNK = 1 << 16  # zlib makes at most a thousand times as much of it
META_TYPES = {
    "MET_CHAR": 1,
    "MET_UCHAR": 1,
    "MET_SHORT": 2,
    "MET_USHORT": 2,
    "MET_INT": 4,
    "MET_UINT": 4,
    "MET_LONG": 4,
    "MET_ULONG": 4,
    "MET_LONG_LONG": 8,
    "MET_ULONG_LONG": 8,
    "MET_FLOAT": 4,
    "MET_DOUBLE": 8,
}
PLACES = {
    "qform_code": ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    "sform_code": ("srow_x", "srow_y", "srow_z"),
}


def stream_damage(file: Path) -> str:
    """What is wrong with a file before its content is looked at.

    ITK reads truncated NIfTI files, compressed or not, without complaint and fills the rest with zeros, and takes whatever a
    damaged compressed MetaImage gives. So compressed streams are read to their end, where the checksum is, and the length is
    compared with what the header promises. Voxels that lie in another file (MetaImage's ``ElementDataFile``) are refused:
    a header could name any file of the machine, and no checksum would hold for them.

    Args:
        file: Image file, compressed or not.

    Returns:
        The reason, or an empty string.
    """
    if _is_meta(file):
        return _meta_damage(file)
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
    """What is wrong with the header of a NIfTI or MetaImage file that ITK takes without a word.

    Args:
        file: Image file, whose stream is whole; others than these two are not looked at.

    Returns:
        The reason, or an empty string.
    """
    if _is_meta(file):
        with file.open("rb") as stream:
            return _size_problem(_meta_header(stream).get("ElementSpacing", "1").split()[:3])
    if not _is_nifti(file):
        return ""
    with gzip.open(file) if file.suffix.lower() == ".gz" else file.open("rb") as stream:
        header = _nifti_header(stream.read(HEADER_BYTES))
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
        file: NIfTI or MetaImage; of others it is not known.
    """
    if _is_meta(file):
        with file.open("rb") as stream:
            return "TransformMatrix" in _meta_header(stream)
    if not _is_nifti(file):
        return False
    with gzip.open(file) if file.suffix.lower() == ".gz" else file.open("rb") as stream:
        header = _nifti_header(stream.read(HEADER_BYTES))
    return header is not None and any(int(header[code]) > 0 for code in PLACES)


def _is_nifti(file: Path) -> bool:
    return file.name.lower().endswith((".nii", ".nii.gz"))


def _is_meta(file: Path) -> bool:
    return file.name.lower().endswith((".mha", ".mhd"))


def _meta_header(stream: BinaryIO) -> dict[str, str]:
    """Keys and values of a MetaImage; the stream then stands at the voxels. Empty where it is none."""
    header: dict[str, str] = {}
    while META_PLACE not in header and stream.tell() < META_HEADER_BYTES:
        key, separator, value = stream.readline(META_HEADER_BYTES).decode("latin-1").partition("=")
        if not separator or META_PLACE in f"{key.removeprefix(META_PLACE)}{value}":  # twice: which one will ITK take?
            return {}
        header[key.strip()] = value.strip()
    return header if META_PLACE in header else {}


def _meta_damage(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            header = _meta_header(stream)
            unfit = _meta_unfit(header)
            if unfit:
                return unfit
            channels = int(header.get("ElementNumberOfChannels", "1"))
            promised = prod(int(n) for n in header["DimSize"].split()) * META_TYPES[header["ElementType"]] * channels
            if header.get("CompressedData", "False").lower() == "true":
                pieces = _inflated(stream, int(header.get("CompressedDataSize", "0")))
            else:
                pieces = iter(lambda: stream.read(CHUNK), b"")
            length = sum(map(len, pieces))
    except (EOFError, zlib.error) as error:
        return f"is truncated or damaged ({error})"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if length < promised:
        return f"is truncated: its header promises {promised} bytes of voxels, the file has {length}"
    if length > promised:  # MET_LONG of 8 bytes, for example, which ITK reads as 4
        return f"is damaged: it has {length} bytes of voxels, its header promises {promised}"
    return ""


def _meta_unfit(header: dict[str, str]) -> str:
    """Why a MetaImage cannot be checked, or an empty string."""
    if not header:
        return "is truncated or no MetaImage: its header does not end as it should"
    if header[META_PLACE].upper() != "LOCAL":
        return (
            f"names another file for its voxels ({header[META_PLACE]!r}): write both as one file ({META_PLACE} = LOCAL)"
        )
    if header.get("BinaryData", "False").lower() != "true":
        return "holds its voxels as text: write it anew"
    if header.get("ElementType") not in META_TYPES:
        return f"holds voxels of the type {header.get('ElementType')!r}: expected one of {', '.join(META_TYPES)}"
    if header.get("HeaderSize", "0") != "0":
        return "leaves a gap before its voxels (HeaderSize in its header): write it anew"
    for key, default in (("DimSize", ""), ("ElementNumberOfChannels", "1"), ("CompressedDataSize", "0")):
        values = header.get(key, default).split()
        if not values or not all(value.isdecimal() for value in values):
            return f"has {header.get(key)!r} as {key} in its header"
    return ""


def _inflated(stream: BinaryIO, packed_size: int) -> Iterator[bytes]:
    """What a zlib or gzip stream holds, in pieces; its checksum is compared at its end.

    Args:
        stream: Stands at its begin.
        packed_size: Bytes that ITK will read of it; 0 = all.
    """
    inflate, begin = zlib.decompressobj(zlib.MAX_WBITS | 32), stream.tell()
    while not inflate.eof:
        packed = stream.read(PACKED_CHUNK)
        if not packed:
            raise EOFError("the compressed voxels end too early")
        yield inflate.decompress(packed)
    used = stream.tell() - begin - len(inflate.unused_data)
    if packed_size and used != packed_size:
        raise EOFError(f"{used} bytes of compressed voxels, {packed_size} in the header")


def _nifti_header(block: bytes) -> nib.Nifti1Header | None:
    """The header as it stands in a file, nothing mended; None where there is none."""
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        size = kind.sizeof_hdr
        if len(block) >= size and size in (int.from_bytes(block[:4], order) for order in ("little", "big")):
            return kind(block[:size], check=False)
    return None


def header_text(file: Path) -> list[str]:
    """Places in a NIfTI file that hold text, which may say who a patient is.

    Args:
        file: Image file, checked; others than NIfTI have none.

    Returns:
        Names of header fields; ``extensions``; ``gzip`` for the name of a file that gzip keeps.
    """
    if not _is_nifti(file):
        return []
    found = []
    with file.open("rb") as stream:
        block = stream.read(HEADER_BYTES)
    if file.suffix.lower() == ".gz":
        found += ["gzip"] if len(block) > 3 and block[3] & GZIP_NAME_FLAGS else []
        with gzip.open(file) as stream:
            block = stream.read(HEADER_BYTES)
    header = _nifti_header(block)
    if header is None:
        return found
    found += [field for field in _text_fields(header) if bytes(header[field].item()).strip(b"\0 ")]
    if int(header["vox_offset"]) > header.sizeof_hdr + EXTENDER_BYTES:
        found.append("extensions")
    return found


def _text_fields(header: nib.Nifti1Header) -> list[str]:
    return [field for field in TEXT_FIELDS if field in header.keys()]  # noqa: SIM118 - a header is no dict


def copy_without_text(source: Path, target: Path) -> None:
    """Copy a compressed NIfTI file without the text that :func:`header_text` finds; all else, bit for bit, stays.

    Args:
        source: ``.nii.gz``, checked.
        target: ``.nii.gz``.

    Raises:
        OSError: As raised by the file system, see :func:`atomic_write`.
    """
    with gzip.open(source) as stream:
        header = _nifti_header(stream.read(HEADER_BYTES))
        assert header is not None
        stream.seek(int(header["vox_offset"]))
        voxels = prod(int(n) for n in header["dim"][1 : 1 + int(header["dim"][0])]) * int(header["bitpix"]) // 8
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
