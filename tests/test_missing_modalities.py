"""Cases with one to four of four modalities, from the hospital's files to finite losses in every method."""

from __future__ import annotations

import csv
import json
from math import isfinite
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

from emim_nnunet.checkpoints.io import load_checkpoint
from emim_nnunet.cli import classify, convert, diagnose, plan_and_preprocess, pool
from emim_nnunet.cli._run import run
from emim_nnunet.errors import UserError
from emim_nnunet.methods import method_classes
from emim_nnunet.phantom import MODALITIES, write_brats2023
from emim_nnunet.randomness import seeded_generator
from emim_nnunet.trainer_search import enable_search
from emim_nnunet.training.modality_dropout import kept_modalities
from tests.pipeline import (
    FINETUNE,
    PLANS,
    TOY_BLOCK,
    fold_folder,
    log_of,
    set_folders,
    toy_architecture,
    trainer_of,
)

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


def test_pooling_diagnosis_and_classification_take_them(ready: Path, tmp_path: Path) -> None:
    raw = ready / "nnUNet_raw"
    copytree(raw / DATASET, raw / "Dataset003_Again")
    assert run(pool.main, ["-d", "2", "3", "-o", "4", "--name", "Pooled"]) == 0
    pooled = json.loads((raw / "Dataset004_Pooled" / "missing_channels.json").read_text())
    missing = json.loads((raw / DATASET / "missing_channels.json").read_text())
    assert sorted(pooled.values()) == sorted([*missing.values()] * 2)
    trainer = trainer_of("nnUNetTrainerMIMPretrain", dataset="2")
    trainer.initialize()
    trainer.cases = trainer.find_cases()
    trainer.save_checkpoint(str(tmp_path / "mim.pth"))
    seen = ["--patches", "8", "-device", "cpu", "-o", str(tmp_path / "seen")]
    assert run(diagnose.main, [str(tmp_path / "mim.pth"), "-d", "2", *seen]) == 0
    assert (tmp_path / "seen" / "collapse_report.json").is_file()
    lines = [f"BraTS-GLI-{number:05d}-000,{'ab'[number % 2]}" for number in range(1, 8)]
    (tmp_path / "labels.csv").write_text("\n".join(["case,kind", *lines]))
    fitted = ["--checkpoint", str(tmp_path / "mim.pth"), "--frozen", "-device", "cpu", "-o", str(tmp_path / "classes")]
    assert run(classify.main, ["train", "2", "toy", "all", str(tmp_path / "labels.csv"), *fitted]) == 0
    model = str(tmp_path / "classes" / "classifier.pth")
    assert run(classify.main, ["predict", model, "2", "-device", "cpu", "-o", str(tmp_path / "predicted.csv")]) == 0
    rows = list(csv.DictReader((tmp_path / "predicted.csv").open()))
    assert len(rows) == len(KEPT)
    assert all(isfinite(float(row[key])) for row in rows for key in row if key.startswith("kind_"))


def test_the_planner_drops_modalities_where_cases_lack_some(incomplete: Path, prepared: Path) -> None:
    key = "finetune_p_drop_modality"
    for folder, planned in ((incomplete / "nnUNet_preprocessed" / DATASET, 0.25), (complete_folder(prepared), None)):
        plans = json.loads((folder / f"{PLANS}.json").read_text())
        assert plans["configurations"]["3d_fullres"]["emim"].get(key) == planned


def complete_folder(prepared: Path) -> Path:
    return prepared / "nnUNet_preprocessed" / "Dataset001_Toy"


def test_draws_keep_one_modality_and_never_what_must_stay() -> None:
    present = torch.tensor([[True, True, True, True], [False, True, True, False], [False, False, True, False]] * 2000)
    free, flair = torch.zeros(4, dtype=torch.bool), torch.tensor([False, False, False, True])
    kept = kept_modalities(present, 0.4, free, seeded_generator(0))
    assert kept.any(1).all()
    assert not (kept & ~present).any()
    whole = kept[::3].float()
    assert torch.allclose(whole.mean(0), torch.full((4,), 0.6 + 0.4**4 / 4), atol=0.04)  # the last one stays
    assert torch.allclose(kept[1::3, 1:3].float().mean(0), torch.tensor(0.6 + 0.4**2 / 2), atol=0.04)
    kept = kept_modalities(present, 1.0, flair, seeded_generator(0))
    assert torch.equal(kept[0], flair)  # what is never dropped is enough
    assert (kept.sum(1) == 1).all()
    assert torch.equal(kept_modalities(present, 0.0, free, seeded_generator(0)), present)


@pytest.mark.parametrize("configuration", ["toy_scratch", "toy_2d", "toy_primus"])
def test_steps_see_zeros_in_what_is_dropped(configuration: str, nnunet: Path) -> None:
    """Seeded, in 2D and 3D; the batch that reaches the network, and nothing else, is changed."""
    with_dropout(nnunet, configuration, finetune_p_drop_modality=0.6, finetune_keep_modalities=["t2f"], finetune_seed=1)
    seen: list[torch.Tensor] = []
    for _ in range(2):
        trainer = trainer_of(FINETUNE, "gaps")
        trainer.initialize()
        trainer.network.register_forward_pre_hook(lambda _, inputs: seen.append((inputs[0] != 0).flatten(2).any(2)))
        trainer.on_train_start()
        trainer.on_train_epoch_start()
        batch = next(trainer.dataloader_train)
        target = [t.clone() for t in batch["target"]] if isinstance(batch["target"], list) else batch["target"].clone()
        for _ in range(4):
            trainer.train_step(batch | {"data": torch.ones_like(batch["data"])})
        trainer.validation_step(batch)
        assert torch.equal(batch["target"][0], target[0])
    *steps, validated = seen[:5]
    assert torch.stack(steps).any() != torch.stack(steps).all()
    assert torch.stack(steps)[..., 3].all(), "Flair is kept"
    assert validated.all()
    assert all(torch.equal(a, b) for a, b in zip(seen[:4], seen[5:9], strict=True))


def with_dropout(nnunet: Path, parent: str, **block: object) -> None:
    """A configuration ``gaps`` of the toy plans."""
    file = complete_folder(nnunet) / f"{PLANS}.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["gaps"] = {"inherits_from": parent, "emim": {"finetune_init": "scratch"} | block}
    file.write_text(json.dumps(plans))


def test_what_a_case_lacks_stays_zero_and_a_stage_goes_on_as_it_began(ready: Path, tmp_path: Path) -> None:
    file = ready / "nnUNet_preprocessed" / DATASET / f"{PLANS}.json"
    plans = json.loads(file.read_text())
    trainer = trainer_of(FINETUNE, "toy", dataset="2")
    assert trainer._dropout == {"p": 0.25, "never": []}
    trainer.initialize()
    image = trainer._drop(torch.ones(2, 4, 16, 16, 16), ["BraTS-GLI-00001-000", "BraTS-GLI-00004-000"])
    assert (image != 0).flatten(2).any(2).tolist() == [[c in KEPT[case] for c in range(4)] for case in (0, 3)]
    trainer.optimizer.step()
    trainer.save_checkpoint(str(tmp_path / "began.pth"))
    began = torch.load(tmp_path / "began.pth", weights_only=False)
    assert began["init_args"]["modality_dropout"] == {"p": 0.25, "never": []}
    half = {"inherits_from": "toy", "emim": {"finetune_p_drop_modality": 0.5}}
    plans["configurations"]["half"] = half
    file.write_text(json.dumps(plans))
    for record, expected in (("modality_dropout", 0.25), ("", 0.0)):  # the second: as earlier versions wrote it
        began["init_args"].pop("modality_dropout" if not record else "", None)
        torch.save(began, tmp_path / "began.pth")
        trainer = trainer_of(FINETUNE, "half", dataset="2")
        trainer.load_checkpoint(str(tmp_path / "began.pth"))
        assert trainer._dropout["p"] == expected
        told = f"began with finetune_p_drop_modality {expected:g} and goes on so; the plans say finetune_p_drop_modality 0.5"
        assert told in log_of(Path(trainer.output_folder))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"finetune_p_drop_modality": 1.5}, "must be in"),
        ({"finetune_keep_modalities": ["PET"]}, "names 'PET'; the modalities are T1, T1ce, T2, Flair"),
        ({"finetune_keep_modalities": "T1"}, "list of names"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(block: dict, message: str, nnunet: Path) -> None:
    with_dropout(nnunet, "toy", **block)
    with pytest.raises(UserError, match=message):
        trainer_of(FINETUNE, "gaps")
    assert not fold_folder(FINETUNE, "gaps").exists()
