"""Bad images for ``emim_convert``: voxels, headers, grids, labels, and places of files."""

from __future__ import annotations

import gzip
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.robustness.inputs.spoiling import NEW, convert, image, rewrite
from tests.robustness.inputs.table import bad, good


def patch_header(file: Path, offset: int, form: str, *values: Any) -> None:
    """Change bytes of a NIfTI-1 header."""
    content = bytearray(gzip.decompress(file.read_bytes()))
    struct.pack_into("<" + form, content, offset, *values)
    file.write_bytes(gzip.compress(bytes(content)))


def put(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(voxels: np.ndarray) -> np.ndarray:
        voxels = voxels.astype(np.float32)
        voxels[3, 3, 3] = value
        return voxels

    return change


@bad("convert", r"t1n.nii.gz is truncated or damaged")
def truncated_gzip(world: Path) -> list[str]:
    file = image(world)
    file.write_bytes(file.read_bytes()[:-200])
    return convert(world)


@bad("convert", r"t1n.nii.gz is truncated or damaged")
def text_instead_of_gzip(world: Path) -> list[str]:
    image(world).write_text("this is no image")
    return convert(world)


@bad("convert", r"t1n.nii.gz is not a readable NIfTI|is empty")
def zero_bytes(world: Path) -> list[str]:
    image(world).write_bytes(b"")
    return convert(world)


@bad("convert", r"t1n.nii.gz is not a readable NIfTI")
def gzip_of_garbage(world: Path) -> list[str]:
    image(world).write_bytes(gzip.compress(os.urandom(9000)))
    return convert(world)


@bad("convert", r"t1n.nii.gz is not a readable NIfTI \(its header is of another kind")
def wrong_magic(world: Path) -> list[str]:
    patch_header(image(world), 344, "4s", b"abcd")
    return convert(world)


@bad("convert", r"t1n.nii.gz is truncated: its header promises")
def fewer_voxels_than_promised(world: Path) -> list[str]:
    file = image(world)
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[:-1000]))
    return convert(world)


@bad("convert", r"t1n.nii is truncated: its header promises")
def truncated_without_compression(world: Path) -> list[str]:
    file = image(world)
    file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes())[:5000])
    file.unlink()
    return convert(world)


@bad("convert", r"t1n.nii.gz is truncated: its header promises")
def header_of_a_giant(world: Path) -> list[str]:
    patch_header(image(world), 40, "4h", 3, 32000, 32000, 32000)
    return convert(world)


@bad("convert", r"must be a three-dimensional scalar image")
def four_dimensional(world: Path) -> list[str]:
    import SimpleITK as sitk

    file = image(world)
    sitk.WriteImage(sitk.JoinSeries([sitk.ReadImage(str(file))] * 2), str(file))
    return convert(world)


@bad("convert", r"must be a three-dimensional scalar image")
def two_dimensional(world: Path) -> list[str]:
    import SimpleITK as sitk

    file = image(world)
    sitk.WriteImage(sitk.ReadImage(str(file))[:, :, 4], str(file))
    return convert(world)


@bad("convert", r"must be a three-dimensional scalar image")
def colours(world: Path) -> list[str]:
    import SimpleITK as sitk

    file = image(world)
    grey = sitk.Cast(sitk.ReadImage(str(file)), sitk.sitkUInt8)
    sitk.WriteImage(sitk.Compose(grey, grey, grey), str(file))
    return convert(world)


@bad("convert", r"holds one value everywhere")
def one_voxel(world: Path) -> list[str]:
    for suffix in ("t1n", "t1c", "t2w", "t2f", "seg"):
        rewrite(image(world, suffix), lambda voxels: voxels[:1, :1, :1] + 1)
    return convert(world)


@bad("convert", r"holds one value everywhere \(5\)")
def constant(world: Path) -> list[str]:
    rewrite(image(world), lambda voxels: np.full_like(voxels, 5))
    return convert(world)


@bad("convert", r"is 0 everywhere")
def all_zero(world: Path) -> list[str]:
    rewrite(image(world), np.zeros_like)
    return convert(world)


@bad("convert", r"holds NaN or infinite voxels")
def not_a_number(world: Path) -> list[str]:
    rewrite(image(world), put(np.nan))
    return convert(world)


@bad("convert", r"holds NaN or infinite voxels")
def infinite(world: Path) -> list[str]:
    rewrite(image(world), put(-np.inf))
    return convert(world)


@bad("convert", r"holds values up to 3e\+38")
def huge_values(world: Path) -> list[str]:
    rewrite(image(world), put(3e38))
    return convert(world)


@good("convert")
def slope_zero_means_no_scaling(world: Path) -> list[str]:
    patch_header(image(world), 112, "2f", 0.0, 0.0)
    return convert(world)


@good("convert")
def slope_not_a_number_means_no_scaling(world: Path) -> list[str]:
    patch_header(image(world), 112, "2f", float("nan"), 0.0)
    return convert(world)


@bad("convert", r"scaling .* in its header")
def slope_infinite(world: Path) -> list[str]:
    patch_header(image(world), 112, "2f", 1.0, float("inf"))
    return convert(world)


@bad("convert", r"voxel size .* in its header")
def negative_spacing(world: Path) -> list[str]:
    for suffix in ("t1n", "t1c", "t2w", "t2f", "seg"):
        patch_header(image(world, suffix), 80, "f", -1.0)
    return convert(world)


@bad("convert", r"voxel size .* in its header")
def spacing_zero(world: Path) -> list[str]:
    patch_header(image(world), 80, "3f", 0.0, 0.0, 0.0)
    return convert(world)


@bad("convert", r"voxel size .* in its header")
def spacing_not_a_number(world: Path) -> list[str]:
    patch_header(image(world), 80, "f", float("nan"))
    return convert(world)


@bad("convert", r"t1n.nii.gz (is not a readable NIfTI|is on another grid|.* in its header)")
def direction_not_orthogonal(world: Path) -> list[str]:
    patch_header(image(world), 252, "2h", 0, 1)
    patch_header(image(world), 280, "12f", 1, 0.7, 0, 0, 0, 1, 0.4, 0, 0, 0, 1, 0)
    return convert(world)


@bad("convert", r"t1n.nii.gz (is not a readable NIfTI|is on another grid|.* in its header)")
def direction_not_a_number(world: Path) -> list[str]:
    patch_header(image(world), 252, "2h", 0, 1)
    patch_header(image(world), 280, "12f", *[float("nan")] * 12)
    return convert(world)


@bad("convert", r"holds the unknown label 7")
def label_out_of_range(world: Path) -> list[str]:
    rewrite(image(world, "seg"), lambda voxels: np.where(voxels == 2, 7, voxels).astype(np.uint8))
    return convert(world)


@bad("convert", r"holds the unknown label -1")
def negative_label(world: Path) -> list[str]:
    rewrite(image(world, "seg"), lambda voxels: np.where(voxels == 2, -1, voxels.astype(np.int16)))
    return convert(world)


@bad("convert", r"holds the unknown label 0.5")
def fractional_label(world: Path) -> list[str]:
    rewrite(image(world, "seg"), lambda voxels: voxels.astype(np.float32) * 0.5)
    return convert(world)


@bad("convert", r"seg.nii.gz is on another grid .* size")
def label_of_other_size(world: Path) -> list[str]:
    rewrite(image(world, "seg"), lambda voxels: voxels[2:])
    return convert(world)


@bad("convert", r"holds the unknown label 0\.99999")
def label_that_is_nearly_one(world: Path) -> list[str]:
    rewrite(image(world, "seg"), lambda voxels: np.where(voxels == 1, np.float32(0.9999999), voxels.astype(np.float32)))
    return convert(world)


@bad("convert", r"t1n.nii.gz holds complex numbers")
def complex_numbers(world: Path) -> list[str]:
    import nibabel as nib

    file = image(world)
    old = nib.load(file)
    nib.save(nib.Nifti1Image(np.asarray(old.dataobj).astype(np.complex64), old.affine), file)
    return convert(world)


@bad("convert", r"t1n.nii.gz has the voxel size 1e-06, 1, 1 mm")
def spacing_of_an_atom(world: Path) -> list[str]:
    patch_header(image(world), 80, "f", 1e-6)
    patch_header(image(world), 252, "2h", 1, 0)
    return convert(world)


@bad("convert", r"t1n.nii.gz has the voxel size 1e\+06, 1e\+06, 1e\+06 mm")
def spacing_of_a_city(world: Path) -> list[str]:
    patch_header(image(world), 80, "3f", 1e6, 1e6, 1e6)
    patch_header(image(world), 252, "2h", 1, 0)
    return convert(world)


@bad("convert", r"t1n.nii.gz has its voxels at byte 0 in its header")
def voxels_in_the_header(world: Path) -> list[str]:
    patch_header(image(world), 108, "f", 0.0)
    return convert(world)


@bad("convert", r"t1n.nii.gz is the header of a pair of files")
def half_of_a_pair(world: Path) -> list[str]:
    patch_header(image(world), 344, "4s", b"ni1\0")
    return convert(world)


@bad("convert", r"missing T2")
def missing_channel(world: Path) -> list[str]:
    image(world, "t2w").unlink()
    return convert(world)


@bad("convert", r"two files for T1 of case")
def two_files_for_one_channel(world: Path) -> list[str]:
    (world / "source" / "copy").mkdir()
    shutil.copy(image(world), world / "source" / "copy")
    return convert(world)


@bad("convert", r"missing T1 ")
def link_to_itself(world: Path) -> list[str]:
    file = image(world)
    file.unlink()
    file.symlink_to(file.name)
    return convert(world)


@good("convert")
def folders_that_link_in_a_circle(world: Path) -> list[str]:
    (world / "source" / "again").symlink_to(world / "source")
    return convert(world)


@good("convert")
def blanks_and_umlauts_in_the_path(world: Path) -> list[str]:
    (world / "source").rename(world / "Kö pfe 頭")
    return ["brats2023", str(world / "Kö pfe 頭"), *NEW]


@good("convert", nnUNet_raw="{folder}/Rohe Däten")
def blanks_and_umlauts_in_the_target(world: Path) -> list[str]:
    (world / "Rohe Däten").mkdir()
    return convert(world)


@good("convert")
def a_single_case(world: Path) -> list[str]:
    for case in list((world / "source").rglob("BraTS-GLI-0000[23]-000")):
        shutil.rmtree(case)
    return convert(world)
