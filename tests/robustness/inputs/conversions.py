"""Bad folders, patterns, collections and options for ``emim_convert``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.robustness.inputs.images import text_instead_of_gzip
from tests.robustness.inputs.spoiling import NEW, convert, image, own_folders, rewrite
from tests.robustness.inputs.table import bad, good


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


@bad("convert", r"/proc cannot be written .*, so data set 7 in nnUNet_raw cannot be", nnUNet_raw="/proc")
def target_that_cannot_be_written(world: Path) -> list[str]:
    return convert(world)
