"""Several data sets in one SSL stage, and its encoder in plans for each of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from emim_nnunet.checkpoints.io import load_checkpoint
from emim_nnunet.cli import convert, export, plan_and_preprocess, pool
from emim_nnunet.cli._run import run
from emim_nnunet.dataloading.crops import CropDataset
from emim_nnunet.datasets.preprocessed import Case
from emim_nnunet.phantom import make_phantom, write_brats2023
from tests.pipeline import PLANS, TOY_BLOCK, fold_folder, set_folders, toy_architecture
from tests.test_missing_modalities import CPU_PLANNING

POOL, LIKE = "Dataset005_Pool", "nnUNetEMIMPlans_like_dataset005"


def two_data_sets(folder: Path) -> None:
    """BraTS-like phantoms with four channels; and two cases with FLAIR, T1w and a channel that the others lack."""
    write_brats2023(folder / "a", 2, 1, seed=60, shape=(32, 32, 32))
    for number in range(2):
        images, _ = make_phantom(80 + number, (32, 32, 32))
        for name, voxels in (("FLAIR", images[3]), ("T1w", images[0]), ("PD", images[2])):
            path = folder / "b" / f"case{number}" / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = sitk.GetImageFromArray(voxels.astype(np.int16))
            image.SetSpacing((1.0, 1.0, 1.2))
            sitk.WriteImage(image, str(path))
    assert run(convert.main, ["brats2023", str(folder / "a"), "-d", "3", "--name", "A"]) == 0
    channels = [f"--channel={name}={{case}}/{name}.nii.gz" for name in ("FLAIR", "T1w", "PD")]
    assert run(convert.main, ["folders", str(folder / "b"), "-d", "4", "--name", "B", *channels]) == 0


def test_channels_are_pooled_by_name_and_what_is_missing_is_zero(
    nnunet_dirs: Path, tmp_path: Path, capsys: Any
) -> None:
    two_data_sets(tmp_path / "source")
    capsys.readouterr()
    assert run(pool.main, ["-d", "3", "4", "-o", "5"]) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert printed[:4] == [
        ["cases", "T1", "T1ce", "T2", "Flair", "PD"],
        ["Dataset003_A", "3", "3", "3", "3", "3", "0"],
        ["Dataset004_B", "2", "2", "0", "0", "2", "2"],
        ["all", "5", "5", "3", "3", "5", "2"],
    ]
    assert len(printed) == 5  # no warning
    raw = nnunet_dirs / "nnUNet_raw" / POOL
    names = json.loads((raw / "dataset.json").read_text())["channel_names"]
    assert list(names.values()) == ["T1", "T1ce", "T2", "Flair", "PD"]
    missing = json.loads((raw / "missing_channels.json").read_text())
    assert missing["004_case0"] == ["T1ce", "T2"]
    assert missing["003_BraTS-GLI-00003-000"] == ["PD"]
    origins = json.loads((raw / "origins.json").read_text())
    assert Counter(origins.values()) == {"Dataset003_A": 3, "Dataset004_B": 2}
    flair = raw / "imagesUnlabelled" / "004_case0_0003.nii.gz"
    assert flair.resolve() == nnunet_dirs / "nnUNet_raw" / "Dataset004_B" / "imagesUnlabelled" / "case0_0000.nii.gz"
    zeros = sitk.ReadImage(str(raw / "imagesUnlabelled" / "004_case0_0001.nii.gz"))
    assert not sitk.GetArrayFromImage(zeros).any()
    assert zeros.GetSpacing() == (1.0, 1.0, pytest.approx(1.2))
    some = ["-d", "3", "4", "-o", "6", "--name", "Two", "--channels", "T1", "T2"]
    assert run(pool.main, some) == 0
    assert len(list((nnunet_dirs / "nnUNet_raw" / "Dataset006_Two" / "imagesUnlabelled").iterdir())) == 10
    for options, message in (
        (["-d", "3", "-o", "7"], "at least two different data sets"),
        (["-d", "3", "4", "-o", "5"], "used already by"),
        (["-d", "3", "4", "-o", "7", "--channels", "SWI"], "--channels SWI: the data sets have"),
        (["-d", "3", "4", "-o", "7", "--channels", "T1ce"], "Dataset004_B has no case with one of the channels T1ce"),
        (["-d", "3", "9", "-o", "7"], "-d 9: expected one folder"),
    ):
        assert run(pool.main, options) == 2
        assert message in capsys.readouterr().err
    assert not list((nnunet_dirs / "nnUNet_raw").glob("*007*"))


def test_rare_channels_and_other_bodies_are_told(nnunet_dirs: Path, capsys: Any) -> None:
    """Heads, and slabs of a fraction of their height; T1 of one set is 0 in most cases, as --allow_missing leaves it."""
    raw = nnunet_dirs / "nnUNet_raw"
    for number, cases, thickness in ((3, 5, 12), (4, 2, 5)):
        folder = raw / f"Dataset{number:03d}_X" / "imagesUnlabelled"
        folder.mkdir(parents=True)
        for case in range(cases):
            voxels = np.zeros((14, 14, 14), dtype=np.int16)
            voxels[1 : 1 + thickness, 1:13, 1:13] = 1
            for channel in range(2):
                image = sitk.GetImageFromArray(voxels * (channel or case == 0 or number == 4))
                image.SetSpacing((10.0, 10.0, 10.0))
                sitk.WriteImage(image, str(folder / f"c{case}_{channel:04d}.nii.gz"))
        about = {"labels": {"background": 0, "a": 1}, "numTraining": 0, "file_ending": ".nii.gz"}
        names = {"channel_names": {"0": "ADC", "1": "T2"}}
        (folder.parent / "dataset.json").write_text(json.dumps(about | names))
    without = {f"c{case}": ["ADC"] for case in range(1, 5)}
    (raw / "Dataset003_X" / "missing_channels.json").write_text(json.dumps(without))
    (raw / "Dataset004_X" / "missing_channels.json").write_text(json.dumps({"c0": ["ADC"], "c1": ["ADC"]}))
    patients = nnunet_dirs / "nnUNet_preprocessed" / "Dataset003_X" / "patients.json"
    patients.parent.mkdir()
    patients.write_text(json.dumps({"c0": "p", "c1": "p"}))  # of --patients
    assert run(pool.main, ["-d", "3", "4", "-o", "5"]) == 0
    printed = capsys.readouterr().out
    assert "few cases have ADC; in the others zeros stand for it. To leave it out: --channels T2" in printed
    assert "Dataset004_X 50 x 120 x 120 mm, Dataset003_X 120 x 120 x 120 mm" in printed
    missing = json.loads((raw / POOL / "missing_channels.json").read_text())
    assert missing == {f"003_c{case}": ["ADC"] for case in range(1, 5)} | {f"004_c{case}": ["ADC"] for case in range(2)}
    assert json.loads((raw / POOL / "patients.json").read_text())["003_c1"] == "003_p"
    (raw / "Dataset003_X" / "imagesUnlabelled" / "c0_0000.nii.gz").write_bytes(b"damaged")
    assert run(pool.main, ["-d", "3", "4", "-o", "6"]) == 2
    assert "c0_0000.nii.gz cannot be read" in capsys.readouterr().err
    assert not list(raw.glob("*006*"))


def test_crops_are_balanced_over_the_origins() -> None:
    cases = [Case(Path("x"), f"a{i}", origin="A") for i in range(9)] + [
        Case(Path("x"), f"b{i}", origin="B") for i in range(2)
    ]
    dataset = CropDataset(cases, (8, 8, 8), seed=0)
    drawn = [dataset.case_of(i) for i in range(36)]
    assert Counter(case.origin for case in drawn) == {"A": 18, "B": 18}
    assert Counter(case.identifier for case in drawn if case.origin == "A") == {f"a{i}": 2 for i in range(9)}
    assert Counter(case.identifier for case in drawn if case.origin == "B") == {"b0": 9, "b1": 9}
    assert dataset.case_of(5) == drawn[5]  # whatever was asked for before


def test_a_pooled_stage_is_exported_into_plans_for_each_data_set(
    nnunet_dirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from nnunetv2.run.run_training import run_training

    from emim_nnunet.trainer_search import enable_search

    set_folders(nnunet_dirs, monkeypatch)
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    two_data_sets(tmp_path / "source")
    assert run(pool.main, ["-d", "3", "4", "-o", "5"]) == 0
    assert run(plan_and_preprocess.main, ["-d", "5", *CPU_PLANNING]) == 0
    preprocessed = nnunet_dirs / "nnUNet_preprocessed"
    assert (preprocessed / POOL / "origins.json").is_file()
    file = preprocessed / POOL / f"{PLANS}.json"
    plans = json.loads(file.read_text())
    pooled = plans["configurations"]["3d_fullres"]
    short = {"num_epochs": 1, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1}
    pooled["emim"] |= TOY_BLOCK | short
    pooled["architecture"] = toy_architecture(pooled["architecture"])
    file.write_text(json.dumps(plans))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    enable_search()
    run_training("5", "3d_fullres", "all", "nnUNetTrainerEMIMPretrain", PLANS, device=torch.device("cpu"))
    folder = fold_folder("nnUNetTrainerEMIMPretrain", "3d_fullres", "all").parents[2] / POOL
    stage = next(folder.rglob("checkpoint_final.pth"))
    learnt = load_checkpoint(stage)
    stem = next(v for k, v in learnt["network_weights"].items() if k.startswith("encoder.") and v.ndim == 5)
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    for number, order in ((3, [0, 1, 2, 3]), (4, [3, 0, 4])):
        options = ["-d", str(number), "--like", "5", "--no_pp", *CPU_PLANNING]
        assert run(plan_and_preprocess.main, options) == 0
        like = json.loads(next((preprocessed).glob(f"Dataset00{number}_*/{LIKE}.json")).read_text())
        assert like["configurations"]["3d_fullres"]["architecture"] == pooled["architecture"]
        assert like["configurations"]["3d_fullres"]["patch_size"] == pooled["patch_size"]
        capsys.readouterr()
        out = tmp_path / f"weights{number}.pth"
        command = [str(stage), "-d", str(number), "-p", LIKE, "-c", "3d_fullres", "-o", str(out)]
        assert run(export.main, command) == 0
        weights = torch.load(out, weights_only=True)["network_weights"]
        key = next(k for k, v in weights.items() if k.startswith("encoder.") and v.ndim == 5)
        assert torch.equal(weights[key], stem[:, order])
        if number == 4:
            assert "channel 2 'PD': filter of 'PD'" in capsys.readouterr().out
    options = ["-d", "4", "--like", str(stage), "--like_spacing", "--no_pp", *CPU_PLANNING]
    assert run(plan_and_preprocess.main, options) == 0
    like = json.loads(next(preprocessed.glob("Dataset004_*/nnUNetEMIMPlans_like_checkpoint_final.json")).read_text())
    assert like["configurations"]["3d_fullres"]["spacing"] == plans["configurations"]["3d_fullres"]["spacing"]
    for options, message in (
        (["--like", "9"], "-d 9: expected one folder"),
        (["--like", str(tmp_path / "none.pth")], "neither a file nor a folder"),
        (["--like", "5", "--like_configuration", "3d_cascade"], "have no configuration '3d_cascade'"),
    ):
        assert run(plan_and_preprocess.main, ["-d", "4", *options]) == 2
        assert message in capsys.readouterr().err
