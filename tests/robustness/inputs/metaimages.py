"""Bad MetaImages for ``emim_convert``: damaged, or pointing to other files."""

from __future__ import annotations

import os
from pathlib import Path

from tests.robustness.inputs.spoiling import convert, image, own_folders
from tests.robustness.inputs.table import bad, good

DAMAGED = "damaged files that are not gzip"
POINTS = "files that point elsewhere"


def as_mha(world: Path, suffix: str = "t1n", *, compressed: bool = False) -> Path:
    """A file of the source, as a MetaImage."""
    import SimpleITK as sitk

    old = image(world, suffix)
    new = old.with_name(old.name.replace(".nii.gz", ".mha"))
    sitk.WriteImage(sitk.ReadImage(str(old)), str(new), useCompression=compressed)
    old.unlink()
    return new


def patch_meta(file: Path, old: str, new: str) -> None:
    """Change the header of a MetaImage."""
    content = file.read_bytes()
    assert old.encode() in content
    file.write_bytes(content.replace(old.encode(), new.encode(), 1))


def garble_meta(file: Path) -> None:
    content = bytearray(file.read_bytes())
    middle = (content.index(b"LOCAL") + len(content)) // 2
    content[middle : middle + 10] = bytes(b ^ 255 for b in content[middle : middle + 10])
    file.write_bytes(content)


@good("convert")
def metaimages(world: Path) -> list[str]:
    as_mha(world)
    as_mha(world, "seg", compressed=True)
    return convert(world)


@bad("convert", r"t1n.mha is truncated or damaged", kind=DAMAGED)
def garbled_metaimage(world: Path) -> list[str]:
    garble_meta(as_mha(world, compressed=True))
    return convert(world)


@bad("convert", r"seg.mha is truncated or damaged", kind=DAMAGED)
def garbled_label_in_a_metaimage(world: Path) -> list[str]:
    garble_meta(as_mha(world, "seg", compressed=True))
    return convert(world)


@bad("convert", r"t1n.mha is truncated or damaged", kind=DAMAGED)
def truncated_compressed_metaimage(world: Path) -> list[str]:
    file = as_mha(world, compressed=True)
    file.write_bytes(file.read_bytes()[:-300])
    return convert(world)


@bad("convert", r"t1n.mha is truncated: its header promises", kind=DAMAGED)
def truncated_metaimage(world: Path) -> list[str]:
    file = as_mha(world)
    file.write_bytes(file.read_bytes()[:-300])
    return convert(world)


@bad("convert", r"t1n.mha is truncated or no MetaImage", kind=DAMAGED)
def truncated_header_of_a_metaimage(world: Path) -> list[str]:
    file = as_mha(world)
    file.write_bytes(file.read_bytes()[:80])
    return convert(world)


@bad("convert", r"t1n.mha is truncated or damaged", kind=DAMAGED)
def metaimage_that_promises_fewer_packed_bytes(world: Path) -> list[str]:
    patch_meta(as_mha(world, compressed=True), "CompressedDataSize = ", "CompressedDataSize = 1")
    return convert(world)


@bad("convert", r"t1n.mha is damaged: it has \d+ bytes of voxels", kind=DAMAGED)
def metaimage_of_more_voxels_than_promised(world: Path) -> list[str]:
    file = as_mha(world)
    file.write_bytes(file.read_bytes() + bytes(300))
    return convert(world)


@bad("convert", r"t1n.mha has the voxel size -1, 1, 1 mm in its header")
def negative_spacing_of_a_metaimage(world: Path) -> list[str]:
    patch_meta(as_mha(world), "ElementSpacing = 1", "ElementSpacing = -1")
    return convert(world)


def pointing(world: Path, place: str) -> list[str]:
    """A MetaImage whose voxels are in another file, which is there."""
    file = as_mha(world)
    header, voxels = file.read_bytes().split(b"LOCAL\n")
    (world / "secret.raw").write_bytes(voxels)
    file.write_bytes(header + place.format(up=os.path.relpath(world, file.parent), world=world).encode() + b"\n")
    return convert(world)


@bad("convert", r"t1n.mha names another file for its voxels", kind=POINTS)
def metaimage_of_another_folder(world: Path) -> list[str]:
    return pointing(world, "{up}/secret.raw")


@bad("convert", r"t1n.mha names another file for its voxels", kind=POINTS)
def metaimage_of_an_absolute_path(world: Path) -> list[str]:
    return pointing(world, "{world}/secret.raw")


@bad("convert", r"t1n.mha names another file for its voxels", kind=POINTS)
def metaimage_of_a_list(world: Path) -> list[str]:
    return pointing(world, "LIST\n{world}/secret.raw")


@bad("convert", r"t1n.mha names another file for its voxels", kind=POINTS)
def metaimage_of_a_pattern(world: Path) -> list[str]:
    return pointing(world, "{world}/secret%d.raw 1 40 1")


@bad("convert", r"T1.mhd is not of a format that is taken", kind=POINTS)
def metaimage_of_two_files(world: Path) -> list[str]:
    import SimpleITK as sitk

    arguments = own_folders(world, "P1", "--channel", "T2={case}/T1.mhd")
    sitk.WriteImage(sitk.ReadImage(str(image(world))), str(world / "own" / "P1" / "T1.mhd"))
    return arguments
