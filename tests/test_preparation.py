"""Preparation that goes on where it was interrupted, in one process or in shards; real commands on small phantoms."""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor
from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner

from emim_nnunet.cli import plan_and_preprocess as command
from emim_nnunet.cli._run import run
from emim_nnunet.dataloading.crops import CropDataset
from emim_nnunet.datasets import images
from emim_nnunet.datasets import preprocessed as layout
from emim_nnunet.datasets.checksums import case_digests, record_file
from emim_nnunet.datasets.dataset import PreprocessedDataset
from emim_nnunet.datasets.preprocessed import case_identifiers, read_properties, unlabelled_folder
from emim_nnunet.datasets.records import records_file, work_place
from emim_nnunet.datasets.shards import Shard
from emim_nnunet.errors import UserError
from emim_nnunet.planners import fingerprint
from emim_nnunet.planners.nnUNetPlannerEMIM import nnUNetPlannerEMIM
from tests.pipeline import DATASET, PLANS

SEEN_FILE = "seen_files.json"
TIMED = (".checksums", ".records")  # hold sizes and times


@pytest.fixture
def preprocessed(prepared: Path, nnunet_dirs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A preprocessed folder of three labelled and one unlabelled case that is planned, but holds no preprocessed case."""
    monkeypatch.setattr(fingerprint, "NUM_INTENSITY_SAMPLES", 3000)
    raw, target = nnunet_dirs / "nnUNet_raw" / DATASET, nnunet_dirs / "nnUNet_preprocessed" / DATASET
    shutil.copytree(prepared / "nnUNet_raw" / DATASET, raw)
    target.mkdir()
    for name in (f"{PLANS}.json", "dataset.json", "dataset_fingerprint.json"):
        shutil.copy(prepared / "nnUNet_preprocessed" / DATASET / name, target)
    for case in cases_of(raw / "imagesTr")[3:]:
        (raw / "labelsTr" / f"{case}.nii.gz").unlink()
        for file in (raw / "imagesTr").glob(f"{case}_*"):
            file.unlink()
    for file in (raw / "imagesUnlabelled").glob(f"{cases_of(raw / 'imagesUnlabelled')[1]}_*"):
        file.unlink()
    for name in ("splits_final.json", "patients.json"):
        (raw / name).unlink(missing_ok=True)
    return target


def cases_of(images: Path) -> list[str]:
    return sorted({file.name[: -len("_0000.nii.gz")] for file in images.iterdir()})


def raw_of(preprocessed: Path) -> Path:
    return preprocessed.parents[1] / "nnUNet_raw" / DATASET


def prepare(*options: str) -> int:
    return run(command.main, ["-d", "1", "-c", "3d_fullres", "-np", "1", "-npfp", "1", *options])


def labelled_folder(preprocessed: Path) -> Path:
    return preprocessed / f"{PLANS}_3d_fullres"


def content(preprocessed: Path) -> dict[str, Any]:
    """All files below a folder; of those that hold times, what is left without them."""
    found: dict[str, Any] = {}
    for file in preprocessed.rglob("*"):
        if file.is_file():
            found[str(file.relative_to(preprocessed))] = (
                _without_times(file) if file.suffix in TIMED or file.name == SEEN_FILE else file.read_bytes()
            )
    return found


def _without_times(file: Path) -> Any:
    if file.suffix == ".checksums":
        return [(name, size, digest) for name, (size, _, digest) in json.loads(file.read_text()).items()]
    if file.name == SEEN_FILE:  # a digest of times, and what was seen
        return {case: seen for case, (_, seen) in json.loads(file.read_text()).items()}
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines[1:]:
        line["sources"] = [(name, size, digest) for name, size, _, digest in line["sources"]]
    return lines


def rewrite(image: Path, factor: float = 2.0) -> None:
    read = sitk.ReadImage(str(image))
    sitk.WriteImage(read * factor, str(image))


def to_do(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [record.getMessage() for record in caplog.records if " to do (" in record.getMessage()]
    caplog.clear()
    return lines


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, "emim_nnunet"):
        yield caplog


# ---------------------------------------------------------------------------------------------------- records


def test_only_what_is_missing_or_has_changed_is_done_again(preprocessed: Path, log: pytest.LogCaptureFixture) -> None:
    folder, raw = labelled_folder(preprocessed), raw_of(preprocessed)
    assert prepare("--add") == 0
    assert to_do(log) == []
    first, *_, last = cases_of(raw / "imagesTr")
    assert len(case_identifiers(folder)) == 3
    inodes = {file.name: file.stat().st_ino for file in folder.iterdir()}
    before = content(preprocessed)

    for file in raw.rglob("*.nii.gz"):
        os.utime(file)  # another time, the same content
    assert prepare("--add") == 0
    assert to_do(log) == []
    assert {file.name: file.stat().st_ino for file in folder.iterdir()} == inodes

    image = raw / "imagesTr" / f"{last}_0001.nii.gz"
    original = image.read_bytes()
    rewrite(image)
    (folder / f"{first}_seg.b2nd").unlink()
    assert prepare("--add") == 0
    assert sorted(line.partition(": ")[2] for line in to_do(log)) == [
        f"1 to do ({first}): their prepared files are missing or others",
        f"1 to do ({last}): their images or labels have changed",
    ]
    others = [name for name in inodes if not name.startswith((first, last))]
    assert others
    assert all((folder / name).stat().st_ino == inodes[name] for name in others)
    image.write_bytes(original)
    assert prepare("--add") == 0
    assert content(preprocessed) == before
    assert not list(preprocessed.glob(".*"))


def test_other_settings_and_folders_without_records_are_said(preprocessed: Path, log: pytest.LogCaptureFixture) -> None:
    assert prepare("--add") == 0
    before = content(preprocessed)
    records_file(labelled_folder(preprocessed)).unlink()  # as an earlier version left it
    assert prepare("--add") == 0
    (line,) = to_do(log)
    assert "they have no record (of an older version, or of nnU-Net), so it cannot be known" in line
    assert content(preprocessed) == before
    plans = json.loads((preprocessed / f"{PLANS}.json").read_text())
    plans["configurations"]["3d_fullres"]["use_mask_for_norm"] = [False] * 4
    plans["foreground_intensity_properties_per_channel"]["0"]["mean"] = 3.0  # which no normalisation uses
    (preprocessed / f"{PLANS}.json").write_text(json.dumps(plans))
    assert prepare("--add") == 0
    assert [line.partition("): ")[2] for line in to_do(log)] == ["other settings (use_mask_for_norm)"] * 2


def test_a_damaged_case_costs_nothing_but_itself(
    preprocessed: Path, log: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, folder = raw_of(preprocessed), labelled_folder(preprocessed)
    damaged, other_shape, good = cases_of(raw / "imagesTr")
    image, label = raw / "imagesTr" / f"{damaged}_0000.nii.gz", raw / "labelsTr" / f"{other_shape}.nii.gz"
    whole = image.read_bytes(), label.read_bytes()
    image.write_bytes(whole[0][:-50])
    sitk.WriteImage(sitk.ReadImage(str(label))[:-3], str(label))
    assert prepare("--add") == 2
    assert not folder.exists()
    assert prepare("--add", "--keep_going") == 2
    assert f"2 cases are left out ({damaged}, {other_shape})" in capsys.readouterr().err
    failed = json.loads((preprocessed / "failed.json").read_text())
    assert list(failed) == [damaged, other_shape]
    assert "is truncated or damaged" in failed[damaged]
    assert f"case {other_shape} cannot be" in failed[other_shape]
    assert case_identifiers(folder) == [good]
    assert len(case_identifiers(unlabelled_folder(folder))) == 1
    PreprocessedDataset.find(1, PLANS, "3d_fullres").require_cases()
    before = content(folder)
    assert prepare("--add") == 2  # and the finished folder stays
    assert content(folder) == before
    image.write_bytes(whole[0])
    label.write_bytes(whole[1])
    log.clear()
    assert prepare("--add") == 0
    assert [line.partition(": ")[2] for line in to_do(log)] == [f"2 to do ({damaged}, {other_shape}): new"]
    assert not (preprocessed / "failed.json").exists()


def test_new_cases_are_added_while_a_stage_reads(preprocessed: Path, log: pytest.LogCaptureFixture) -> None:
    raw = raw_of(preprocessed)
    assert prepare("--add") == 0
    data = PreprocessedDataset.find(1, PLANS, "3d_fullres")
    crops = CropDataset(data.labelled, (8, 8, 8), seed=0)
    crops[0]
    plans = (preprocessed / f"{PLANS}.json").read_bytes()
    for file in [*raw.glob(f"*/{data.labelled_ids[0]}_*.nii.gz"), *raw.glob(f"*/{data.labelled_ids[0]}.nii.gz")]:
        shutil.copy(file, file.with_name(f"zz{file.name[len(data.labelled_ids[0]) :]}"))
    log.clear()
    assert prepare("--add") == 0
    assert "fingerprint: cases: 5 -> 4" in log.text  # it is that of the whole phantoms
    assert f"The plans {PLANS} are kept" in log.text
    assert "1 labelled cases are in no fold of splits_final.json (zz)" in log.text
    assert [line.partition(": ")[2] for line in to_do(log)] == ["1 to do (zz): new"]
    assert (preprocessed / f"{PLANS}.json").read_bytes() == plans
    for number in range(6):
        crops[number]  # the old cases have not changed
    assert PreprocessedDataset.find(1, PLANS, "3d_fullres").labelled_ids == [*data.labelled_ids, "zz"]


def test_many_cases_without_label_lie_in_subfolders(
    preprocessed: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    raw, folder = raw_of(preprocessed), unlabelled_folder(labelled_folder(preprocessed))
    (first,) = cases_of(raw / "imagesUnlabelled")
    file = raw / "imagesUnlabelled" / f"{first}_0000.nii.gz"
    image = sitk.ReadImage(str(file))
    voxels = sitk.GetArrayFromImage(image)
    noise = np.random.default_rng(0).rayleigh(40, voxels.shape)  # a background that is not 0: there will be a body
    noisy = sitk.GetImageFromArray(np.where(voxels == 0, noise, voxels * 10).astype(np.float32))
    noisy.CopyInformation(image)
    sitk.WriteImage(noisy, str(file))
    assert prepare("--add") == 0
    flat = content(preprocessed)
    assert f"{folder.name}/{first}.pkl" in flat
    assert f"body/{folder.name}/{first}.b2nd" in flat
    monkeypatch.setattr(layout, "MANY_CASES", 1)
    assert prepare("--add") == 0
    assert content(preprocessed) == flat  # not more than the limit

    def copy_cases(names: Iterable[str]) -> None:
        for name, image in itertools.product(names, sorted((raw / "imagesUnlabelled").glob(f"{first}_*"))):
            shutil.copy2(image, image.with_name(image.name.replace(first, name)))

    copy_cases(["b", "c"])
    log.clear()
    assert prepare("--add") == 0  # the case that is there moves, and is not done again
    assert [line.partition(": ")[2] for line in to_do(log)] == ["2 to do (b, c): new"]
    data = PreprocessedDataset.find(1, PLANS, "3d_fullres")
    assert data.unlabelled_ids == sorted([first, "b", "c"])
    data.require_cases()
    (old,) = [flat[name] for name in flat if name == f"{folder.name}/{first}.b2nd"]
    now = content(preprocessed)
    for case in (first, "b", "c"):
        assert now[f"{folder.name}/{layout.subfolder(case)}/{case}.b2nd"] == old
        assert now[f"body/{folder.name}/{layout.subfolder(case)}/{case}.b2nd"]
        assert read_properties(folder, case)["class_locations"] == {}
    assert len(set(case_digests(data.unlabelled).values())) == 1
    assert not [name for name in now if name.startswith(f"{folder.name}/{first}")]
    crops = CropDataset(data.unlabelled, (8, 8, 8), seed=0)
    assert sorted(crops[number]["case"] for number in range(3)) == data.unlabelled_ids

    monkeypatch.setattr(layout, "MANY_CASES", 1000)  # shards begin in the other layout, and go on in this one
    shutil.rmtree(folder)
    shutil.rmtree(preprocessed / "body")
    assert prepare("--shard", "1/2") == 0
    monkeypatch.setattr(layout, "MANY_CASES", 1)
    assert prepare("--shard", "2/2") == 0
    assert prepare("--finish") == 0
    assert content(preprocessed) == now
    for image in (raw / "imagesUnlabelled").glob("[bc]_*"):
        image.unlink()
    assert prepare("--finish") == 0  # few again
    assert {**content(preprocessed), SEEN_FILE: b""} == {**flat, SEEN_FILE: b""}  # which remembers who is gone
    assert not list(preprocessed.glob(".*"))


def test_files_that_were_seen_are_not_read_again(
    preprocessed: Path, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    look = images.stream_damage
    monkeypatch.setattr(images, "stream_damage", lambda file: read.append(file.name) or look(file))
    assert prepare("--shard", "1/2") == 0
    assert prepare("--add") == 0
    raw = raw_of(preprocessed)
    everything = sorted(file.name for file in raw.glob("*/*.nii.gz"))
    assert sorted(read) == everything
    assert not list(preprocessed.glob("seen_files.shard*"))
    assert prepare("--add") == 0
    assert len(read) == len(everything)
    changed = next((raw / "imagesTr").glob("*_0001.nii.gz"))
    rewrite(changed)
    assert prepare("--add") == 0
    case = changed.name.removesuffix("_0001.nii.gz")
    assert sorted(read[len(everything) :]) == sorted(name for name in everything if name.startswith(case))


def test_the_planner_lists_the_cases_that_nnunet_lists(preprocessed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = default_experiment_planner.get_filenames_of_train_images_and_targets
    wanted = stock(str(raw_of(preprocessed)))
    monkeypatch.setattr(default_experiment_planner, stock.__name__, lambda *_: pytest.fail("its own listing is slow"))
    assert nnUNetPlannerEMIM(1).dataset == wanted


def test_a_folder_that_is_not_complete_is_not_trained_on(preprocessed: Path) -> None:
    assert prepare("--shard", "1/2") == 0
    with pytest.raises(UserError, match=r"no preprocessed case in .*: its preparation is not complete, repeat"):
        PreprocessedDataset.find(1, PLANS, "3d_fullres").require_cases()
    assert prepare("--shard", "2/2") == 0
    assert prepare("--finish") == 0
    PreprocessedDataset.find(1, PLANS, "3d_fullres").require_cases()
    folder = labelled_folder(preprocessed)
    case = case_identifiers(folder)[1]
    for file in folder.glob(f"{case}*"):
        file.unlink()
    with pytest.raises(UserError, match=rf"is not complete: 1 of 3 prepared cases are missing \({case}\)"):
        PreprocessedDataset.find(1, PLANS, "3d_fullres").require_cases()


# ---------------------------------------------------------------------------------------------------- shards


def test_shards_are_one_process_byte_for_byte(preprocessed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare("--add") == 0
    alone = content(preprocessed)
    for folder in preprocessed.iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)
        elif folder.suffix in TIMED or folder.name == "splits_final.json":
            folder.unlink()
    for number in (3, 1):
        assert prepare("--shard", f"{number}/8") == 0
    assert prepare("--finish") == 2
    assert "is not complete, 2 of 3 cases are prepared: 1 to do" in capsys.readouterr().err
    assert not labelled_folder(preprocessed).exists()
    for number in (2, 4, 5, 6, 7, 8):  # more shards than cases
        assert prepare("--shard", f"{number}/8") == 0
    assert prepare("--finish") == 0
    assert content(preprocessed) == alone
    assert record_file(labelled_folder(preprocessed)).is_file()
    assert prepare("--finish") == 0  # nothing is left to do, nothing is damaged
    assert content(preprocessed) == alone


@pytest.mark.parametrize("points", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_shard_that_is_killed_and_repeated_is_as_undisturbed(points: int, preprocessed: Path) -> None:
    begin = time.perf_counter()
    assert prepare("--shard", "1/1") == 0
    seconds = time.perf_counter() - begin
    assert prepare("--finish") == 0
    undisturbed = content(preprocessed)
    rng = random.Random(0)
    for _ in range(points):
        for folder in (labelled_folder(preprocessed), unlabelled_folder(labelled_folder(preprocessed))):
            shutil.rmtree(folder)
            records_file(folder).unlink()
        kill_after(rng.uniform(0, seconds))
        kill_after(rng.uniform(0, seconds), "--finish")
        assert prepare("--shard", "1/1") == 0
        assert prepare("--finish") == 0
        assert content(preprocessed) == undisturbed
        assert not list(preprocessed.glob(".*"))


def test_what_a_killed_finish_was_writing_is_removed(preprocessed: Path) -> None:
    assert prepare("--add") == 0
    before = content(preprocessed)
    for name in (f".{PLANS}_3d_fullres.records.abc.tmp", "gt_segmentations/.case.nii.gz.abc.tmp"):
        (preprocessed / name).write_text("half")
    assert prepare("--finish") == 0
    assert content(preprocessed) == before


def kill_after(seconds: float, option: str = "--shard=1/1") -> None:
    """Start the command in a fork of this process, and kill it."""
    pid = os.fork()
    if pid == 0:
        try:
            prepare(option)
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.mark.parametrize("labelled", [True, False])
def test_the_fingerprint_of_shards_is_nnunets(
    labelled: bool, preprocessed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, raw = preprocessed / "dataset_fingerprint.json", raw_of(preprocessed)
    file.unlink()
    planned: list[Any] = []
    monkeypatch.setattr("emim_nnunet.planners.plan_and_preprocess._plan", lambda *args: planned.append(args))
    if not labelled:
        for sub in ("imagesTr", "labelsTr"):
            for case in (raw / sub).iterdir():
                case.unlink()
    assert prepare("--no_pp", "--finish") == 2
    for number in (1, 2):
        assert prepare("--no_pp", "--shard", f"{number}/2") == 0
    assert prepare("--no_pp", "--finish") == 0
    assert len(planned) == 1
    sharded = file.read_bytes()
    assert prepare("--no_pp", "--clean") == 0
    assert file.read_bytes() == sharded
    assert not list(preprocessed.glob(".*"))
    if labelled:
        spawn = SimpleNamespace(Pool=ThreadPool)  # nnU-Net's code, in threads: processes take seconds to start
        monkeypatch.setattr(fingerprint_extractor.multiprocessing, "get_context", lambda _: spawn)
        stock = fingerprint_extractor.DatasetFingerprintExtractor(1, 1)
        stock.num_foreground_voxels_for_intensitystats = 3000
        stock.run(overwrite_existing=True)
        assert json.loads(file.read_text()) == json.loads(sharded)


def test_shards_of_different_options_do_not_become_one_folder(
    preprocessed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = work_place(labelled_folder(preprocessed))
    assert prepare("--shard", "1/2", "--no_body") == 0
    assert prepare("--shard", "2/2") == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{labelled_folder(preprocessed).name}: other shards were given --no_body, and all must be given" in line
    assert line.endswith(f"To begin anew with other options, remove {place}")
    assert prepare("--shard", "2/2", "--no_body") == 0
    shutil.rmtree(place)
    assert prepare("--shard", "1/2") == 0
    assert prepare("--shard", "2/2", "--no_body") == 2
    assert "other shards were given no --no_body" in capsys.readouterr().err
    assert prepare("--add", "--no_body") == 0  # one process decides alone


def test_a_shard_is_every_nth_case() -> None:
    cases = [f"case{number}" for number in range(10)]
    parts = [Shard(number, 4).part(cases) for number in (1, 2, 3, 4)]
    assert sorted(case for part in parts for case in part) == cases
    assert {len(part) for part in parts} == {2, 3}


# ---------------------------------------------------------------------------------------------------- locks


def hold(target: Path) -> subprocess.Popen:
    """Another process that holds a lock until it is ended."""
    code = (
        "import sys, pathlib; from emim_nnunet.storage.locks import acquire\n"
        "lock = acquire(pathlib.Path(sys.argv[1]), 'it'); print(flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    child.stdout.readline()
    return child


@pytest.mark.parametrize(
    ("held", "option", "message"),
    [
        ("shard_1_of_2", "--shard=1/2", "shard 1/2 of Dataset001_Toy in nnUNet_preprocessed is being written by"),
        ("shard_1_of_2", "--finish", r"is being written in parts \(shard 1 of 2\) by .* wait until it has ended"),
        ("shard_1_of_2", "--add", r"is being written in parts \(shard 1 of 2\) by"),
        ("shard_1_of_2", "--shard=2/4", r"is being written in parts \(shard 1 of 2\) by"),
        ("", "--shard=1/2", "is being written as a whole by"),
        ("shard_1_of_2", "--shard=2/2", ""),
    ],
)
def test_shards_and_the_whole_do_not_collide(
    held: str, option: str, message: str, preprocessed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    child = hold(preprocessed.with_name(f"{DATASET}.{held}") if held else preprocessed)
    try:
        assert prepare(option) == (2 if message else 0)
        error = capsys.readouterr().err
        if message:
            assert [line for line in error.splitlines() if "error:" in line]
            assert re.search(message, error)
            assert not work_place(labelled_folder(preprocessed)).exists()
    finally:
        child.kill()
        child.wait()
    if message and "finish" not in option:
        assert prepare(option) == 0  # the lock that it left is taken over
    if option == "--add":
        assert not list(preprocessed.parent.glob(".*.lock"))
