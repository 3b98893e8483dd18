"""Bad raw data sets and options for ``emim_plan_and_preprocess``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from tests.robustness.inputs.spoiling import CASE, damaged_checkpoint, edit_json, raw, rewrite
from tests.robustness.inputs.table import bad


def planning(*options: str) -> list[str]:
    return ["-d", "1", "-c", "3d_fullres", "-np", "1", "-npfp", "1", *options]


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


@bad("plan_and_preprocess", r"must be i/N with 1 <= i <= N")
def shard_beyond_the_last(world: Path) -> list[str]:
    return planning("--shard", "3/2")


@bad("plan_and_preprocess", r"--shard and --finish contradict each other")
def shard_that_finishes(world: Path) -> list[str]:
    return planning("--shard", "1/2", "--finish")


@bad("plan_and_preprocess", r"--add: .* has no plans")
def adding_to_nothing(world: Path) -> list[str]:
    return planning("--add")


@bad("plan_and_preprocess", r"has no plans .* shards preprocess what is planned")
def shard_without_plans(world: Path) -> list[str]:
    return planning("--shard", "1/2")
