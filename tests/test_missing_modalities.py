"""Cases with one to four of four modalities, from the hospital's files to finite losses in every method."""

from __future__ import annotations

import csv
import json
from math import isfinite
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

from emim_nnunet.checkpoints.io import load_checkpoint
from emim_nnunet.cli import convert, plan_and_preprocess
from emim_nnunet.cli._run import run
from emim_nnunet.methods import method_classes
from emim_nnunet.phantom import MODALITIES, write_brats2023
from emim_nnunet.trainer_search import enable_search
from tests.pipeline import PLANS, TOY_BLOCK, set_folders, toy_architecture, trainer_of

DATASET = "Dataset002_Gaps"
KEPT = ([0], [1, 3], [0, 1, 2], [2], [0, 1, 2, 3], [3], [0, 2])  # modalities of each case; no case pair is alike
NAMES = ("T1", "T1ce", "T2", "Flair")
CPU_PLANNING = ("-c", "3d_fullres", "-gpu_memory_target", "0.3", "-np", "2", "-npfp", "2")


@pytest.fixture(scope="module")
def incomplete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five labelled and two unlabelled phantoms that lack modalities, converted, planned and preprocessed."""
    folder = tmp_path_factory.mktemp("incomplete")
    with pytest.MonkeyPatch.context() as patch:
        set_folders(folder, patch)
        patch.setenv("nnUNet_n_proc_DA", "1")
        cases = write_brats2023(folder / "source", 5, 2, seed=40, shape=(32, 32, 32))
        for case, kept in zip(cases, KEPT, strict=True):
            for number, modality in enumerate(MODALITIES):
                if number not in kept:
                    next((folder / "source").rglob(f"{case}-{modality}.nii.gz")).unlink()
        options = ["brats2023", str(folder / "source"), "-d", "2", "--name", "Gaps", "--allow_missing"]
        assert run(convert.main, options) == 0
        assert run(plan_and_preprocess.main, ["-d", "2", *CPU_PLANNING]) == 0
    file = folder / "nnUNet_preprocessed" / DATASET / f"{PLANS}.json"
    plans = json.loads(file.read_text())
    architecture = toy_architecture(plans["configurations"]["3d_fullres"]["architecture"])
    block = TOY_BLOCK | {"num_epochs": 1, "batch_size": 3}
    toy = {"inherits_from": "3d_fullres", "patch_size": [16, 16, 16], "architecture": architecture, "emim": block}
    plans["configurations"]["toy"] = toy
    file.write_text(json.dumps(plans))
    return folder


@pytest.fixture
def ready(incomplete: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    set_folders(incomplete, monkeypatch)
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    enable_search()
    return incomplete


def test_zeros_stand_for_what_is_missing_and_are_recorded(incomplete: Path) -> None:
    raw = incomplete / "nnUNet_raw" / DATASET
    verify_dataset_integrity(str(raw), 1)
    missing = json.loads((raw / "missing_channels.json").read_text())
    for number, kept in enumerate(KEPT, 1):
        case = f"BraTS-GLI-{number:05d}-000"
        assert missing.get(case, []) == [name for c, name in enumerate(NAMES) if c not in kept]
        folder = raw / ("imagesTr" if number <= 5 else "imagesUnlabelled")
        images = [sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{case}_{c:04d}.nii.gz"))) for c in range(4)]
        assert [bool(np.any(image)) for image in images] == [c in kept for c in range(4)]


def test_the_loader_says_what_is_there(ready: Path) -> None:
    trainer = trainer_of("nnUNetTrainerEMIMPretrain", dataset="2")
    for case in trainer.find_cases().training:
        trainer.cases = trainer.find_cases()
        batch = next(trainer._batches([case], 0, 0))
        kept = KEPT[int(case.identifier.split("-")[2]) - 1]
        assert batch["present"].tolist() == [[c in kept for c in range(4)]] * 3
        assert (batch["image"][:, [c for c in range(4) if c not in kept]] == 0).all()  # through nnU-Net's normalisation


@pytest.mark.parametrize("method", [m.__name__ for m in method_classes()])
def test_every_method_trains_with_finite_losses(method: str, ready: Path) -> None:
    trainer = trainer_of(f"nnUNetTrainer{method}Pretrain", dataset="2")
    trainer.run_training()
    folder = Path(trainer.output_folder)
    rows = list(csv.DictReader((folder / "ssl_log.csv").open()))
    assert len(rows) == 1
    losses = [float(value) for row in rows for key, value in row.items() if key.startswith(("train/", "val/"))]
    assert losses
    assert all(isfinite(value) for value in losses)
    weights = load_checkpoint(folder / "checkpoint_final.pth")["network_weights"]
    assert all(value.isfinite().all() for value in weights.values())
    report = json.loads((folder / "collapse_report.json").read_text())
    assert report["verdict"] in ("ok", "note", "warning")
