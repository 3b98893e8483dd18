"""Bad inputs, one by one and by chance: each must end in one line and exit code 2, and leave nothing behind.

An input is a function that spoils a copy of the world and returns the arguments of a command; the decorator names the command
and a pattern of the message. Inputs that only look bad are expected to work.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
import random
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measure.data import PLANS, write_cases

from robustness.world import (
    DATASET,
    DATASET_ID,
    RAW,
    TRAINER,
    Outcome,
    command,
    copy_world,
    environment,
    in_child,
    snapshot,
    stage_folder,
)
from robustness.world import pretrain as pretraining

NEW = ["-d", "7"]
CASE = "BraTS-GLI-00001-000"
MEMORY = 24 << 30  # address space of a fuzzed command: torch alone maps several GB
ALLOWED = re.compile(
    r"results/.*(training_log_[\d_]+\.txt|fold_\w+|/?Dataset\w+|__\w+)$"
)  # nnU-Net opens its log first
Arrange = Callable[[Path], list[str]]


@dataclass(frozen=True)
class Input:
    """An input of a command.

    Attributes:
        name: Of the function that arranges it.
        command: ``emim_<command>``.
        message: Pattern of the one line; empty = it only looks bad and must work.
        arrange: Spoils a world, returns the arguments.
        env: Added to the environment.
        kind: Under which it is counted.
    """

    name: str
    command: str
    message: str
    arrange: Arrange
    env: dict[str, str]
    kind: str


INPUTS: list[Input] = []


def bad(command: str, message: str, kind: str = "bad inputs", **env: str) -> Callable[[Arrange], Arrange]:
    """Add the decorated function to the table."""

    def add(arrange: Arrange) -> Arrange:
        INPUTS.append(Input(arrange.__name__, command, message, arrange, env, kind))
        return arrange

    return add


def good(command: str, **env: str) -> Callable[[Arrange], Arrange]:
    """As :func:`bad`, for what only looks bad."""
    return bad(command, "", "inputs that only look bad", **env)


def try_input(entry: Input, world: Path, folder: Path) -> str:
    """Run a command on an input.

    Args:
        entry: Of the table.
        world: Built once.
        folder: For a copy; is removed.

    Returns:
        What was wrong with how the command ended; empty = nothing.
    """
    copy = copy_world(world, folder)
    try:
        arguments = entry.arrange(copy)
        before = snapshot(copy)
        env = {key: value.format(folder=copy) for key, value in entry.env.items()}
        outcome = in_child(command(entry.command, arguments), environment(copy) | env)
        if not entry.message:
            return "" if outcome.code == 0 else f"exit code {outcome.code}: {outcome.output[-800:]}"
        problem = judge_refusal(outcome, before, snapshot(copy))
        if not problem and not re.search(entry.message, outcome.output):
            problem = f"no '{entry.message}' in: {outcome.output[-800:]}"
        return problem
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def judge_refusal(outcome: Outcome, before: dict[str, str], after: dict[str, str]) -> str:
    """What is wrong with a refusal; empty = nothing."""
    if "Traceback" in outcome.output:
        return f"traceback: {outcome.output[-1500:]}"
    if outcome.code != 2:
        return f"exit code {outcome.code}: {outcome.output[-800:]}"
    errors = [line for line in outcome.output.splitlines() if re.match(r"\S+: error: ", line)]
    if len(errors) != 1:
        return f"{len(errors)} lines of errors: {outcome.output[-800:]}"
    changed = [key for key in before if after.get(key) != before[key]]
    if changed:
        return f"changed {changed}"
    left = [key for key in after.keys() - before.keys() if not ALLOWED.search(key)]
    return f"left behind {sorted(left)[:5]}" if left else ""


# ---------------------------------------------------------------------------------------------- images


def image(world: Path, suffix: str = "t1n", case: str = CASE) -> Path:
    return next((world / "source").rglob(f"{case}-{suffix}.nii.gz"))


def convert(world: Path, *options: str) -> list[str]:
    return ["brats2023", str(world / "source"), *NEW, *options]


def patch_header(file: Path, offset: int, form: str, *values: Any) -> None:
    """Change bytes of a NIfTI-1 header."""
    content = bytearray(gzip.decompress(file.read_bytes()))
    struct.pack_into("<" + form, content, offset, *values)
    file.write_bytes(gzip.compress(bytes(content)))


def rewrite(file: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change the voxels (z, y, x) and keep the grid, where its size stays."""
    import SimpleITK as sitk

    old = sitk.ReadImage(str(file))
    new = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(old)))
    if new.GetSize() == old.GetSize():
        new.CopyInformation(old)
    sitk.WriteImage(new, str(file))


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


DAMAGED = "damaged files that are not gzip"


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


POINTS = "files that point elsewhere"


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


# ------------------------------------------------------------------------------------------- conversions


def own_folders(world: Path, name: str, *options: str) -> list[str]:
    """One case whose id is ``name``."""
    target = world / "own" / name
    target.mkdir(parents=True)
    shutil.copy(image(world), target / "T1.nii.gz")
    return ["folders", str(world / "own"), *NEW, "--channel", "T1={case}/T1.nii.gz", *options]


@bad("convert", r"case id 'Anna Müller' cannot be a file name")
def case_id_with_blank_and_umlaut(world: Path) -> list[str]:
    return own_folders(world, "Anna Müller")


@bad("convert", r"case id '-rf' cannot be a file name")
def case_id_like_an_option(world: Path) -> list[str]:
    return own_folders(world, "-rf")


@bad("convert", r"case id '..;id' cannot be a file name|no case found")
def case_id_with_dots_and_shell(world: Path) -> list[str]:
    return own_folders(world, "..;id")


@bad("convert", r"two files for T1 of case P1")
def the_same_case_id_twice(world: Path) -> list[str]:
    own_folders(world, "a/P1")
    return own_folders(world, "b/P1")


@bad("convert", r"must contain \{case\}")
def pattern_without_case(world: Path) -> list[str]:
    return own_folders(world, "P1", "--channel", "T2=T2.nii.gz")


@bad("convert", r"--channel T2: expected NAME=VALUE")
def channel_without_value(world: Path) -> list[str]:
    return own_folders(world, "P1", "--channel", "T2")


@bad("convert", r"--classes lesion=0")
def class_of_value_zero(world: Path) -> list[str]:
    return own_folders(world, "P1", "--label", "{case}/seg.nii.gz", "--classes", "lesion=0")


@bad("convert", r"--label needs --classes")
def label_without_classes(world: Path) -> list[str]:
    return own_folders(world, "P1", "--label", "{case}/seg.nii.gz")


def small_lesion(world: Path, *options: str) -> list[str]:
    """An image at half the resolution of a lesion of one voxel."""
    import SimpleITK as sitk

    arguments = own_folders(world, "P1", "--label", "{case}/seg.nii.gz", "--classes", "lesion=2")
    old = sitk.ReadImage(str(image(world)))
    voxels = np.zeros(old.GetSize()[::-1], np.uint8)
    voxels[4, 4, 4] = 2
    label = sitk.GetImageFromArray(voxels)
    label.CopyInformation(old)
    sitk.WriteImage(label, str(world / "own" / "P1" / "seg.nii.gz"))
    sitk.WriteImage(sitk.Shrink(old, [2, 2, 2]), str(world / "own" / "P1" / "T1.nii.gz"))
    return [*arguments, "--resample-to", "T1", *options]


@bad("convert", r"seg.nii.gz loses all voxels of the label 2 by resampling")
def lesion_that_resampling_loses(world: Path) -> list[str]:
    return small_lesion(world)


@good("convert")
def lesion_that_may_be_lost(world: Path) -> list[str]:
    return small_lesion(world, "--allow_lost_labels")


@bad("convert", r"case P1 has no file that --mask names")
def case_without_its_mask(world: Path) -> list[str]:
    return own_folders(world, "P1", "--mask", "{case}/mask.nii.gz")


def masked(world: Path, change: Callable[[np.ndarray], np.ndarray]) -> list[str]:
    arguments = own_folders(world, "P1", "--mask", "{case}/mask.nii.gz")
    mask = world / "own" / "P1" / "mask.nii.gz"
    shutil.copy(image(world), mask)
    rewrite(mask, change)
    return arguments


@bad("convert", r"mask.nii.gz is 0 everywhere")
def mask_of_nothing(world: Path) -> list[str]:
    return masked(world, np.zeros_like)


@bad("convert", r"T1.nii.gz would be 0 everywhere after masking")
def mask_of_air(world: Path) -> list[str]:
    return masked(world, lambda voxels: (voxels == 0).astype(np.uint8))


@bad("convert", r"mask.nii.gz is on another grid than T1.nii.gz: size")
def mask_of_another_size(world: Path) -> list[str]:
    return masked(world, lambda voxels: (voxels > 0)[2:].astype(np.uint8))


@bad("convert", r"--mask goes with folders and bids only")
def mask_of_a_collection(world: Path) -> list[str]:
    return convert(world, "--mask", "{case}/mask.nii.gz")


@bad("convert", r"--strip_header does not go with --link")
def links_without_header(world: Path) -> list[str]:
    return convert(world, "--strip_header", "--link")


@bad("convert", r"case id 'CON' cannot be a file name")
def case_id_of_a_windows_device(world: Path) -> list[str]:
    return own_folders(world, "CON")


@bad("convert", r"case id 'P1.' cannot be a file name")
def case_id_with_a_dot_at_the_end(world: Path) -> list[str]:
    return own_folders(world, "P1.")


@bad("convert", r"case id 'x+'... is too long for names of files: 240 letters, at most 180")
def case_id_too_long_for_a_file(world: Path) -> list[str]:
    return own_folders(world, "x" * 240)


@bad("convert", r"case id P1 and p1 differ in upper and lower case only")
def case_ids_of_upper_and_lower_case(world: Path) -> list[str]:
    own_folders(world, "p1")
    return own_folders(world, "P1")


@bad("convert", r"patient P1 and p1 differ in upper and lower case only")
def patients_of_upper_and_lower_case(world: Path) -> list[str]:
    own_folders(world, "p1/a")
    own_folders(world, "P1/b")
    return ["folders", str(world / "own"), *NEW, "--channel", "T1={patient}/{visit}/T1.nii.gz"]


@bad("convert", r"two files for T1 of case P1: .* of two visits, use `folders` with {patient} and {visit}")
def two_visits_in_a_folder_of_one_case(world: Path) -> list[str]:
    own_folders(world, "P1")
    shutil.copy(image(world), world / "own" / "P1" / "T1_2.nii.gz")
    return ["folders", str(world / "own"), *NEW, "--channel", "T1={case}/T1*.nii.gz"]


@bad("convert", r"case id a_b_c stands for patient a and for patient a_b")
def visits_that_get_the_same_id(world: Path) -> list[str]:
    own_folders(world, "a/b_c")
    own_folders(world, "a_b/c")
    return ["folders", str(world / "own"), *NEW, "--channel", "T1={patient}/{visit}/T1.nii.gz"]


@bad("convert", r"the pattern '{patient}/{visits}/T1.nii.gz' must contain")
def pattern_with_an_unknown_placeholder(world: Path) -> list[str]:
    return ["folders", str(world / "source"), *NEW, "--channel", "T1={patient}/{visits}/T1.nii.gz"]


@bad("convert", r"must contain the same of {case}, {patient} and {visit}")
def patterns_with_other_placeholders(world: Path) -> list[str]:
    return own_folders(world, "P1/a", "--channel", "T2={patient}/{visit}/T2.nii.gz")


@bad("convert", r"'P1/T1.nii.gz' matches P1/{case}.nii.gz and {case}/T1.nii.gz")
def a_file_of_two_patterns(world: Path) -> list[str]:
    own_folders(world, "P1")
    channels = ["--channel", "T1=P1/{case}.nii.gz", "--channel", "T2={case}/T1.nii.gz"]
    return ["folders", str(world / "own"), *NEW, *channels]


@bad("convert", r"--label {case}/seg.nii.gz: none of the 1 cases .* has such a segmentation")
def label_that_is_nowhere(world: Path) -> list[str]:
    return own_folders(world, "P1", "--label", "{case}/seg.nii.gz", "--classes", "lesion=1")


@bad("convert", r"1 problems, listed above; nothing was written")
def dry_run_with_a_problem(world: Path) -> list[str]:
    text_instead_of_gzip(world)
    return convert(world, "--dry_run")


def collection(world: Path, text: str) -> list[str]:
    """A source that is described by this text."""
    (world / "collection").mkdir()
    (world / "collection" / "pretrain_data.json").write_text(text)
    return ["nnssl", str(world / "collection"), *NEW, "--channel", "T1=T1w"]


def one_image(place: Any) -> str:
    images = [{"modality": "T1w"} | ({} if place is None else {"image_path": place})]
    return json.dumps({"datasets": {"D": {"subjects": {"S": {"sessions": {"V": {"images": images}}}}}}})


@bad("convert", r"pretrain_data.json is not as nnssl writes it \(RecursionError")
def collection_of_deep_json(world: Path) -> list[str]:
    return collection(world, "[" * 200_000)


@bad("convert", r"pretrain_data.json is not as nnssl writes it \(AttributeError")
def collection_whose_path_is_a_number(world: Path) -> list[str]:
    return collection(world, one_image(7))


@bad("convert", r"pretrain_data.json is not as nnssl writes it \(KeyError: 'image_path'")
def collection_without_paths(world: Path) -> list[str]:
    return collection(world, one_image(None))


@bad("convert", r"pretrain_data.json is not as nnssl writes it \(ValueError")
def collection_whose_path_holds_zero(world: Path) -> list[str]:
    return collection(world, one_image("a\0b.nii.gz"))


@bad("convert", r"case id a_b_c__V stands for two cases")
def collection_with_an_id_twice(world: Path) -> list[str]:
    shutil.copy(image(world), world / "T1.nii.gz")
    person = {"sessions": {"V": {"images": [{"modality": "T1w", "image_path": "T1.nii.gz"}]}}}
    content = {"datasets": {"a_b": {"subjects": {"c": person}}, "a": {"subjects": {"b_c": person}}}}
    return collection(world, json.dumps(content))


@bad("convert", r"leads out of")
def collection_that_points_outside(world: Path) -> list[str]:
    shutil.copy(image(world), world / "secret.nii.gz")
    (world / "collection").mkdir()
    outside = [{"modality": "T1w", "image_path": "$nnssl_raw/../secret.nii.gz"}]
    content = {"datasets": {"D": {"subjects": {"S": {"sessions": {"V": {"images": outside}}}}}}}
    (world / "collection" / "pretrain_data.json").write_text(json.dumps(content))
    return ["nnssl", str(world / "collection"), *NEW, "--channel", "T1=T1w"]


@bad("convert", r"case id '../../D_S__V' cannot be a file name")
def collection_with_a_path_as_case_id(world: Path) -> list[str]:
    (world / "collection").mkdir()
    shutil.copy(image(world), world / "collection")
    images = [{"modality": "T1w", "image_path": f"$nnssl_raw/{image(world).name}"}]
    content = {"datasets": {"../../D": {"subjects": {"S": {"sessions": {"V": {"images": images}}}}}}}
    (world / "collection" / "pretrain_data.json").write_text(json.dumps(content))
    return ["nnssl", str(world / "collection"), *NEW, "--channel", "T1=T1w"]


@bad("convert", r"pretrain_data.json is not as nnssl writes it")
def collection_of_broken_json(world: Path) -> list[str]:
    (world / "collection").mkdir()
    (world / "collection" / "pretrain_data.json").write_text('{"datasets": {')
    return ["nnssl", str(world / "collection"), *NEW]


@bad("convert", r"SOURCE .* is not a folder")
def no_source(world: Path) -> list[str]:
    return ["brats2023", str(world / "nowhere"), *NEW]


@bad("convert", r"no case found")
def source_without_cases(world: Path) -> list[str]:
    return ["brats2023", str(world / "results"), *NEW]


@bad("convert", r"-d 1000: a data set id is a number from 1 to 999")
def data_set_id_too_large(world: Path) -> list[str]:
    return ["brats2023", str(world / "source"), "-d", "1000"]


@bad("convert", r"argument -d: invalid int value: 'one'")
def data_set_id_is_text(world: Path) -> list[str]:
    return ["brats2023", str(world / "source"), "-d", "one"]


@bad("convert", r"this data set id is used already")
def data_set_id_is_used(world: Path) -> list[str]:
    return ["brats2023", str(world / "source"), "-d", "1"]


@bad("convert", r"--name '../up': use letters")
def name_that_leads_outside(world: Path) -> list[str]:
    return convert(world, "--name", "../up")


@bad("convert", r"unknown data set 'brats1999'")
def unknown_family(world: Path) -> list[str]:
    return ["brats1999", str(world / "source"), *NEW]


@bad("convert", r"--resample-to PD: the channels are")
def resample_to_unknown_channel(world: Path) -> list[str]:
    return convert(world, "--resample-to", "PD")


@bad("convert", r"nnUNet_raw=.* is not a folder", nnUNet_raw="{folder}/source.txt")
def target_is_a_file(world: Path) -> list[str]:
    (world / "source.txt").write_text("")
    return convert(world)


@bad("convert", r"/proc/.*(No such file|Operation not permitted|Permission denied)", nnUNet_raw="/proc")
def target_that_cannot_be_written(world: Path) -> list[str]:
    return convert(world)


@bad("pool", r"needs at least two different data sets")
def pool_of_one(world: Path) -> list[str]:
    return ["-d", "1", "1", "-o", "9"]


@bad("pool", r"-d 55: expected one folder Dataset055_NAME")
def pool_of_unknown(world: Path) -> list[str]:
    return ["-d", "1", "55", "-o", "9"]


def second_raw(world: Path) -> Path:
    """A copy of the raw data set under another id."""
    return Path(shutil.copytree(world / "raw" / RAW, world / "raw" / "Dataset002_Raw"))


@bad("pool", r"--channels PD: the data sets have")
def pool_with_unknown_channel(world: Path) -> list[str]:
    second_raw(world)
    return ["-d", "1", "2", "-o", "9", "--channels", "PD"]


@bad("pool", r"different file endings")
def pool_of_different_endings(world: Path) -> list[str]:
    edit_json(second_raw(world) / "dataset.json", lambda content: content | {"file_ending": ".mha"})
    return ["-d", "1", "2", "-o", "9"]


@bad("pool", r"missing_channels.json must be a JSON object")
def pool_with_broken_missing_channels(world: Path) -> list[str]:
    (second_raw(world) / "missing_channels.json").write_text("[1, 2]")
    return ["-d", "1", "2", "-o", "9"]


@bad("pool", r"_0000.png holds several channels")
def pool_of_colour_pictures(world: Path) -> list[str]:
    for file in (raw(world) / "dataset.json", second_raw(world) / "dataset.json"):
        edit_json(file, lambda content: content | {"file_ending": ".png"})
        (file.parent / "imagesUnlabelled" / "slice_0000.png").write_bytes(b"colours")
    return ["-d", "1", "2", "-o", "9"]


@bad("pool", r"patients.json")
def pool_with_broken_patients(world: Path) -> list[str]:
    (second_raw(world) / "patients.json").write_text("[1, 2")
    return ["-d", "1", "2", "-o", "9"]


# ---------------------------------------------------------------------------------------------- planning


def edit_json(file: Path, change: Callable[[Any], Any]) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def planning(*options: str) -> list[str]:
    return ["-d", "1", "-c", "3d_fullres", "-np", "1", "-npfp", "1", *options]


def raw(world: Path) -> Path:
    return world / "raw" / RAW


@bad("plan_and_preprocess", r"-d 77: expected one folder Dataset077_NAME")
def plan_unknown_data_set(world: Path) -> list[str]:
    return ["-d", "77"]


@bad("plan_and_preprocess", r"dataset.json cannot be read as JSON")
def data_set_of_broken_json(world: Path) -> list[str]:
    (raw(world) / "dataset.json").write_text('{"labels": ')
    return planning()


@bad("plan_and_preprocess", r"dataset.json lacks labels")
def data_set_without_labels(world: Path) -> list[str]:
    edit_json(raw(world) / "dataset.json", lambda content: {k: v for k, v in content.items() if k != "labels"})
    return planning()


@bad("plan_and_preprocess", r"'channel_names' in .* must have the keys")
def channels_not_numbered(world: Path) -> list[str]:
    edit_json(raw(world) / "dataset.json", lambda content: content | {"channel_names": {"T1": 0}})
    return planning()


@bad("plan_and_preprocess", r"expected exactly the channels 0000 to 0003")
def too_many_channels(world: Path) -> list[str]:
    file = raw(world) / "imagesTr" / f"{CASE}_0003.nii.gz"
    shutil.copy(file, file.with_name(f"{CASE}_0004.nii.gz"))
    return planning()


@bad("plan_and_preprocess", r"expected exactly the channels 0000 to 0003")
def too_few_channels(world: Path) -> list[str]:
    (raw(world) / "imagesTr" / f"{CASE}_0002.nii.gz").unlink()
    return planning()


@bad("plan_and_preprocess", r"the case has 3 channels in 3 files, dataset.json has 4")
def too_few_channels_of_volumes_in_tif(world: Path) -> list[str]:
    """Colour pictures may have fewer files than channels, volumes may not."""
    import tifffile

    edit_json(raw(world) / "dataset.json", lambda content: content | {"file_ending": ".tif"})
    for channel in range(3):
        tifffile.imwrite(raw(world) / "imagesUnlabelled" / f"volume_{channel:04d}.tif", np.ones((9, 9, 9), np.uint8))
    return planning()


@bad("plan_and_preprocess", r"slice_0000.png: the case cannot be read")
def picture_of_text(world: Path) -> list[str]:
    edit_json(raw(world) / "dataset.json", lambda content: content | {"file_ending": ".png"})
    (raw(world) / "imagesUnlabelled" / "slice_0000.png").write_text("this is no picture")
    return planning()


@bad("plan_and_preprocess", r"expected exactly the channels 0000 to 0003")
def too_few_channels_of_an_unlabelled_case(world: Path) -> list[str]:
    (raw(world) / "imagesUnlabelled" / "BraTS-GLI-00003-000_0001.nii.gz").unlink()
    return planning()


@bad("plan_and_preprocess", r"labelsTr/.* is missing")
def image_without_label(world: Path) -> list[str]:
    (raw(world) / "labelsTr" / f"{CASE}.nii.gz").unlink()
    return planning()


@bad("plan_and_preprocess", r"_0001.nii.gz is truncated or damaged")
def truncated_raw_image(world: Path) -> list[str]:
    file = raw(world) / "imagesTr" / f"{CASE}_0001.nii.gz"
    file.write_bytes(file.read_bytes()[:-100])
    return planning()


@bad("plan_and_preprocess", r"holds no case")
def data_set_without_cases(world: Path) -> list[str]:
    for name in ("imagesTr", "labelsTr", "imagesUnlabelled"):
        shutil.rmtree(raw(world) / name)
    return planning()


@bad("plan_and_preprocess", r"label|value|7")
def raw_label_out_of_range(world: Path) -> list[str]:
    file = raw(world) / "labelsTr" / f"{CASE}.nii.gz"
    rewrite(file, lambda voxels: np.where(voxels == 2, 7, voxels).astype(np.uint8))
    return planning("--verify_dataset_integrity")


@bad("plan_and_preprocess", r"-gpu_memory_target must be a positive number")
def negative_memory(world: Path) -> list[str]:
    return planning("-gpu_memory_target", "-3")


@bad("plan_and_preprocess", r"-overwrite_plans_name '../../evil'")
def plans_name_that_leads_outside(world: Path) -> list[str]:
    return planning("-overwrite_plans_name", "../../evil")


@bad("plan_and_preprocess", r"-np .* at least 1")
def no_workers(world: Path) -> list[str]:
    return planning("-np", "0")


@bad("plan_and_preprocess", r"-d 88: expected one folder")
def like_unknown_data_set(world: Path) -> list[str]:
    return planning("--like", "88")


@bad("plan_and_preprocess", r"damaged or no checkpoint")
def like_damaged_checkpoint(world: Path) -> list[str]:
    return planning("--like", str(damaged_checkpoint(world)))


@bad("plan_and_preprocess", r"splits_final.json")
def raw_split_of_broken_json(world: Path) -> list[str]:
    (raw(world) / "splits_final.json").write_text("[{")
    return planning("--no_pp")


def patients(world: Path, *rows: str) -> list[str]:
    (world / "whose.csv").write_text("\n".join(["case,patient", *rows]))
    return planning("--no_pp", "--patients", str(world / "whose.csv"))


@bad("plan_and_preprocess", r"--patients names cases that are not in .*: ghost")
def patients_of_an_unknown_case(world: Path) -> list[str]:
    return patients(world, f"{CASE},a", "ghost,a")


@bad("plan_and_preprocess", r"row 2 below the head line: case .* is there twice")
def patients_with_a_case_twice(world: Path) -> list[str]:
    return patients(world, f"{CASE},a", f"{CASE},b")


@bad("plan_and_preprocess", r"whose.csv must have a head line with 'case' and 'patient'")
def patients_without_head_line(world: Path) -> list[str]:
    arguments = patients(world)
    (world / "whose.csv").write_text(f"{CASE},a\n")
    return arguments


@bad("plan_and_preprocess", r"fold 0 of .* trains and validates on cases of patient a")
def patients_whom_a_split_parts(world: Path) -> list[str]:
    fold = {"train": [CASE], "val": ["BraTS-GLI-00002-000"]}
    (raw(world) / "splits_final.json").write_text(json.dumps([fold]))
    return patients(world, f"{CASE},a", "BraTS-GLI-00002-000,a")


@bad("plan_and_preprocess", r"patients.json says already whose each case is")
def patients_told_twice(world: Path) -> list[str]:
    (raw(world) / "patients.json").write_text(json.dumps({CASE: "a"}))
    return patients(world, f"{CASE},a")


@bad("plan_and_preprocess", r"--patients goes with one data set")
def patients_of_two_data_sets(world: Path) -> list[str]:
    return ["-d", "1", "2", *patients(world)[2:]]


# ---------------------------------------------------------------------------------------------- training


def preprocessed(world: Path) -> Path:
    return world / "preprocessed" / DATASET


def edit_plans(world: Path, change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> None:
    """Change plans (first argument) or their configuration (second); results are moved out of the way."""
    file = preprocessed(world) / f"{PLANS}.json"
    plans = json.loads(file.read_text())
    change(plans, plans["configurations"]["tiny"])
    file.write_text(json.dumps(plans))
    shutil.rmtree(world / "results" / DATASET)


def training(fold: str = "0", trainer: str = "nnUNetTrainerEMIM", *options: str) -> list[str]:
    return [DATASET_ID, "tiny", fold, "-tr", trainer, "-p", PLANS, "-device", "cpu", *options]


@bad("train", r"-d 55: expected one folder Dataset055_NAME")
def train_unknown_data_set(world: Path) -> list[str]:
    return ["55", *training()[1:]]


@bad("train", r"data set ../../x: neither a number nor the name of a folder")
def train_a_path(world: Path) -> list[str]:
    return ["../../x", *training()[1:]]


@bad("train", r"have no configuration '4d'")
def train_unknown_configuration(world: Path) -> list[str]:
    return [DATASET_ID, "4d", *training()[2:]]


@bad("train", r"-p Nowhere: .* has nnUNetEMIMPlans")
def train_unknown_plans(world: Path) -> list[str]:
    arguments = training()
    arguments[arguments.index(PLANS)] = "Nowhere"
    return arguments


@bad("train", r"-tr nnUNetTrainerNoSuch: there is no such trainer")
def train_unknown_trainer(world: Path) -> list[str]:
    return training("0", "nnUNetTrainerNoSuch")


@bad("train", r"fold 5: splits_final.json of .* has the folds 0 to 4")
def fold_too_large(world: Path) -> list[str]:
    return training("5")


@bad("pretrain", r"must be a number or 'all', not 'x'")
def fold_of_letters(world: Path) -> list[str]:
    return [DATASET_ID, "tiny", "x", "-device", "cpu"]


@bad("pretrain", r"-1")
def fold_negative(world: Path) -> list[str]:
    return [DATASET_ID, "tiny", "-1", "-device", "cpu"]


@bad("pretrain", r"is not the trainer of an SSL stage")
def pretrain_with_a_segmentation_trainer(world: Path) -> list[str]:
    return training("0", "nnUNetTrainerEMIMFinetune")


@bad("train", r"already holds an SSL stage")
def train_over_a_finished_stage(world: Path) -> list[str]:
    return training("0", TRAINER)


@bad("pretrain", r"nnUNetEMIMPlans.json cannot be read as JSON")
def plans_of_broken_json(world: Path) -> list[str]:
    (preprocessed(world) / f"{PLANS}.json").write_text('{"configurations": {')
    return pretraining()


@bad("pretrain", r"must be a JSON object")
def plans_are_a_list(world: Path) -> list[str]:
    (preprocessed(world) / f"{PLANS}.json").write_text("[1, 2]")
    return pretraining()


@bad("pretrain", r"'configurations' must be a JSON object")
def plans_without_configurations(world: Path) -> list[str]:
    edit_plans(world, lambda plans, tiny: plans.pop("configurations"))
    return pretraining()


@bad("pretrain", r"unknown key 'cell_sise'")
def unknown_setting(world: Path) -> list[str]:
    edit_plans(world, lambda plans, tiny: tiny["emim"].update(cell_sise=4))
    return pretraining()


@bad("pretrain", r"key 'num_epochs' .* must be a int")
def setting_of_wrong_type(world: Path) -> list[str]:
    edit_plans(world, lambda plans, tiny: tiny["emim"].update(num_epochs="many"))
    return pretraining()


@bad("pretrain", r"initial_lr must be positive")
def setting_out_of_range(world: Path) -> list[str]:
    edit_plans(world, lambda plans, tiny: tiny["emim"].update(initial_lr=-1.0))
    return pretraining()


@bad("pretrain", r"initial_lr must be a finite number, not inf")
def learning_rate_infinite(world: Path) -> list[str]:
    edit_plans(world, lambda plans, tiny: tiny["emim"].update(initial_lr=float("inf")))
    return pretraining()


@bad("pretrain", r"gradient_clip must be a finite number, not inf")
def gradient_clip_infinite(world: Path) -> list[str]:
    edit_plans(world, lambda plans, tiny: tiny["emim"].update(gradient_clip=float("inf")))
    return pretraining()


@bad("pretrain", r"batch_size must be at most 10000, not 1000000")
def batch_of_a_million(world: Path) -> list[str]:
    edit_plans(world, lambda plans, tiny: tiny["emim"].update(batch_size=10**6))
    return pretraining()


@bad("pretrain", r"num_epochs must be at most 1000000")
def epochs_without_end(world: Path) -> list[str]:
    edit_plans(world, lambda plans, tiny: tiny["emim"].update(num_epochs=10**18))
    return pretraining()


@bad("pretrain", r"'n_blocks_per_stage' of the network is out of range, it may be 100 at most")
def blocks_of_a_million(world: Path) -> list[str]:
    kwargs = {"n_blocks_per_stage": [1, 1, 10**6]}
    edit_plans(world, lambda plans, tiny: tiny["architecture"]["arch_kwargs"].update(kwargs))
    return pretraining()


@bad("pretrain", r"'features_per_stage' of the network is out of range")
def features_of_a_million(world: Path) -> list[str]:
    kwargs = {"features_per_stage": [10**6] * 3}
    edit_plans(world, lambda plans, tiny: tiny["architecture"]["arch_kwargs"].update(kwargs))
    return pretraining()


@bad("pretrain", r"'patch_size' of configuration 'tiny' must be")
def patch_size_negative(world: Path) -> list[str]:
    edit_plans(world, lambda plans, tiny: tiny.update(patch_size=[-32, 32, 32]))
    return pretraining()


@bad("pretrain", r"must order 0, 1, 2")
def axes_not_in_order(world: Path) -> list[str]:
    edit_plans(world, lambda plans, tiny: plans.update(transpose_forward=[0, 0, 2]))
    return pretraining()


@bad("pretrain", r"inherits from itself")
def configurations_in_a_circle(world: Path) -> list[str]:
    edit_plans(world, lambda plans, tiny: tiny.update(inherits_from="tiny"))
    return pretraining()


@bad("pretrain", r"network 'subprocess.getoutput', which is not one of nnU-Net's")
def plans_that_call_a_program(world: Path) -> list[str]:
    call = {
        "network_class_name": "subprocess.getoutput",
        "arch_kwargs": {"cmd": f"touch {world}/owned"},
        "_kw_requires_import": [],
    }
    edit_plans(world, lambda plans, tiny: tiny.update(architecture=call))
    return pretraining()


@bad("pretrain", r"'conv_op' of the network is 'os.system'")
def plans_that_import_something_else(world: Path) -> list[str]:
    edit_plans(world, lambda plans, tiny: tiny["architecture"]["arch_kwargs"].update(conv_op="os.system"))
    return pretraining()


@bad("pretrain", r"'data_identifier' .* must be a name that a folder can have")
def plans_that_read_elsewhere(world: Path) -> list[str]:
    edit_plans(world, lambda plans, tiny: tiny.update(data_identifier="../../elsewhere"))
    return pretraining()


@bad("pretrain", r"'dataset_name' must be a name that a folder can have")
def plans_that_write_elsewhere(world: Path) -> list[str]:
    edit_plans(world, lambda plans, tiny: plans.update(dataset_name="../../evil"))
    return pretraining()


@bad("pretrain", r"is of another data set, Dataset111_Other")
def plans_of_another_data_set(world: Path) -> list[str]:
    edit_plans(world, lambda plans, tiny: plans.update(dataset_name="Dataset111_Other"))
    return pretraining()


@bad("pretrain", r"dataset.json")
def wrong_channel_count(world: Path) -> list[str]:
    shutil.rmtree(world / "results" / DATASET)
    edit_json(preprocessed(world) / "dataset.json", lambda content: content | {"channel_names": {"0": "T1"}})
    return pretraining()


@bad("pretrain", r"no preprocessed case in")
def nothing_preprocessed(world: Path) -> list[str]:
    shutil.rmtree(preprocessed(world) / "tiny")
    return pretraining()


@bad("pretrain", r"has one labelled case, which cannot be split: use fold 'all'|has the folds")
def one_case_and_a_fold(world: Path) -> list[str]:
    shutil.rmtree(world / "results" / DATASET)
    for file in (preprocessed(world) / "tiny").glob("case0000[1-9]*"):
        file.unlink()
    (preprocessed(world) / "splits_final.json").unlink()
    return pretraining()


@bad("pretrain", r"has labelled cases of one patient, which cannot be split: use fold 'all'")
def one_patient_and_a_fold(world: Path) -> list[str]:
    shutil.rmtree(world / "results" / DATASET)
    cases = [file.stem for file in (preprocessed(world) / "tiny").glob("*.pkl")]
    (preprocessed(world) / "patients.json").write_text(json.dumps(dict.fromkeys(cases, "a")))
    (preprocessed(world) / "splits_final.json").unlink()
    return pretraining()


@bad("pretrain", r"splits_final.json cannot be read as JSON")
def split_of_broken_json(world: Path) -> list[str]:
    (preprocessed(world) / "splits_final.json").write_text("[{")
    return pretraining()


@bad("pretrain", r"names cases that are not preprocessed: ghost")
def split_with_unknown_case(world: Path) -> list[str]:
    file = preprocessed(world) / "splits_final.json"
    edit_json(file, lambda folds: [fold | {"train": [*fold["train"], "ghost"]} for fold in folds])
    return pretraining()


@bad("pretrain", r"must be a list of folds")
def split_of_wrong_form(world: Path) -> list[str]:
    (preprocessed(world) / "splits_final.json").write_text('{"train": []}')
    return pretraining()


@bad("pretrain", r"patients.json must be a JSON object")
def patients_of_wrong_form(world: Path) -> list[str]:
    shutil.rmtree(world / "results" / DATASET)
    (preprocessed(world) / "patients.json").write_text("[]")
    return pretraining()


@bad("pretrain", r"the preprocessed case case0000\d cannot be read")
def damaged_preprocessed_cases(world: Path) -> list[str]:
    shutil.rmtree(world / "results" / DATASET)
    for file in (preprocessed(world) / "tiny").glob("*[0-9].b2nd"):
        file.write_bytes(file.read_bytes()[:50])
    return pretraining()


@bad("pretrain", r"is damaged or no checkpoint")
def continue_from_damage(world: Path) -> list[str]:
    for name in ("checkpoint_final.pth", "checkpoint_previous.pth"):
        (stage_folder(world) / name).write_bytes(b"PK\x03\x04 nothing")
    return pretraining("EMIM", "--c")


@bad("pretrain", r"was written by a newer emim_nnunet")
def continue_from_the_future(world: Path) -> list[str]:
    for name in ("checkpoint_final.pth", "checkpoint_previous.pth"):
        edit_checkpoint(stage_folder(world) / name, lambda content: content | {"format_version": 99})
    return pretraining("EMIM", "--c")


@bad("pretrain", r"ssl_log.csv\) but no checkpoint")
def continue_without_a_checkpoint(world: Path) -> list[str]:
    for file in stage_folder(world).glob("checkpoint_*"):
        file.unlink()
    return pretraining("EMIM", "--c")


@bad("pretrain", r"the SSL stage there was made with another value of patch_ratio")
def continue_with_other_settings(world: Path) -> list[str]:
    file = preprocessed(world) / f"{PLANS}.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["tiny"]["emim"]["patch_ratio"] = 0.3
    file.write_text(json.dumps(plans))
    return pretraining("EMIM", "--c")


def unfinished(world: Path) -> Path:
    """Let the finished stage be one that stopped in its last epoch; its folder."""
    folder = stage_folder(world)
    (folder / "checkpoint_final.pth").unlink()
    (folder / "checkpoint_previous.pth").rename(folder / "checkpoint_latest.pth")
    return folder


def changed_plans(world: Path, change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> None:
    """Change plans as in :func:`edit_plans`; the results stay."""

    def changed(plans: dict[str, Any]) -> dict[str, Any]:
        change(plans, plans["configurations"]["tiny"])
        return plans

    edit_json(preprocessed(world) / f"{PLANS}.json", changed)


def continue_after(world: Path, change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> list[str]:
    unfinished(world)
    changed_plans(world, change)
    return pretraining("EMIM", "--c")


def swap_channels(world: Path) -> None:
    edit_json(preprocessed(world) / "dataset.json", lambda c: c | {"channel_names": {"0": "channel1", "1": "channel0"}})


def replace_case(world: Path) -> None:
    """Another image under the same name, of the same size."""
    folder = preprocessed(world) / "tiny"
    shutil.copy(folder / "case00001.b2nd", folder / "case00002.b2nd")


@bad("pretrain", r"another value of patch_size \(\[32, 32, 32\], now \[16, 16, 16\]\)", kind="changed runs")
def continue_with_another_patch(world: Path) -> list[str]:
    return continue_after(world, lambda plans, tiny: tiny.update(patch_size=[16] * 3))


@bad("pretrain", r"another value of spacing", kind="changed runs")
def continue_with_another_spacing(world: Path) -> list[str]:
    return continue_after(world, lambda plans, tiny: tiny.update(spacing=[3.0, 1.0, 1.0]))


@bad("pretrain", r"another value of normalization_schemes", kind="changed runs")
def continue_with_another_normalisation(world: Path) -> list[str]:
    return continue_after(world, lambda plans, tiny: tiny.update(normalization_schemes=["NoNormalization"] * 2))


@bad("pretrain", r"another value of use_mask_for_norm", kind="changed runs")
def continue_with_another_mask(world: Path) -> list[str]:
    return continue_after(world, lambda plans, tiny: tiny.update(use_mask_for_norm=[False] * 2))


@bad("pretrain", r"another value of nonlin ", kind="changed runs")
def continue_with_another_nonlinearity(world: Path) -> list[str]:
    return continue_after(world, lambda _, tiny: tiny["architecture"]["arch_kwargs"].update(nonlin="torch.nn.ReLU"))


@bad("pretrain", r"another value of strides", kind="changed runs")
def continue_with_other_strides(world: Path) -> list[str]:
    strides = [[1, 1, 1], [2, 2, 2], [1, 2, 2]]
    return continue_after(world, lambda plans, tiny: tiny["architecture"]["arch_kwargs"].update(strides=strides))


@bad("pretrain", r"another value of transpose_forward", kind="changed runs")
def continue_with_transposed_axes(world: Path) -> list[str]:
    return continue_after(world, lambda plans, tiny: plans.update(transpose_forward=[1, 0, 2]))


@bad("pretrain", r"another value of data_identifier", kind="changed runs")
def continue_with_another_folder(world: Path) -> list[str]:
    shutil.copytree(preprocessed(world) / "tiny", preprocessed(world) / "other")
    return continue_after(world, lambda plans, tiny: tiny.update(data_identifier="other"))


@bad("pretrain", r"with the channels channel0, channel1, dataset.json now has channel1, channel0", kind="changed runs")
def continue_with_swapped_channels(world: Path) -> list[str]:
    unfinished(world)
    swap_channels(world)
    return pretraining("EMIM", "--c")


@bad("pretrain", r"content of 1 preprocessed cases has changed .*\(case00002\)", kind="changed runs")
def continue_with_a_replaced_case(world: Path) -> list[str]:
    unfinished(world)
    replace_case(world)
    return pretraining("EMIM", "--c")


@bad("pretrain", r"content of 6 preprocessed cases has changed", kind="changed runs")
def continue_with_other_data_of_the_same_names(world: Path) -> list[str]:
    unfinished(world)
    folder = preprocessed(world) / "tiny"
    shutil.rmtree(folder)
    write_cases(folder, 6, 2, (20, 20, 20), 32)
    (preprocessed(world) / "tiny.checksums").unlink()  # as an older version leaves it
    return pretraining("EMIM", "--c")


@bad("train", r"another value of normalization_schemes .*, spacing ", kind="changed runs")
def segmentation_after_a_stage_on_other_intensities(world: Path) -> list[str]:
    changed_plans(
        world, lambda plans, tiny: tiny.update(normalization_schemes=["NoNormalization"] * 2, spacing=[3] * 3)
    )
    return training("0", "nnUNetTrainerEMIMFinetune")


@bad("train", r"content of 1 preprocessed cases has changed", kind="changed runs")
def segmentation_after_a_stage_on_other_images(world: Path) -> list[str]:
    replace_case(world)
    return training("0", "nnUNetTrainerEMIMFinetune")


@bad("pretrain", r"does not fit the network of this stage", kind="changed runs")
def continue_with_weights_of_other_shapes(world: Path) -> list[str]:
    def change(content: dict[str, Any]) -> dict[str, Any]:
        weights = content["network_weights"]
        key = next(k for k in weights if k.startswith("encoder.") and weights[k].ndim == 1)
        weights[key] = weights[key][:1]
        return content

    edit_checkpoint(unfinished(world) / "checkpoint_latest.pth", change)
    return pretraining("EMIM", "--c")


@bad("pretrain", r"does not fit the network of this stage", kind="changed runs")
def continue_with_moments_of_other_shapes(world: Path) -> list[str]:
    def change(content: dict[str, Any]) -> dict[str, Any]:
        state = content["optimizer_state"]["state"]
        state[0]["exp_avg"] = state[0]["exp_avg"][:1]
        return content

    edit_checkpoint(unfinished(world) / "checkpoint_latest.pth", change)
    return pretraining("EMIM", "--c")


@bad("pretrain", r"'history' must be rows of numbers")
def continue_with_a_history_of_another_type(world: Path) -> list[str]:
    file = unfinished(world) / "checkpoint_latest.pth"
    edit_checkpoint(file, lambda content: content | {"history": {"epoch": 1}})
    return pretraining("EMIM", "--c")


@bad("pretrain", r"nnUNet_preprocessed is not set|expected one folder", nnUNet_preprocessed="")
def no_variable(world: Path) -> list[str]:
    return pretraining()


@bad("estimate", r"--steps must be at least 1")
def estimate_of_no_steps(world: Path) -> list[str]:
    return [DATASET_ID, "tiny", "0", "-device", "cpu", "--steps", "0"]


@bad("estimate", r"its folder does not exist")
def estimate_into_nowhere(world: Path) -> list[str]:
    return [DATASET_ID, "tiny", "0", "-device", "cpu", "--json", str(world / "no" / "where.json")]


@bad("estimate", r"fold 9: splits_final.json")
def estimate_of_no_fold(world: Path) -> list[str]:
    return [DATASET_ID, "tiny", "9", "-device", "cpu"]


def add_gpu_that_is_not_there(name: str, arguments: Callable[[Path], list[str]]) -> None:
    """Ask a command for a GPU on a machine that has none."""

    @bad(name, r"there is no GPU: use -device cpu", CUDA_VISIBLE_DEVICES="")
    def gpu_that_is_not_there(world: Path) -> list[str]:
        return [*arguments(world), "-device", "cuda"]


for _name, _arguments in {
    "train": lambda world: [DATASET_ID, "tiny", "0", "-tr", TRAINER, "-p", PLANS],
    "pretrain": lambda world: [DATASET_ID, "tiny", "0"],
    "estimate": lambda world: [DATASET_ID, "tiny", "0"],
    "diagnose": lambda world: [str(final(world)), "-d", DATASET_ID, "-o", str(world / "report")],
    "compare": lambda world: [DATASET_ID, "tiny", "-o", str(world / "comparison")],
    "classify": lambda world: classify(world, "case,kind\ncase00000,a\ncase00001,b\n")[:-2],
    "demo": lambda world: ["-o", str(world / "demo")],
}.items():
    add_gpu_that_is_not_there(_name, _arguments)


@bad("train", r"there is no GPU: use -device cpu", CUDA_VISIBLE_DEVICES="")
def several_gpus_that_are_not_there(world: Path) -> list[str]:
    return [DATASET_ID, "tiny", "0", "-tr", TRAINER, "-p", PLANS, "-num_gpus", "2"]


@bad("train", r"-device gpu: must be one of cuda, cpu, mps")
def device_of_another_name(world: Path) -> list[str]:
    return [DATASET_ID, "tiny", "0", "-tr", TRAINER, "-p", PLANS, "-device", "gpu"]


@good("train", CUDA_VISIBLE_DEVICES="")
def no_gpu_and_no_device_named(world: Path) -> list[str]:
    return [DATASET_ID, "tiny", "0", "-tr", TRAINER, "-p", PLANS, "--c"]  # finished: nothing is trained


# ----------------------------------------------------------------------------------- data that run code


class Ends:
    """Its unpickling ends the process, with a code of its own."""

    def __reduce__(self) -> tuple:
        return os._exit, (13,)


def with_code(world: Path) -> None:
    """Code in the properties of all preprocessed cases; it would run when they are read as nnU-Net reads them."""
    for file in (preprocessed(world) / "tiny").glob("*.pkl"):
        file.write_bytes(pickle.dumps({"class_locations": Ends()}))


@bad("pretrain", "", kind="data that runs code")
def pretrain_beside_code(world: Path) -> list[str]:
    edit_plans(world, lambda plans, tiny: tiny["emim"].update(num_epochs=1))
    with_code(world)
    return pretraining()


@bad("diagnose", "", kind="data that runs code")
def diagnose_beside_code(world: Path) -> list[str]:
    with_code(world)
    report = ["-o", str(world / "report"), "-device", "cpu", "--patches", "2"]
    return [str(final(world)), "-d", DATASET_ID, *report]


@bad("classify", "", kind="data that runs code")
def classify_beside_code(world: Path) -> list[str]:
    with_code(world)
    return classify(world, two_classes(), "all")


@bad(
    "estimate",
    r"pkl of the preprocessed case case0000\d cannot be read without running code",
    kind="data that runs code",
)
def estimate_a_segmentation_beside_code(world: Path) -> list[str]:
    with_code(world)
    return [DATASET_ID, "tiny", "0", "-tr", "nnUNetTrainerEMIMFinetune", "-device", "cpu", "--steps", "1"]


@bad(
    "train", r"pkl of the preprocessed case case0000\d cannot be read without running code", kind="data that runs code"
)
def segmentation_beside_code(world: Path) -> list[str]:
    with_code(world)
    changed_plans(world, lambda plans, tiny: tiny["emim"].update(finetune_init="scratch"))
    return training("0", "nnUNetTrainerEMIMFinetune")


# ------------------------------------------------------------------------------------------- checkpoints


class Malicious:
    """Its unpickling creates a folder."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.victim),)


def edit_checkpoint(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    import torch

    torch.save(change(torch.load(file, weights_only=True)), file)
    return file


def final(world: Path) -> Path:
    return stage_folder(world) / "checkpoint_final.pth"


def damaged_checkpoint(world: Path) -> Path:
    file = final(world)
    file.write_bytes(file.read_bytes()[:3000])
    return file


def exporting(checkpoint: Path, world: Path, *options: str) -> list[str]:
    return [str(checkpoint), "-d", DATASET_ID, "-c", "tiny", "-o", str(world / "weights.pth"), *options]


@bad("export", r"neither a file nor a folder with checkpoint_final.pth")
def export_of_nothing(world: Path) -> list[str]:
    return exporting(world / "nothing.pth", world)


@bad("export", r"damaged or no checkpoint")
def export_of_a_truncated_checkpoint(world: Path) -> list[str]:
    return exporting(damaged_checkpoint(world), world)


@bad("export", r"objects that only running code could restore, which is refused")
def export_of_a_malicious_checkpoint(world: Path) -> list[str]:
    return exporting(edit_checkpoint(final(world), lambda c: c | {"x": Malicious(world / "owned")}), world)


@bad("export", r"is not a checkpoint|damaged or no checkpoint")
def export_of_a_malicious_pickle(world: Path) -> list[str]:
    file = world / "evil.pth"
    file.write_bytes(pickle.dumps(Malicious(world / "owned")))
    return exporting(file, world)


@bad("export", r"has no 'network_weights'")
def export_of_something_else(world: Path) -> list[str]:
    return exporting(edit_checkpoint(final(world), lambda c: {"weights": c["network_weights"]}), world)


@bad("export", r"newer emim_nnunet")
def export_from_the_future(world: Path) -> list[str]:
    return exporting(edit_checkpoint(final(world), lambda c: c | {"format_version": 99}), world)


@bad("export", r"it lacks plans")
def export_without_plans(world: Path) -> list[str]:
    return exporting(edit_checkpoint(final(world), lambda c: {k: v for k, v in c.items() if k != "plans"}), world)


@bad("export", r"network 'os.system', which is not one of nnU-Net's")
def export_with_a_program_in_its_plans(world: Path) -> list[str]:
    def change(content: dict[str, Any]) -> dict[str, Any]:
        content["plans"]["configurations"]["tiny"]["architecture"]["network_class_name"] = "os.system"
        return content

    return exporting(edit_checkpoint(final(world), change), world)


@bad("export", r"weights.pth exists")
def export_over_a_file(world: Path) -> list[str]:
    (world / "weights.pth").write_text("precious")
    return exporting(final(world), world)


@bad("export", r"its folder does not exist")
def export_into_nowhere(world: Path) -> list[str]:
    return [str(final(world)), "-d", DATASET_ID, "-c", "tiny", "-o", str(world / "no" / "where.pth")]


@bad("export", r"-c 9d: the plans .* have tiny")
def export_for_an_unknown_configuration(world: Path) -> list[str]:
    return [str(final(world)), "-d", DATASET_ID, "-c", "9d", "-o", str(world / "weights.pth")]


@bad("export", r"features_per_stage")
def export_into_another_network(world: Path) -> list[str]:
    def change(plans: dict[str, Any], tiny: dict[str, Any]) -> None:
        tiny["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 8, 32]

    shutil.copy(final(world), world / "old.pth")
    edit_plans(world, change)
    return exporting(world / "old.pth", world)


@bad("export", r"the encoder in .* does not fit")
def export_of_weights_of_other_shapes(world: Path) -> list[str]:
    def change(content: dict[str, Any]) -> dict[str, Any]:
        weights = content["network_weights"]
        key = next(k for k in weights if k.startswith("encoder.") and weights[k].ndim == 1)
        weights[key] = weights[key][:1]
        return content

    return exporting(edit_checkpoint(final(world), change), world)


@bad("export", r"-d is needed")
def export_for_nobody(world: Path) -> list[str]:
    return [str(final(world)), "-o", str(world / "weights.pth")]


def diverged(world: Path, value: float) -> Path:
    """The final checkpoint with one weight of the encoder that is not finite."""

    def change(content: dict[str, Any]) -> dict[str, Any]:
        weights = content["network_weights"]
        weights[next(k for k in weights if k.startswith("encoder."))].view(-1)[0] = value
        return content

    return edit_checkpoint(final(world), change)


@bad("export", r"holds NaN or infinite weights in \d+ of \d+ tensors")
def export_of_weights_that_are_nan(world: Path) -> list[str]:
    return exporting(diverged(world, float("nan")), world)


@bad("export", r"holds NaN or infinite weights")
def export_of_an_encoder_that_is_infinite(world: Path) -> list[str]:
    return [str(diverged(world, float("inf"))), "--encoder_only", "-o", str(world / "weights.pth")]


@bad("train", r"holds NaN or infinite weights")
def segmentation_from_a_stage_that_is_nan(world: Path) -> list[str]:
    diverged(world, float("nan"))
    return training("0", "nnUNetTrainerEMIMFinetune")


@bad("train", r"-pretrained_weights .* holds NaN or infinite weights")
def pretrained_weights_that_are_nan(world: Path) -> list[str]:
    return training("0", "nnUNetTrainer", "-pretrained_weights", str(diverged(world, float("nan"))))


@bad("classify", r"holds NaN or infinite weights")
def classify_with_an_encoder_that_is_nan(world: Path) -> list[str]:
    options = classify(world, two_classes(), "all")
    options.remove("--scratch")
    return [*options, "--checkpoint", str(diverged(world, float("nan")))]


@bad("export", r"'features_per_stage' of the network is out of range, it may be 4096 at most")
def export_of_a_giant_network(world: Path) -> list[str]:
    return exporting(giant(world), world)


@bad("diagnose", r"'features_per_stage' of the network is out of range")
def diagnose_a_giant_network(world: Path) -> list[str]:
    return [str(giant(world)), "-d", DATASET_ID, "-o", str(world / "report"), "-device", "cpu"]


def giant(world: Path) -> Path:
    def change(content: dict[str, Any]) -> dict[str, Any]:
        kwargs = content["plans"]["configurations"]["tiny"]["architecture"]["arch_kwargs"]
        kwargs["features_per_stage"] = [1 << 20] * 3
        return content

    return edit_checkpoint(final(world), change)


@bad("train", r"objects that only running code could restore, which is refused")
def malicious_pretrained_weights(world: Path) -> list[str]:
    file = edit_checkpoint(final(world), lambda c: c | {"x": Malicious(world / "owned")})
    return training("0", "nnUNetTrainerEMIMFinetune", "-pretrained_weights", str(file))


@bad("train", r"pretrained.pth does not exist")
def missing_pretrained_weights(world: Path) -> list[str]:
    return training("0", "nnUNetTrainerEMIMFinetune", "-pretrained_weights", str(world / "pretrained.pth"))


@bad("train", r"objects that only running code could restore, which is refused")
def segmentation_continues_from_a_malicious_checkpoint(world: Path) -> list[str]:
    folder = stage_folder(world).parent
    target = folder.with_name(folder.name.replace("EMIMPretrain", "EMIMFinetune")) / "fold_0"
    target.mkdir(parents=True)
    shutil.copy(edit_checkpoint(final(world), lambda c: c | {"x": Malicious(world / "owned")}), target)
    return training("0", "nnUNetTrainerEMIMFinetune", "--c")


@bad("diagnose", r"damaged or no checkpoint")
def diagnose_damage(world: Path) -> list[str]:
    return [str(damaged_checkpoint(world)), "-d", DATASET_ID, "-o", str(world / "report"), "-device", "cpu"]


@bad("diagnose", r"-d 55: expected one folder")
def diagnose_on_unknown_data(world: Path) -> list[str]:
    return [str(final(world)), "-d", "55", "-o", str(world / "report"), "-device", "cpu"]


@bad("diagnose", r"--patches must be at least 1")
def diagnose_no_patches(world: Path) -> list[str]:
    return [str(final(world)), "-d", DATASET_ID, "-o", str(world / "report"), "--patches", "0"]


@bad("diagnose", r"the network that .* describes cannot be built")
def diagnose_an_impossible_network(world: Path) -> list[str]:
    def change(content: dict[str, Any]) -> dict[str, Any]:
        content["plans"]["configurations"]["tiny"]["architecture"]["arch_kwargs"]["n_stages"] = 9
        return content

    edit_checkpoint(final(world), change)
    return [str(final(world)), "-d", DATASET_ID, "-o", str(world / "report"), "-device", "cpu"]


# ------------------------------------------------------------------------------------- tables and comparisons


def two_classes() -> str:
    return "case,kind\n" + "".join(f"case{number:05d},{'ab'[number % 2]}\n" for number in range(6))


def classify(world: Path, table: str | bytes, fold: str = "0") -> list[str]:
    file = world / "labels.csv"
    file.write_bytes(table.encode() if isinstance(table, str) else table)
    options = ["--scratch", "--steps", "1", "-o", str(world / "classifier"), "-device", "cpu"]
    return ["train", DATASET_ID, "tiny", fold, str(file), *options]


@bad("classify", r"has no column 'case'")
def table_without_cases(world: Path) -> list[str]:
    return classify(world, "id,kind\ncase00000,a\n")


@bad("classify", r"names cases that are not preprocessed")
def table_of_other_cases(world: Path) -> list[str]:
    return classify(world, "case,kind\nghost,a\ncase00000,b\n")


@bad("classify", r"column 'kind' has 1 class")
def table_of_one_class(world: Path) -> list[str]:
    return classify(world, "case,kind\ncase00000,a\ncase00001,a\n")


@bad("classify", r"case case00000 is there twice")
def table_with_a_case_twice(world: Path) -> list[str]:
    return classify(world, "case,kind\ncase00000,a\ncase00000,b\n")


@bad("classify", r"line 3: expected 2 cells")
def table_with_a_short_line(world: Path) -> list[str]:
    return classify(world, "case,kind\ncase00000,a\ncase00001\n")


@bad("classify", r"has 5000 columns of classes, at most 100 at once: choose with --column")
def table_of_thousands_of_columns(world: Path) -> list[str]:
    names = ",".join(f"c{number}" for number in range(5000))
    rows = (f"case0000{number}" + f",{number}" * 5000 for number in range(6))
    return classify(world, "\n".join([f"case,{names}", *rows]))


@bad("classify", r"cannot be read as a CSV file in UTF-8")
def table_of_bytes(world: Path) -> list[str]:
    return classify(world, b"case,kind\n\xff\xfe\x00\n")


@bad("classify", r"labels.csv, line 3: field larger than field limit")
def table_with_an_endless_cell(world: Path) -> list[str]:
    return classify(world, f"case,kind\ncase00000,a\ncase00001,{'x' * 140_000}\n")


@bad("classify", r"column 'kind' is there twice")
def table_with_a_column_twice(world: Path) -> list[str]:
    return classify(world, "case,kind,kind\ncase00000,a,a\ncase00001,b,b\n")


@bad("classify", r"labels.csv is empty")
def table_of_nothing(world: Path) -> list[str]:
    return classify(world, "")


@bad("classify", r"damaged or no checkpoint|has no|not a checkpoint")
def predict_with_damage(world: Path) -> list[str]:
    return ["predict", str(damaged_checkpoint(world)), DATASET_ID, "-o", str(world / "p.csv"), "-device", "cpu"]


@bad("classify", r"nothing.csv")
def evaluate_nothing(world: Path) -> list[str]:
    classify(world, "case,kind\ncase00000,a\ncase00001,b\n")
    labels = ["--labels", str(world / "labels.csv"), "-o", str(world / "scores")]
    return ["evaluate", str(world / "nothing.csv"), *labels]


@bad("compare", r"--labelled: different whole numbers")
def compare_with_no_cases(world: Path) -> list[str]:
    return [DATASET_ID, "tiny", "-o", str(world / "comparison"), "--labelled", "0", "-device", "cpu"]


@bad("compare", r"NoSuch")
def compare_an_unknown_arm(world: Path) -> list[str]:
    return [DATASET_ID, "tiny", "-o", str(world / "comparison"), "--arms", "x=NoSuch", "-device", "cpu"]


@bad("compare", r"--num_test 99")
def compare_on_more_cases_than_there_are(world: Path) -> list[str]:
    return [DATASET_ID, "tiny", "-o", str(world / "comparison"), "--num_test", "99", "-device", "cpu"]


@bad("demo", r"exists")
def demo_over_something(world: Path) -> list[str]:
    (world / "demo").mkdir()
    (world / "demo" / "precious.txt").write_text("mine")
    return ["-o", str(world / "demo")]


# ---------------------------------------------------------------------------------------------- fuzzing


def fuzz_header(seed: int, world: Path, folder: Path) -> str:
    """A conversion with some random bytes in the header of one image: it is refused, or converts what it could read.

    Returns:
        What was wrong with how it ended; empty = nothing.
    """
    draw = random.Random(seed)
    copy = copy_world(world, folder)
    try:
        file = image(copy, draw.choice(("t1n", "t1c", "t2w", "t2f", "seg")))
        content = bytearray(gzip.decompress(file.read_bytes()))
        for _ in range(draw.choice((1, 2, 4, 16))):
            content[draw.randrange(348)] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))
        file.write_bytes(gzip.compress(bytes(content)))
        return _try_fuzzed("convert", convert(copy), copy)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fuzz_plans(seed: int, world: Path, folder: Path) -> str:
    """A stage whose plans have one or two random changes: it is refused, or trains.

    Returns:
        What was wrong with how it ended; empty = nothing.
    """
    draw = random.Random(seed)
    copy = copy_world(world, folder)
    try:
        edit_plans(copy, lambda plans, tiny: [_spoil(draw, plans) for _ in range(draw.choice((1, 1, 2)))])
        return _try_fuzzed("pretrain", pretraining(), copy)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _spoil(draw: random.Random, plans: Any) -> None:
    """Change, remove or add one value, at a random depth."""
    place = plans
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and draw.random() < 0.85:
            place = place[key]
            continue
        break
    value = draw.choice(
        (None, True, -1, 0, 3, 1e9, 2.5, "", "x", "../x", [], [1], {}, {"a": 1}, [[3, 3]], float("nan"))
    )
    action = draw.choice(("change", "change", "remove", "add"))
    if action == "remove":
        del place[key]
    elif action == "add" and isinstance(place, dict):
        place[draw.choice(("extra", "inherits_from", "previous_stage", "batch_size"))] = value
    else:
        place[key] = value


def _try_fuzzed(name: str, arguments: list[str], copy: Path) -> str:
    before = snapshot(copy)
    outcome = in_child(command(name, arguments), environment(copy), memory=MEMORY)
    if outcome.code == 0:
        after = snapshot(copy)
        changed = [key for key in before if after.get(key) != before[key]]
        return f"changed {changed}" if changed else ""
    return judge_refusal(outcome, before, snapshot(copy))


# ------------------------------------------------------------- checkpoints of nnU-Net, classifiers


def of_nnunet(world: Path, fold: int) -> list[str]:
    """Arguments of a diagnosis of the stage's encoder in a checkpoint as nnU-Net writes it."""

    def change(content: dict[str, Any]) -> dict[str, Any]:
        about = {key: content[key] for key in ("plans", "configuration", "dataset_json")} | {"fold": fold}
        weights = {k: v for k, v in content["network_weights"].items() if k.startswith("encoder.")}
        return {"network_weights": weights, "init_args": about, "current_epoch": 1, "trainer_name": "nnUNetTrainer"}

    report = ["-o", str(world / "report"), "-device", "cpu", "--patches", "2"]
    return [str(edit_checkpoint(final(world), change)), "-d", DATASET_ID, *report]


@good("diagnose")
def diagnose_a_fold_that_is_not_in_the_split(world: Path) -> list[str]:
    return of_nnunet(world, 7)


@bad("diagnose", r"splits_final.json cannot be read as JSON")
def diagnose_beside_a_damaged_split(world: Path) -> list[str]:
    (preprocessed(world) / "splits_final.json").write_text("[{")
    return of_nnunet(world, 0)


@bad("diagnose", r"splits_final.json must be a list of folds")
def diagnose_beside_a_split_of_wrong_form(world: Path) -> list[str]:
    (preprocessed(world) / "splits_final.json").write_text('{"train": []}')
    return of_nnunet(world, 0)


@bad("classify", r"written by a newer emim_nnunet \(format 99\): update")
def predict_with_a_classifier_from_the_future(world: Path) -> list[str]:
    file = world / "classifier.pth"
    shutil.copy(final(world), file)
    edit_checkpoint(file, lambda content: {"format": "emim_nnunet.classifier", "format_version": 99})
    return ["predict", str(file), DATASET_ID, "-o", str(world / "p.csv"), "-device", "cpu"]


@bad("compare", r"splits_final.json cannot be read as JSON")
def compare_again_beside_a_damaged_split(world: Path) -> list[str]:
    folder = world / "comparison" / "nnUNet_preprocessed" / DATASET
    folder.mkdir(parents=True)
    (folder / "splits_final.json").write_text("[{")
    return [DATASET_ID, "tiny", "-o", str(world / "comparison"), "-device", "cpu"]


@bad("pretrain", r"mask_ratio has no effect with EMIM: take it out, or set it to null")
def setting_that_would_change_nothing(world: Path) -> list[str]:
    changed_plans(world, lambda plans, tiny: tiny["emim"].update(mask_ratio=0.75))
    return pretraining()
