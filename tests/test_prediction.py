"""Prediction with what a case has, and what each subset of the modalities is worth, against nnU-Net's own predictor."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from emim_nnunet.cli import evaluate_modalities, predict
from emim_nnunet.cli._run import run
from emim_nnunet.prediction.evaluate import surface_distance
from emim_nnunet.prediction.inputs import modality_of
from emim_nnunet.prediction.subsets import subsets_of
from emim_nnunet.trainer_search import enable_search
from tests.pipeline import DATASET, FINETUNE, PLANS, fold_folder, set_folders, train

CHANNELS = ("T1", "T1ce", "T2", "Flair")
CASE = "BraTS-GLI-00001-000"
HERE = ("-device", "cpu", "-npp", "0", "-nps", "0", "--disable_tta")


@pytest.fixture(scope="module")
def world(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The prepared data, and a model of one step that was trained with modality dropout."""
    file = prepared / "nnUNet_preprocessed" / DATASET / f"{PLANS}.json"
    text = file.read_text()
    plans = json.loads(text)
    block = {"finetune_p_drop_modality": 0.25, "finetune_keep_modalities": ["Flair"], "finetune_final_validation": True}
    plans["configurations"]["gaps"] = {"inherits_from": "toy_short", "emim": block}
    with pytest.MonkeyPatch.context() as patch:
        set_folders(prepared, patch)
        patch.setenv("nnUNet_results", str(tmp_path_factory.mktemp("results")))
        patch.setenv("nnUNet_n_proc_DA", "0")
        patch.setenv("nnUNet_extTrainer", "")
        enable_search()
        file.write_text(json.dumps(plans))
        train(FINETUNE, "gaps")
        yield prepared
        file.write_text(text)


@pytest.fixture
def model(world: Path) -> Path:
    return fold_folder(FINETUNE, "gaps").parent


def predicted(model: Path, source: Path, output: Path, *options: str) -> int:
    return run(predict.main, ["-i", str(source), "-o", str(output), "-m", str(model), "-f", "0", *HERE, *options])


def nnunets_own(model: Path, images: list[Path], target: Path) -> np.ndarray:
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), ("0",))
    target.parent.mkdir(exist_ok=True)
    predictor.predict_from_files_sequential([list(map(str, images))], [str(target)])
    return voxels(target.with_name(f"{target.name}.nii.gz"))


def voxels(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def images_of(world: Path, case: str = CASE) -> list[Path]:
    return [world / "nnUNet_raw" / DATASET / "imagesTr" / f"{case}_{c:04d}.nii.gz" for c in range(4)]


def hospital(world: Path, folder: Path, *names: str, case: str = CASE) -> Path:
    """A folder with some of the case's images under names of its own."""
    channels = {"T1n": 0, "t1_ce": 1, "T2w": 2, "FLAIR": 3}
    folder.mkdir(exist_ok=True)
    for name in names:
        target = folder / f"{name}.nii.gz"
        target.parent.mkdir(exist_ok=True)
        shutil.copy(images_of(world, case)[next(c for n, c in channels.items() if name.endswith(n))], target)
    return folder


def rows_of(output: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((output / "missing_modalities.csv").open()))


def test_complete_cases_give_nnunets_own_result(world: Path, model: Path, tmp_path: Path) -> None:
    source = world / "nnUNet_raw" / DATASET / "imagesTr"
    assert predicted(model, source, tmp_path / "out", "--save_probabilities") == 0
    for file in sorted((world / "nnUNet_raw" / DATASET / "labelsTr").glob("*.nii.gz")):
        case = file.name.removesuffix(".nii.gz")
        own = nnunets_own(model, images_of(world, case), tmp_path / "own" / case)
        assert np.array_equal(voxels(tmp_path / "out" / file.name), own)
        assert (tmp_path / "out" / f"{case}.npz").is_file()
    assert {row["lacks"] for row in rows_of(tmp_path / "out")} == {""}
    assert not [path for path in tmp_path.iterdir() if path.name not in ("out", "own")]


def test_what_is_missing_is_filled_told_and_not_done_twice(
    world: Path, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    source = hospital(world, tmp_path / "in", "p1-FLAIR", "p1_t1_ce", "p2/T1n", "p2/T2w")
    assert predicted(model, source, tmp_path / "out") == 0
    told = caplog.text
    assert "1 case with T1 + T2 only (p2): its training did not drop what they lack" in told
    assert "p1" not in told
    caplog.clear()
    assert "emim_evaluate_modalities does" in told
    assert [(row["case"], row["has"], row["lacks"], row["trained"]) for row in rows_of(tmp_path / "out")] == [
        ("p1", "T1ce+Flair", "T1+T2", "yes"),
        ("p2", "T1+T2", "T1ce+Flair", "no"),
    ]
    zeros = tmp_path / "zeros.nii.gz"
    image = sitk.ReadImage(str(images_of(world)[1])) * 0
    sitk.WriteImage(image, str(zeros))
    t1, t1ce, t2, flair = images_of(world)
    for case, images in {"p1": [zeros, t1ce, zeros, flair], "p2": [t1, zeros, t2, zeros]}.items():
        own = nnunets_own(model, images, tmp_path / "own" / case)
        assert np.array_equal(voxels(tmp_path / "out" / f"{case}.nii.gz"), own)
    # again, after one of the two was lost half-written
    kept, lost = (tmp_path / "out" / f"{case}.nii.gz" for case in ("p1", "p2"))
    whole, stamp = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.write_bytes(whole[: len(whole) // 2])
    assert predicted(model, source, tmp_path / "out") == 0
    assert "1 of 2 cases are predicted already" in caplog.text
    assert kept.stat().st_mtime_ns == stamp
    assert np.array_equal(voxels(lost), voxels(tmp_path / "own" / "p2.nii.gz"))
    assert predicted(model, source, tmp_path / "out", "-step_size", "1") == 2
    assert "with other settings" in capfd.readouterr().err


def test_filling_only_and_other_grids(
    world: Path, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = hospital(world, tmp_path / "in", "p1_T1n", "p1_FLAIR")
    image = sitk.ReadImage(str(source / "p1_FLAIR.nii.gz"))
    sitk.WriteImage(sitk.Shrink(image, [2, 2, 2]), str(source / "p1_FLAIR.nii.gz"))
    assert predicted(model, source, tmp_path / "out", "--missing") == 2
    assert "is on another grid than p1_T1n.nii.gz" in (line := capfd.readouterr().err)
    assert "--resample-to CHANNEL" in line
    assert not (tmp_path / "out").exists()
    assert predicted(model, source, tmp_path / "out", "--missing", "--resample_to", "T1") == 0
    filled = [voxels(tmp_path / "out" / f"p1_{c:04d}.nii.gz") for c in range(4)]
    assert [bool(image.any()) for image in filled] == [True, False, False, True]
    assert len({image.shape for image in filled}) == 1
    assert rows_of(tmp_path / "out") == [{"case": "p1", "has": "T1+Flair", "lacks": "T1ce+T2"}]
    # what was filled is taken for missing again
    assert predicted(model, tmp_path / "out", tmp_path / "again") == 0
    assert rows_of(tmp_path / "again")[0]["lacks"] == "T1ce+T2"


def bad_inputs(world: Path, model: Path, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """A message, and the arguments that lead to it, one after another."""
    (folder / "empty").mkdir()
    yield "there is no image", ["-i", str(folder / "empty")]
    unknown = hospital(world, folder / "unknown", "p1_T1n")
    shutil.copy(images_of(world)[0], unknown / "p1_PET.nii.gz")
    yield r"'p1_PET.nii.gz': its name ends in no modality of the model \(T1, T1ce", ["-i", str(unknown)]
    yield "--channel PET: the model's modalities are", ["-i", str(unknown), "--channel", "PET={case}_PET.nii.gz"]
    yield "two files for T1 of case p1", ["-i", str(hospital(world, folder / "twice", "p1_T1n", "other/p1_T1n"))]
    zeros = hospital(world, folder / "zeros", "p1_T1n")
    sitk.WriteImage(sitk.ReadImage(str(zeros / "p1_T1n.nii.gz")) * 0, str(zeros / "p1_T1n.nii.gz"))
    yield "case p1 has no modality", ["-i", str(zeros)]
    good = str(hospital(world, folder / "good", "p1_T1n"))
    yield "lies in -i", ["-i", good, "-o", f"{good}/out"]
    yield "no checkpoint_final.pth of fold 1", ["-i", good, "-f", "1"]
    nameless = shutil.copytree(model, folder / "nameless")
    content = json.loads((nameless / "dataset.json").read_text())
    (nameless / "dataset.json").write_text(json.dumps({k: v for k, v in content.items() if k != "channel_names"}))
    yield "lacks channel_names", ["-i", good, "-m", str(nameless)]
    yield "is no folder of a trained model", ["-i", good, "-m", str(folder)]


def test_bad_input_is_refused_in_one_line(
    world: Path, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for message, arguments in bad_inputs(world, model, tmp_path / "in"):
        before = sorted(tmp_path.rglob("*"))
        command = ["-o", str(tmp_path / "out"), "-f", "0", *HERE, "-m", str(model), *arguments]
        assert run(predict.main, command) == 2, message
        lines = [line for line in capfd.readouterr().err.splitlines() if ": error: " in line]
        assert len(lines) == 1
        assert re.search(message, lines[0]), lines[0]
        assert sorted(tmp_path.rglob("*")) == before, message


@pytest.mark.parametrize(
    ("stem", "found"),
    [
        ("p1_0003", ("p1", "Flair")),
        ("p1_0004", None),
        ("sub-01_ses-2_T1w", ("sub-01_ses-2", "T1")),
        ("P1_T1_T2", ("P1_T1", "T2")),
        ("P1_T2_FLAIR", ("P1", "Flair")),
        ("a.t1-gd", ("a", "T1ce")),
        ("FLAIR", ("", "Flair")),
        ("p1_seg", None),
    ],
)
def test_names_of_files(stem: str, found: tuple[str, str] | None) -> None:
    assert modality_of(stem, CHANNELS) == found


def test_every_subset_is_measured_and_prediction_warns(
    world: Path, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """With all modalities the Dice is that of nnU-Net's own validation."""
    assert [len(subsets_of(CHANNELS[:n])) for n in (1, 2, 4)] == [1, 3, 15]
    command = ["-m", str(model), "-f", "0", "-device", "cpu", "--subsets", "Flair+T1n+T1ce+T2", "FLAIR"]
    assert run(evaluate_modalities.main, command) == 0
    assert "| x | x | x | x | 1 |" in capfd.readouterr().out
    table = json.loads((model / "modality_subsets.json").read_text())
    assert [row["modalities"] for row in table["subsets"]] == [list(CHANNELS), ["Flair"]]
    own = json.loads((model / "fold_0" / "validation" / "summary.json").read_text())["foreground_mean"]["Dice"]
    assert table["subsets"][0]["dice"] == pytest.approx(own, abs=1e-12)
    assert table["subsets"][0]["change"] == 0
    assert (model / "modality_subsets.png").stat().st_size > 10_000
    # an interrupted call of the same request goes on: the case that it had measured is not predicted again
    known = [score | {"dice": dict.fromkeys(score["dice"], 0.125)} for score in table["scores"]]
    request = {key: table[key] for key in ("checkpoints", "settings", "validation")}
    request["subsets"] = [row["modalities"] for row in table["subsets"]]
    (model / "modality_subsets.partial.json").write_text(json.dumps({"request": request, "scores": known}))
    assert run(evaluate_modalities.main, command) == 0
    assert json.loads((model / "modality_subsets.json").read_text())["subsets"][1]["dice"] == 0.125
    assert not (model / "modality_subsets.partial.json").exists()
    assert predicted(model, hospital(world, tmp_path / "in", "p1_FLAIR"), tmp_path / "out") == 0
    assert "1 case with Flair only (p1): Dice 0.12 in 1 validation case" in caplog.text
    assert rows_of(tmp_path / "out")[0]["validation_cases"] == "1"
    # a table of another checkpoint does not count
    edited = json.loads((model / "modality_subsets.json").read_text()) | {"checkpoints": {"0": "other"}}
    (model / "modality_subsets.json").write_text(json.dumps(edited))
    assert predicted(model, tmp_path / "in", tmp_path / "out2") == 0
    assert "is of other checkpoints or folds" in caplog.text
    os.remove(model / "modality_subsets.json")


def test_surface_distance_of_known_boxes() -> None:
    first, second = np.zeros((3, 12, 12), dtype=bool), np.zeros((3, 12, 12), dtype=bool)
    first[:, 2:6, 2:6] = second[:, 2:6, 4:8] = True
    assert surface_distance(first, first, (5, 1, 1)) == 0
    assert np.isnan(surface_distance(first, np.zeros_like(first), (5, 1, 1)))
    near, far = (surface_distance(first[1:2], second[1:2], (5, 1, size)) for size in (1, 2))
    assert 0 < near < 2
    assert far > near
    column = [np.zeros((1, 9, 9), dtype=bool) for _ in range(2)]
    column[0][0, 4, 2] = column[1][0, 4, 5] = True
    assert surface_distance(column[0], column[1], (1, 1, 2.5)) == 7.5
