"""Reading image files, and whether they are whole: those of others before they are used, our own when they are written."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from emim_nnunet.datasets.headers import (
    CHUNK,
    HEADER_BYTES,
    META_PLACE,
    is_meta,
    is_nifti,
    meta_header,
    nifti_header,
    open_decompressed,
    promised_bytes,
)

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
# ITK before 6 keeps the name of the last NIfTI file in a static std::string that every thread writes without a lock
# (NiftiImageIO::ReadImageInformation): two reads at a time can free it twice, which ends the process.
_ONE_READ_AT_A_TIME = Lock()


def read_image_file(file: str | Path) -> sitk.Image:
    """Read an image with SimpleITK, one at a time in a process: threads that read NIfTI files beside each other can crash.

    Args:
        file: Image file of any format and dimension.

    Returns:
        The image with everything that its header says.

    Raises:
        RuntimeError: SimpleITK cannot read the file.
    """
    with _ONE_READ_AT_A_TIME:
        return sitk.ReadImage(str(file))


def read_dicom_series(slices: Iterable[Path]) -> sitk.Image:
    """Read the slices of a DICOM series as a volume, one series at a time in a process, as :func:`read_image_file` does.

    Args:
        slices: Files of one slice each, in the order of their places.

    Returns:
        The volume (z, y, x), with the header of the first slice.

    Raises:
        RuntimeError: SimpleITK cannot read one of them.
    """
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames(list(map(str, slices)))
    with _ONE_READ_AT_A_TIME:
        return reader.Execute()


def stream_damage(file: Path) -> str:
    """What is wrong with a file before its content is looked at.

    ITK reads truncated NIfTI files, compressed or not, without complaint and fills the rest with zeros, and takes whatever a
    damaged compressed MetaImage gives. So compressed streams are read to their end, where the checksum is, and the length is
    compared with what the header promises. Voxels that lie in another file (MetaImage's ``ElementDataFile``) are refused:
    a header could name any file of the machine, and no checksum would hold for them.

    Args:
        file: Image file of any format, compressed or not.

    Returns:
        What is wrong, to follow the name of the file in a message; an empty string where nothing is.
    """
    if is_meta(file):
        return _meta_damage(file)
    head, length = b"", 0
    try:
        with open_decompressed(file) as stream:
            while chunk := stream.read(CHUNK):
                head = head or chunk[:HEADER_BYTES]
                length += len(chunk)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        return f"is truncated or damaged ({error})"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    header = nifti_header(head) if is_nifti(file) else None
    if header is None:
        return ""
    promised = promised_bytes(header)
    if not length >= promised + float(header["vox_offset"]):  # NaN is not a place either
        return f"is truncated: its header promises {promised} bytes of voxels, the file has {length} in all"
    return ""


def _meta_damage(file: Path) -> str:
    """As :func:`stream_damage`, of a MetaImage."""
    try:
        with file.open("rb") as stream:
            header = meta_header(stream)
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
        stream: File that stands at the begin of the compressed bytes.
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


def damaged_files(files: Iterable[Path], num_threads: int) -> Iterator[tuple[Path, str]]:
    """Look for files that are not whole, see :func:`stream_damage`.

    Args:
        files: Image files.
        num_threads: Number of files that are read at a time.

    Yields:
        Each damaged file, in the order of ``files``, and what is wrong with it.
    """
    files = list(files)
    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        damages = tqdm(pool.map(stream_damage, files), "Checking files", len(files), disable=None)
        yield from ((file, damage) for file, damage in zip(files, damages, strict=True) if damage)


def save_image(image: sitk.Image, target: Path) -> None:
    """Write an image as a whole or not at all; it is read back and compared first.

    Args:
        image: Image of one number per voxel.
        target: The file to write; its ending says the format.

    Raises:
        OSError: It could not be written, or what was read back differs.
    """
    temporary = target.with_name(f".partial.{target.name}")
    try:
        sitk.WriteImage(image, str(temporary))
        written = None if stream_damage(temporary) else sitk.GetArrayFromImage(read_image_file(temporary))
        if written is None or not np.array_equal(written, sitk.GetArrayViewFromImage(image)):
            raise OSError(f"{target} was not written correctly: what the disk holds differs from what was written")
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except RuntimeError as error:
        raise OSError(f"{target} cannot be written ({str(error).strip().splitlines()[-1].strip()})") from error
    finally:
        temporary.unlink(missing_ok=True)
