"""Conversion of BraTS 2023: what is right arrives unchanged, what is wrong leaves no trace."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

from emim_nnunet.cli import convert as command
from emim_nnunet.cli._run import run
from emim_nnunet.dataset_conversion import converter, writing
from emim_nnunet.datasets.splits import ensure_splits, read_splits
from emim_nnunet.phantom import write_brats2023
from tests.conftest import shared_data

SHAPE = (24, 24, 24)
NAME = "Dataset137_BraTS2023GLI"
CASE = "BraTS-GLI-00001-000"


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    write_brats2023(folder, 2, 1, seed=0, shape=SHAPE)
    return folder


@pytest.fixture
def source(phantoms: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(phantoms, tmp_path / "source"))


def convert(source: Path, *options: str, dataset_id: str = "137") -> int:
    return run(command.main, ["brats2023", str(source), "-d", dataset_id, *options])


def file_of(source: Path, suffix: str, case: str = CASE) -> Path:
    return next(source.rglob(f"{case}-{suffix}.nii.gz"))


def rewrite(file: Path, change: Callable[[sitk.Image], sitk.Image]) -> None:
    sitk.WriteImage(change(sitk.ReadImage(str(file))), str(file))


def with_voxels(file: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    def changed(image: sitk.Image) -> sitk.Image:
        result = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(image)))
        result.CopyInformation(image)
        return result

    rewrite(file, changed)


def checksums(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_labelled_and_unlabelled_cases_go_where_they_belong(source: Path, nnunet_dirs: Path) -> None:
    before = checksums(source)
    assert convert(source) == 0
    target = nnunet_dirs / "nnUNet_raw" / NAME
    verify_dataset_integrity(str(target), 1)
    assert sorted(p.name for p in (target / "labelsTr").iterdir()) == [f"{CASE}.nii.gz", "BraTS-GLI-00002-000.nii.gz"]
    assert len(list((target / "imagesTr").iterdir())) == 8
    assert sorted(p.name for p in (target / "imagesUnlabelled").iterdir()) == [
        f"BraTS-GLI-00003-000_{c:04d}.nii.gz" for c in range(4)
    ]
    # channel order T1, T1ce, T2, Flair; the very bytes of the source
    for channel, suffix in enumerate(("t1n", "t1c", "t2w", "t2f")):
        copy = target / "imagesTr" / f"{CASE}_{channel:04d}.nii.gz"
        assert copy.read_bytes() == file_of(source, suffix).read_bytes()
    assert checksums(source) == before
    dataset = json.loads((target / "dataset.json").read_text())
    assert dataset["channel_names"] == {"0": "T1", "1": "T1ce", "2": "T2", "3": "Flair"}
    assert dataset["labels"]["tumor core"] == [1, 3]
    assert dataset["regions_class_order"] == [2, 1, 3]
    assert dataset["numTraining"] == 2
    assert "arXiv" in dataset["citation"]
    provenance = json.loads((target / "provenance.json").read_text())
    assert (provenance["num_labelled"], provenance["num_unlabelled"]) == (2, 1)
    assert str(source.parent) not in (target / "provenance.json").read_text()
    assert provenance["cases"][CASE]["sha256"]["T1"] == before[str(file_of(source, "t1n"))]


def test_region_order_restores_the_label_values() -> None:
    """nnU-Net writes region i with value order[i], later over earlier: the result must be the label on disk."""
    from emim_nnunet.dataset_conversion import FAMILIES

    family = FAMILIES["brats2023"]
    regions = [v for k, v in family.labels.items() if k != "background"]
    label = np.array([0, 1, 2, 3])
    restored = np.zeros(4, dtype=int)
    for region, value in zip(regions, family.regions_class_order, strict=True):
        restored[np.isin(label, region)] = value
    assert restored.tolist() == label.tolist()


def test_names_are_matched_by_suffix_whatever_case_separator_and_ending(source: Path, nnunet_dirs: Path) -> None:
    old = file_of(source, "t1n")
    sitk.WriteImage(sitk.ReadImage(str(old)), str(old.with_name(f"{CASE}_T1N.nii")))
    old.unlink()
    (source / f"._{CASE}-t1n.nii.gz").write_bytes(b"macOS")
    float_label = file_of(source, "seg")
    rewrite(float_label, lambda image: sitk.Cast(image, sitk.sitkFloat32))
    assert convert(source, "--name", "Other") == 0
    target = nnunet_dirs / "nnUNet_raw" / "Dataset137_Other"
    written = sitk.ReadImage(str(target / "labelsTr" / f"{CASE}.nii.gz"))
    assert written.GetPixelID() == sitk.sitkUInt8
    assert (target / "imagesTr" / f"{CASE}_0000.nii.gz").is_file()


def truncate(source: Path) -> None:
    file = file_of(source, "t2f")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def no_nifti(source: Path) -> None:
    file_of(source, "t2f").write_bytes(b"this is no image")


def zero_bytes(source: Path) -> None:
    file_of(source, "t2f").write_bytes(b"")


def missing_modality(source: Path) -> None:
    file_of(source, "t2w").unlink()


def other_spacing(source: Path) -> None:
    def change(image: sitk.Image) -> sitk.Image:
        image.SetSpacing((1.0, 1.0, 1.5))
        return image

    rewrite(file_of(source, "t1c"), change)


def other_size(source: Path) -> None:
    rewrite(file_of(source, "t1c"), lambda image: image[:, :, 2:])


def other_origin_of_label(source: Path) -> None:
    def change(image: sitk.Image) -> sitk.Image:
        image.SetOrigin((5.0, 0.0, 0.0))
        return image

    rewrite(file_of(source, "seg"), change)


def unknown_label(source: Path) -> None:
    with_voxels(file_of(source, "seg"), lambda v: np.where(v == 3, 4, v).astype(np.uint8))


def fractional_label(source: Path) -> None:
    with_voxels(file_of(source, "seg"), lambda v: v.astype(np.float32) * 0.5)


def nan_voxel(source: Path) -> None:
    def change(voxels: np.ndarray) -> np.ndarray:
        voxels = voxels.astype(np.float32)
        voxels[3, 3, 3] = np.nan
        return voxels

    with_voxels(file_of(source, "t1n"), change)


def infinite_voxel(source: Path) -> None:
    def change(voxels: np.ndarray) -> np.ndarray:
        voxels = voxels.astype(np.float32)
        voxels[3, 3, 3] = np.inf
        return voxels

    with_voxels(file_of(source, "t1n"), change)


def all_zero(source: Path) -> None:
    with_voxels(file_of(source, "t1n"), np.zeros_like)


def four_dimensional(source: Path) -> None:
    rewrite(file_of(source, "t1n"), lambda image: sitk.JoinSeries([image, image]))


def duplicate(source: Path) -> None:
    (source / "copy").mkdir()
    shutil.copy(file_of(source, "t1n"), source / "copy")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "t2f.nii.gz is truncated or damaged"),
        (no_nifti, "t2f.nii.gz is truncated or damaged"),
        (zero_bytes, "t2f.nii.gz is not a readable NIfTI"),
        (
            missing_modality,
            "case BraTS-GLI-00001-000: missing T2 (--skip_incomplete leaves it out, --allow_missing takes it without)",
        ),
        (other_spacing, "on another grid than BraTS-GLI-00001-000-t1n.nii.gz: spacing [1, 1, 1] and [1, 1, 1.5]"),
        (other_size, "size [24, 24, 24] and [24, 24, 22]"),
        (other_origin_of_label, "seg.nii.gz is on another grid"),
        (unknown_label, "holds the unknown label 4; brats2023 has 0, 1, 2, 3"),
        (fractional_label, "holds the unknown label 0.5"),
        (nan_voxel, "holds NaN or infinite voxels"),
        (infinite_voxel, "holds NaN or infinite voxels"),
        (all_zero, "is 0 everywhere"),
        (four_dimensional, "must be a three-dimensional scalar image"),
        (duplicate, "two files for T1 of case BraTS-GLI-00001-000"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_bad_input_is_named_and_leaves_nothing(
    damage: Callable[[Path], None],
    message: str,
    source: Path,
    nnunet_dirs: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(source)
    before = checksums(source)
    assert convert(source) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert message in errors[0]
    assert list((nnunet_dirs / "nnUNet_raw").iterdir()) == []
    assert checksums(source) == before


@pytest.mark.parametrize(
    ("options", "dataset_id", "message"),
    [
        ([], "1000", "-d 1000: a data set id is a number from 1 to 999"),
        (["--name", "../up"], "137", "--name '../up': use letters"),
    ],
)
def test_bad_options_are_named(
    options: list[str],
    dataset_id: str,
    message: str,
    source: Path,
    nnunet_dirs: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert convert(source, *options, dataset_id=dataset_id) == 2
    assert message in capsys.readouterr().err


def test_missing_source_no_case_and_used_id(
    source: Path, nnunet_dirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(tmp_path / "nowhere") == 2
    assert "is not a folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert convert(tmp_path / "empty") == 2
    assert "no case found" in capsys.readouterr().err
    (nnunet_dirs / "nnUNet_raw" / "Dataset137_Mine").mkdir()
    assert convert(source) == 2
    assert "used already by" in capsys.readouterr().err


def test_unset_folder_is_named(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("nnUNet_raw", raising=False)
    assert convert(source) == 2
    assert "nnUNet_raw is not set" in capsys.readouterr().err


def test_dry_run_lists_all_problems_and_writes_nothing(
    source: Path, nnunet_dirs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truncate(source)
    unknown_label(source)
    assert convert(source, "--dry_run") == 2
    out, err = capsys.readouterr()
    assert err.rstrip().endswith("error: 2 problems, listed above; nothing was written (--dry_run)")
    assert out.count("PROBLEM") == 2
    assert "3 cases of 3 patients, 2 labelled, 2 problems" in out
    assert list((nnunet_dirs / "nnUNet_raw").iterdir()) == []


def work_of(raw: Path) -> Path:
    return raw / f".{NAME}.converting"


def stamps(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for sub in ("imagesTr", "imagesUnlabelled") for p in (folder / sub).iterdir()}


def test_an_interrupted_conversion_is_taken_up_again(
    source: Path, nnunet_dirs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    raw = nnunet_dirs / "nnUNet_raw"
    with monkeypatch.context() as patch:
        calls = iter(range(10))
        original = writing._write_label

        def interrupted(*args: Any) -> None:
            if next(calls) == 1:
                raise KeyboardInterrupt
            original(*args)

        patch.setattr(writing, "_write_label", interrupted)
        assert convert(source, "-np", "1") == 130
    assert list(raw.iterdir()) == [work_of(raw)]  # nnU-Net does not see it
    written = {name: stamp for name, stamp in stamps(work_of(raw)).items() if name.startswith(CASE)}
    assert len(written) == 4
    (work_of(raw) / "imagesTr" / f".partial.{CASE}_0003.nii.gz").touch()  # of a process that was killed
    (work_of(raw) / ".dataset.json.x.tmp").touch()
    with monkeypatch.context() as patch, caplog.at_level("INFO", "emim_nnunet"):
        patch.setattr(
            converter, "check_case", read_only(converter.check_case, {"BraTS-GLI-00002-000", "BraTS-GLI-00003-000"})
        )
        assert convert(source) == 0
    assert (
        "1 of 3 cases are converted already" in caplog.text or "2 of 3 cases" in caplog.text
    )  # what comes after may be done
    assert [p.name for p in raw.iterdir()] == [NAME]
    verify_dataset_integrity(str(raw / NAME), 1)
    assert written.items() <= stamps(raw / NAME).items()  # not written again
    assert len(list((raw / NAME / "imagesTr").iterdir())) == 8
    assert sorted(p.name for p in (raw / NAME).iterdir() if p.is_file()) == ["dataset.json", "provenance.json"]


def read_only(check: Callable[..., Any], allowed: set[str]) -> Callable[..., Any]:
    """``check_case`` for some cases; others must not be read."""

    def checked(family: Any, case: Any, options: Any) -> Any:
        assert case.identifier in allowed
        return check(family, case, options)

    return checked


def test_what_an_older_version_left_is_thrown_away(source: Path, nnunet_dirs: Path) -> None:
    partial = nnunet_dirs / "nnUNet_raw" / f".{NAME}.partial" / "imagesTr"
    partial.mkdir(parents=True)
    (partial / f"{CASE}_0000.nii.gz").write_bytes(b"of something else")
    (partial.parent / "state.json").write_text("{}")
    assert convert(source) == 0
    assert [p.name for p in (nnunet_dirs / "nnUNet_raw").iterdir()] == [NAME]
    copy = nnunet_dirs / "nnUNet_raw" / NAME / "imagesTr" / f"{CASE}_0000.nii.gz"
    assert copy.read_bytes() == file_of(source, "t1n").read_bytes()


def test_shards_are_one_process_byte_for_byte(
    source: Path, nnunet_dirs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = nnunet_dirs / "nnUNet_raw"
    assert convert(source) == 0
    alone = checksums(raw / NAME)
    shutil.rmtree(raw / NAME)
    assert convert(source, "--shard", "2/4") == 0
    assert convert(source, "--finish") == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the conversion is not complete, 1 of 3 cases are converted: 2 to do" in line
    assert "BraTS-GLI-00003-000): not converted yet" in line
    assert not (raw / NAME).exists()
    for number in (1, 3, 4):  # more shards than cases
        assert convert(source, "--shard", f"{number}/4") == 0
    assert convert(source, "--finish") == 0
    assert {name.replace(str(raw / NAME), ""): sha for name, sha in checksums(raw / NAME).items()} == {
        name.replace(str(raw / NAME), ""): sha for name, sha in alone.items()
    }
    assert [p.name for p in raw.iterdir()] == [NAME]


def test_a_case_is_converted_again_where_its_record_does_not_match(
    source: Path, nnunet_dirs: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    raw = nnunet_dirs / "nnUNet_raw"

    def to_do(*options: str) -> list[str]:
        caplog.clear()
        with caplog.at_level("INFO", "emim_nnunet"):
            assert convert(source, "--shard", "1/1", *options) == 0
        return [record.getMessage() for record in caplog.records if " to do (" in record.getMessage()]

    assert to_do() == []
    before = stamps(work_of(raw))
    for file in source.rglob("*.nii.gz"):
        os.utime(file)  # another time, the same content
    assert to_do() == []
    assert stamps(work_of(raw)) == before
    with_voxels(file_of(source, "t1n"), lambda voxels: voxels * 2)
    (work_of(raw) / "imagesUnlabelled" / "BraTS-GLI-00003-000_0001.nii.gz").unlink()
    assert sorted(line.partition(": ")[2] for line in to_do()) == [
        "their files have changed",
        "what was written of them is missing or others",
    ]
    kept = [name for name in before if name.startswith("BraTS-GLI-00002")]
    assert all(stamps(work_of(raw))[name] == before[name] for name in kept)
    assert [line.partition(": ")[2] for line in to_do("--strip_header")] == ["other options or versions"]
    assert convert(source, "--finish") == 2  # shards had another option
    assert "3 to do" in capsys.readouterr().err
    assert convert(source, "--finish", "--strip_header") == 0


@pytest.mark.parametrize("shards", [0, 3])
def test_a_damaged_case_costs_nothing_but_itself(
    shards: int, source: Path, nnunet_dirs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = nnunet_dirs / "nnUNet_raw"
    file = file_of(source, "t2w")
    file.write_bytes(file.read_bytes()[:-50])
    parts = [["--shard", f"{number}/{shards}"] for number in range(1, shards + 1)] if shards else [[]]
    codes = [convert(source, *part, "--keep_going") for part in parts]
    assert codes == ([2, 0, 0] if shards else [2])
    if shards:
        assert convert(source, "--finish") == 2
        assert "is truncated or damaged" in capsys.readouterr().err.splitlines()[-1]
        assert convert(source, "--finish", "--keep_going") == 2
    printed = capsys.readouterr()
    assert f"1 cases are left out ({CASE}), see the table above; everything else is done" in printed.err
    assert f"| {CASE} |" in printed.out
    target = raw / NAME
    assert list(json.loads((target / "failed.json").read_text())) == [CASE]
    assert not list(target.rglob(f"{CASE}*"))
    assert json.loads((target / "dataset.json").read_text())["numTraining"] == 1
    assert list(json.loads((target / "provenance.json").read_text())["cases"]) == [
        "BraTS-GLI-00002-000",
        "BraTS-GLI-00003-000",
    ]
    verify_dataset_integrity(str(target), 1)


def test_shards_and_the_whole_do_not_collide(
    source: Path, nnunet_dirs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = nnunet_dirs / "nnUNet_raw"
    with acquire_elsewhere(raw / "Dataset137.shard_1_of_2"):
        for options in (["--shard", "1/2"], ["--finish"], [], ["--shard", "1/3"]):
            assert convert(source, *options) == 2
            assert "data set 137 in nnUNet_raw is being written" in capsys.readouterr().err
        assert convert(source, "--shard", "2/2") == 0
    assert convert(source, "--shard", "1/2") == 0
    assert convert(source, "--finish") == 0


@contextmanager
def acquire_elsewhere(target: Path) -> Iterator[None]:
    """Another process that holds a lock meanwhile."""
    code = (
        "import sys, pathlib; from emim_nnunet.storage.locks import acquire\n"
        "lock = acquire(pathlib.Path(sys.argv[1]), 'it'); print(flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    try:
        yield
    finally:
        child.kill()
        child.wait()


def test_time_points_of_a_patient_stay_in_one_fold(tmp_path: Path) -> None:
    cases = [f"BraTS-GLI-{patient:05d}-{time:03d}" for patient in range(7) for time in range(1 + patient % 2)]
    (tmp_path / "patients.json").write_text(json.dumps({case: case[:-4] for case in cases}))
    ensure_splits(tmp_path, cases)
    splits = read_splits(tmp_path)
    assert len(splits) == 5
    assert sorted(c for fold in splits for c in fold["val"]) == sorted(cases)
    for fold in splits:
        patients = [{c[:-4] for c in fold[part]} for part in ("train", "val")]
        assert not patients[0] & patients[1]
        assert sorted(fold["train"] + fold["val"]) == sorted(cases)
    (tmp_path / "splits_final.json").unlink()
    ensure_splits(tmp_path, [case for case in cases if case.startswith("BraTS-GLI-00001")])
    assert not (tmp_path / "splits_final.json").exists()  # one patient cannot be split


def test_real_brats_cases(nnunet_dirs: Path) -> None:
    assert convert(shared_data("brats2023_gli")) == 0
    target = nnunet_dirs / "nnUNet_raw" / NAME
    verify_dataset_integrity(str(target), 1)
    assert len(list((target / "labelsTr").iterdir())) == 7
    assert len(list((target / "imagesUnlabelled").iterdir())) == 4


def test_threads_read_one_image_at_a_time(source: Path, nnunet_dirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ITK 5 frees a string that its NIfTI readers share twice otherwise, which can end the process."""
    read, inside, seen = sitk.ReadImage, [], []

    def watched(file: str) -> sitk.Image:
        inside.append(file)
        seen.append(len(inside))
        sleep(0.01)
        try:
            return read(file)
        finally:
            inside.remove(file)

    monkeypatch.setattr(sitk, "ReadImage", watched)
    assert convert(source, "-np", "4") == 0
    assert len(seen) >= 13  # of three cases
    assert max(seen) == 1
