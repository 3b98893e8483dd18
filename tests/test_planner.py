"""Planning and preprocessing: nnU-Net's own pipeline on tiny raw data sets."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from emim_nnunet.cli import plan_and_preprocess as command
from emim_nnunet.cli._run import run
from emim_nnunet.datasets.preprocessed import orientations_file, read_orientations
from emim_nnunet.datasets.splits import read_patients, read_splits
from emim_nnunet.errors import UserError
from emim_nnunet.methods import method_classes
from emim_nnunet.phantom import make_phantom
from emim_nnunet.planners.memory import segmentation_gigabytes, ssl_gigabytes
from emim_nnunet.planners.preprocess import orientation_of, preprocess_cases
from emim_nnunet.planners.raw_data import find_cases
from emim_nnunet.planners.workers import num_workers
from emim_nnunet.storage.locks import acquire


def write_raw(
    folder: Path, dataset_id: int, *, labelled: int, unlabelled: int = 0, channels: int = 4, padding: int = 0
) -> Path:
    """A raw data set of phantoms in nnU-Net's format."""
    raw = folder / "nnUNet_raw" / f"Dataset{dataset_id:03d}_Toy"
    for sub in ("imagesTr", "labelsTr", "imagesUnlabelled"):
        (raw / sub).mkdir(parents=True)
    for number in range(labelled + unlabelled):
        images, label = make_phantom(number, (40, 36, 32))
        images = np.resize(images, (channels, *images.shape[1:]))
        has_label = number < labelled
        for channel, image in enumerate(images):
            sub = "imagesTr" if has_label else "imagesUnlabelled"
            write(np.pad(image, padding), raw / sub / f"case{number}_{channel:04d}.nii.gz")
        if has_label:
            write(np.pad((label > 0).astype(np.uint8), padding), raw / "labelsTr" / f"case{number}.nii.gz")
    names = {str(c): f"M{c}" for c in range(channels)}
    dataset = {"channel_names": names, "labels": {"background": 0, "lesion": 1}, "numTraining": labelled}
    (raw / "dataset.json").write_text(json.dumps(dataset | {"file_ending": ".nii.gz"}))
    return raw


def write(voxels: np.ndarray, path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path))


@pytest.fixture
def planning(nnunet_dirs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")  # as for exact seeds; nnU-Net's own planner needs a positive number
    return nnunet_dirs


def plan(dataset_id: int, *options: str, target: str = "0.5") -> int:
    arguments = ["-d", str(dataset_id), "-gpu_memory_target", target, "-np", "1", "-npfp", "1", *options]
    return run(command.main, arguments)


def plans_of(folder: Path, dataset_id: int) -> dict[str, Any]:
    dataset = folder / "nnUNet_preprocessed" / f"Dataset{dataset_id:03d}_Toy"
    return json.loads((dataset / "nnUNetEMIMPlans.json").read_text())


def test_padding_changes_neither_the_plan_nor_the_normalised_brain(planning: Path) -> None:
    write_raw(planning, 1, labelled=2)
    write_raw(planning, 2, labelled=2, padding=30)
    for dataset_id in (1, 2):
        assert plan(dataset_id, "-c", "3d_fullres") == 0
    plans = [plans_of(planning, i) for i in (1, 2)]
    assert plans[0]["configurations"] == plans[1]["configurations"]
    assert plans[0]["configurations"]["3d_fullres"]["use_mask_for_norm"] == [True] * 4
    for case in ("case0", "case1"):
        read = []
        for dataset_id in (1, 2):
            dataset = planning / "nnUNet_preprocessed" / f"Dataset{dataset_id:03d}_Toy"
            folder = dataset / "nnUNetEMIMPlans_3d_fullres"
            data, seg, _, _ = nnUNetDatasetBlosc2(str(folder), [case]).load_case(case)
            read.append((data[:], seg[:]))
        assert all(np.array_equal(a, b) for a, b in zip(*read, strict=True))
        body = read[0][1][0] >= 0
        assert read[0][0][:, body].mean(1) == pytest.approx(np.zeros(4), abs=1e-4)
        assert read[0][0][:, body].std(1) == pytest.approx(np.ones(4), abs=1e-3)
        assert (read[0][0][:, ~body] == 0).all()


def test_unlabelled_cases_are_preprocessed_beside_the_labelled_ones(planning: Path) -> None:
    write_raw(planning, 1, labelled=3, unlabelled=2)
    assert plan(1, "-c", "3d_fullres", "2d") == 0
    dataset = planning / "nnUNet_preprocessed" / "Dataset001_Toy"
    for configuration in ("3d_fullres", "2d"):
        folder = dataset / f"nnUNetEMIMPlans_{configuration}"
        assert sorted(nnUNetDatasetBlosc2.get_identifiers(str(folder))) == ["case0", "case1", "case2"]
        unlabelled = folder.with_name(folder.name + "_unlabelled")
        assert sorted(nnUNetDatasetBlosc2.get_identifiers(str(unlabelled))) == ["case3", "case4"]
        data, seg, _, properties = nnUNetDatasetBlosc2(str(unlabelled), ["case3"]).load_case("case3")
        assert set(np.unique(seg[:])) == {-1, 0}
        assert properties["class_locations"] == {}
        assert (data[:][:, seg[0] < 0] == 0).all()
    assert not list(dataset.glob(".*"))
    splits = json.loads((dataset / "splits_final.json").read_text())
    assert [s["val"] for s in splits] == [["case0"], ["case1"], ["case2"]]
    block = plans_of(planning, 1)["configurations"]["3d_fullres"]["emim"]
    assert set(block) == {
        "cell_size",
        "position_ratio",
        "patch_ratio",
        "pyramid_levels",
        "projector_widths",
        "decoder_min_width",
        "batch_size",
        "parent_factor",
        "patches_at_once",
        "num_epochs",
    }
    assert plans_of(planning, 1)["configurations"]["3d_fullres"]["preprocessor_name"] == "DefaultPreprocessor"


def test_preprocessed_files_are_those_of_nnunet(planning: Path) -> None:
    write_raw(planning, 1, labelled=2)
    assert plan(1, "-c", "3d_fullres") == 0
    dataset = planning / "nnUNet_preprocessed" / "Dataset001_Toy"
    folder = dataset / "nnUNetEMIMPlans_3d_fullres"
    ours = {case: nnUNetDatasetBlosc2(str(folder), [case]).load_case(case) for case in ("case0", "case1")}
    ours = {case: (data[:], data.chunks, seg[:], properties) for case, (data, seg, _, properties) in ours.items()}
    labels = {path.name: path.read_bytes() for path in (dataset / "gt_segmentations").iterdir()}
    assert read_orientations(folder, [0, 1, 2]) == {"case0": "SPL", "case1": "SPL"}
    preprocess_dataset(1, "nnUNetEMIMPlans", ("3d_fullres",), [1])
    for case, (data, chunks, seg, properties) in ours.items():
        stock_data, stock_seg, _, stock_properties = nnUNetDatasetBlosc2(str(folder), [case]).load_case(case)
        assert np.array_equal(stock_data[:], data)
        assert stock_data.chunks == chunks
        assert np.array_equal(stock_seg[:], seg)
        assert stock_properties.keys() == properties.keys()
        for key, places in stock_properties["class_locations"].items():
            assert np.array_equal(places, properties["class_locations"][key])
    assert labels == {path.name: path.read_bytes() for path in (dataset / "gt_segmentations").iterdir()}


@pytest.mark.parametrize(
    ("direction", "letters"),
    [
        ((1, 0, 0, 0, 1, 0, 0, 0, 1), "SPL"),
        ((0, 0, -1, 1, 0, 0, 0, -1, 0), "RIP"),  # columns: x leads to P, y to I, z to R
        ((-1, 0, 0, 0, -0.96, 0.28, 0, 0.28, 0.96), "SAR"),  # 16 degrees
        ((0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1), ""),  # 37 degrees: no letter is better than a wrong one
    ],
)
def test_orientation_letters_are_those_of_the_header(direction: tuple, letters: str, tmp_path: Path) -> None:
    image = sitk.Image([4, 5, 6], sitk.sitkFloat32)
    image.SetDirection(direction)
    for name in ("image.nii.gz", "image.nrrd"):
        sitk.WriteImage(image, str(tmp_path / name))
    assert orientation_of(tmp_path / "image.nii.gz") == letters
    assert orientation_of(tmp_path / "image.nrrd") == ""  # not every writer of these states an orientation
    content = bytearray(gzip.decompress((tmp_path / "image.nii.gz").read_bytes()))
    content[252:256] = bytes(4)  # qform_code and sform_code: unknown
    (tmp_path / "image.nii.gz").write_bytes(gzip.compress(bytes(content)))
    assert orientation_of(tmp_path / "image.nii.gz") == ""


def test_orientations_follow_the_transposition_and_may_be_missing(tmp_path: Path) -> None:
    assert read_orientations(tmp_path / "data", [0, 1, 2]) == {}
    file = orientations_file(tmp_path / "data")
    file.parent.mkdir()
    file.write_text('{"case": "SPL"}')
    assert read_orientations(tmp_path / "data", [2, 0, 1]) == {"case": "LSP"}
    file.write_text('["SPL"]')
    assert read_orientations(tmp_path / "data", [0, 1, 2]) == {}


def test_a_failing_case_leaves_the_files_of_the_run_before(planning: Path) -> None:
    raw = write_raw(planning, 1, labelled=2)
    assert plan(1, "-c", "3d_fullres") == 0
    dataset = planning / "nnUNet_preprocessed" / "Dataset001_Toy"
    before = {path: path.read_bytes() for path in dataset.rglob("*.b2nd")}
    image = sitk.ReadImage(raw / "labelsTr" / "case1.nii.gz")
    sitk.WriteImage(image[:-3], raw / "labelsTr" / "case1.nii.gz")
    named = pytest.raises(UserError, match=r"case case1 cannot be preprocessed: Shape mismatch")
    labelled = find_cases(raw).labelled_files
    with acquire(dataset, "it") as lock, named:
        preprocess_cases("Dataset001_Toy", "nnUNetEMIMPlans", ["3d_fullres"], labelled, {}, 2, lock)
    assert before == {path: path.read_bytes() for path in dataset.glob("nnUNet*/*.b2nd")}
    assert [path.name for path in dataset.glob(".*")] == [".nnUNetEMIMPlans_3d_fullres.preparing"]


def test_workers_are_started_only_where_they_make_the_whole_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emim_nnunet.planners.workers.num_cores", lambda: 4)
    assert num_workers(1000, 0.0, 8) == 0  # not measured yet
    assert num_workers(4, 1.0, 8) == 0
    assert num_workers(100, 1.0, 8) == 3  # cores, of which this process has one
    assert num_workers(100, 1.0, 2) == 1
    assert num_workers(100, 1.0, 1) == 0
    assert num_workers(3, 60.0, 8) == 2  # cases


def test_a_wholly_unlabelled_data_set_plans_like_a_labelled_one(planning: Path) -> None:
    write_raw(planning, 1, labelled=2)
    write_raw(planning, 2, labelled=0, unlabelled=2)
    assert plan(1, "--no_pp") == 0
    assert plan(2, "-c", "3d_fullres") == 0
    assert plans_of(planning, 1)["configurations"] == plans_of(planning, 2)["configurations"]
    folder = planning / "nnUNet_preprocessed" / "Dataset002_Toy" / "nnUNetEMIMPlans_3d_fullres_unlabelled"
    assert sorted(nnUNetDatasetBlosc2.get_identifiers(str(folder))) == ["case0", "case1"]


def test_one_case_and_eight_channels(planning: Path) -> None:
    write_raw(planning, 1, labelled=1, channels=8)
    assert plan(1, "--no_pp") == 0
    assert {"2d", "3d_fullres"} <= set(plans_of(planning, 1)["configurations"])


def test_colour_pictures_are_planned_and_a_table_of_patients_makes_the_folds(
    planning: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Pictures of one file and three channels, labelled or not, as nnU-Net's reader takes them; slices of two patients."""
    raw = planning / "nnUNet_raw" / "Dataset001_Toy"
    rng = np.random.default_rng(0)
    for sub, slices in (("imagesTr", ("p1_1", "p1_2", "p2_1", "p2_2")), ("imagesUnlabelled", ("p3_1",))):
        (raw / sub).mkdir(parents=True)
        for name in slices:
            colours = rng.integers(1, 255, (64, 64, 3), dtype=np.uint8)
            sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), str(raw / sub / f"{name}_0000.png"))
    (raw / "labelsTr").mkdir()
    for file in (raw / "imagesTr").iterdir():
        write(rng.integers(0, 2, (64, 64), dtype=np.uint8), raw / "labelsTr" / file.name.replace("_0000", ""))
    dataset = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": {"background": 0, "lesion": 1}}
    (raw / "dataset.json").write_text(json.dumps(dataset | {"numTraining": 4, "file_ending": ".png"}))
    unlabelled = raw / "imagesUnlabelled" / "p3_1_0000.png"
    unlabelled.rename(tmp_path / "colours.png")
    write(np.ones((64, 64), dtype=np.uint8), unlabelled)
    assert plan(1, "--no_pp") == 2
    assert "the case has 1 channels in 1 files, dataset.json has 3 (R, G, B)" in capsys.readouterr().err
    assert "p1_1, p1_2 look like visits or slices of one patient" in caplog.text
    caplog.clear()
    shutil.move(tmp_path / "colours.png", unlabelled)
    table = tmp_path / "whose.csv"
    table.write_text("case,patient\np1_1,p1\np1_2,p1\np2_1,p2\np2_2,p2\n")
    assert plan(1, "-c", "2d", "--patients", str(table), target="0.05") == 0
    assert "look like visits or slices" not in caplog.text
    assert "--patients says nothing of 1 of 5 cases" in caplog.text
    folder = planning / "nnUNet_preprocessed" / "Dataset001_Toy"
    for suffix, case in (("", "p1_1"), ("_unlabelled", "p3_1")):
        data = nnUNetDatasetBlosc2(str(folder / f"nnUNetEMIMPlans_2d{suffix}"), [case]).load_case(case)[0]
        assert data.shape == (3, 1, 64, 64)
    assert read_patients(folder) == {"p1_1": "p1", "p1_2": "p1", "p2_1": "p2", "p2_2": "p2"}
    assert [fold["val"] for fold in read_splits(folder)] == [["p1_1", "p1_2"], ["p2_1", "p2_2"]]
    table.write_text("case,patient\np1_1,a\np2_1,a\n")
    assert plan(1, "--no_pp", "--patients", str(table)) == 2
    assert "fold 0 of" in (message := capsys.readouterr().err)
    assert "trains and validates on cases of patient a: remove that file" in message


def test_both_stages_keep_to_the_memory_target(planning: Path, caplog: pytest.LogCaptureFixture) -> None:
    raw = write_raw(planning, 1, labelled=2)
    labels = LabelManager(json.loads((raw / "dataset.json").read_text())["labels"], None)
    assert plan(1, "--no_pp", target="1.0") == 0
    large = plans_of(planning, 1)["configurations"]
    for name in ("2d", "3d_fullres"):
        peaks = [ssl_gigabytes(method, large[name], large[name]["emim"], 4) for method in method_classes()]
        assert max(peaks) <= 1.0
        assert segmentation_gigabytes(large[name], 4, labels) <= 1.0
    assert large["3d_fullres"]["emim"]["batch_size"] == 2  # two small cases have no more voxels
    assert "more than the target" not in caplog.text
    assert "nnUNetEMIMPlans_3d_fullres: patch 40x40x24; on a GPU a step takes about 0.68 GB in the SSL" in caplog.text
    assert plan(1, "--no_pp", target="0.02") == 0
    small = plans_of(planning, 1)["configurations"]
    assert np.prod(small["3d_fullres"]["patch_size"]) < np.prod(large["3d_fullres"]["patch_size"])
    assert small["3d_fullres"]["emim"]["batch_size"] == 1
    assert "3d_fullres: that is more than the target of 0.02 GB; nnU-Net plans none smaller" in caplog.text


def test_user_errors_are_one_line(planning: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error_of(dataset_id: int, **kwargs: str) -> str:
        assert plan(dataset_id, **kwargs) == 2
        return next(line for line in capsys.readouterr().err.splitlines() if "error:" in line)

    assert "-d 9: expected one folder Dataset009_NAME" in error_of(9)
    raw = write_raw(planning, 1, labelled=2)
    assert "-gpu_memory_target must be a positive number" in error_of(1, target="-1")
    (raw / "labelsTr" / "case1.nii.gz").unlink()
    assert "case1.nii.gz is missing: cases without label belong into" in error_of(1)
    (raw / "imagesTr" / "case0_0001.nii.gz").unlink()
    assert "imagesTr/case0: expected exactly the channels" in error_of(1)
    (raw / "dataset.json").write_text("{")
    assert "dataset.json cannot be read as JSON" in error_of(1)
    (raw / "dataset.json").write_text("{}")
    assert "dataset.json lacks channel_names" in error_of(1)
    raw = write_raw(planning, 2, labelled=0)
    assert "holds no case" in error_of(2)
    raw = write_raw(planning, 3, labelled=0, unlabelled=1)
    (raw / "imagesUnlabelled" / "case0_0002.nii.gz").unlink()
    assert "expected exactly the channels 0000 to 0003" in error_of(3)
    raw = write_raw(planning, 4, labelled=0, unlabelled=1)
    file = raw / "imagesUnlabelled" / "case0_0000.nii.gz"
    file.write_bytes(file.read_bytes()[:500])
    assert "case0_0000.nii.gz is truncated or damaged" in error_of(4)
    assert not (planning / "nnUNet_preprocessed" / "Dataset004_Toy" / "nnUNetEMIMPlans.json").exists()
