"""On a GPU: every stage gives what it gives on the CPU, goes on where it stopped, and leaves files that need no GPU.

Skipped where there is none; CI has none. ``python -m pytest tests/test_gpu.py`` on a machine that has one.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from emim_nnunet.checkpoints.encoder import encoder_state
from emim_nnunet.checkpoints.io import load_checkpoint
from emim_nnunet.cli import compare, diagnose, features, predict
from emim_nnunet.cli import export as export_command
from emim_nnunet.cli._run import run
from emim_nnunet.methods import method_classes, moco, vicreg
from emim_nnunet.training.ssl_trainer import SSLTrainer
from tests.pipeline import CPU, DATASET, DROP_IN, PLANS, PRETRAIN, fold_folder, train, trainer_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU on this machine")
GPU = torch.device("cuda")
METHODS = [method.__name__ for method in method_classes()]
CASE = "BraTS-GLI-00001-000"


def pretrainer(method: str) -> str:
    return f"nnUNetTrainer{method}Pretrain"


def difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Largest difference of the weights of two checkpoints; nine steps of AdamW move a weight by up to 9e-3."""
    pairs = zip(one["network_weights"].values(), other["network_weights"].values(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def first_losses(method: str, configuration: str, device: torch.device) -> dict[str, float]:
    """Terms of the loss in the first step, in single precision."""
    trainer = trainer_of(pretrainer(method), configuration, device=device)
    trainer.initialize()
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    trainer.guarded_step.autocast = lambda: torch.autocast(device.type, enabled=False)
    found = trainer.train_step(next(trainer.dataloader_train))
    trainer.dataloader_train.close()
    trainer.dataloader_val.close()
    return {name: float(value) for name, value in found["terms"].items()}


@pytest.mark.parametrize("configuration", ["toy", "toy_2d"])
@pytest.mark.parametrize("method", METHODS)
def test_the_first_step_is_that_of_the_cpu(method: str, configuration: str, nnunet: Path, monkeypatch: Any) -> None:
    for module in (moco, vicreg):  # the noise of views is drawn on the device, whose generator gives other numbers
        noise = module.draw_noise
        monkeypatch.setattr(module, "draw_noise", lambda *about, noise=noise: noise(*about[:-1], CPU).to(about[-1]))
    expected = first_losses(method, configuration, CPU)
    shutil.rmtree(fold_folder(pretrainer(method), configuration))
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = first_losses(method, configuration, GPU)
    assert expected.keys() == found.keys()
    assert all(np.isfinite(value) for value in found.values())
    assert found == pytest.approx(expected, rel=2e-3, abs=1e-5)


@pytest.mark.parametrize("configuration", ["toy", "toy_2d", "toy_plain"])
@pytest.mark.parametrize("method", METHODS)
def test_stages_finish_and_leave_weights_for_the_cpu(method: str, configuration: str, nnunet: Path) -> None:
    folder = train(pretrainer(method), configuration, device=GPU)
    checkpoint = torch.load(folder / "checkpoint_final.pth", weights_only=True)  # without map_location
    assert checkpoint["finished"]
    assert all(value.device.type == "cpu" for value in checkpoint["network_weights"].values())
    assert all(bool(value.isfinite().all()) for value in checkpoint["network_weights"].values())
    assert (folder / "progress.png").is_file()


def test_primus(nnunet: Path) -> None:
    assert load_checkpoint(train(PRETRAIN, "toy_primus", device=GPU) / "checkpoint_final.pth")["finished"]
    assert (train(DROP_IN, "toy_primus", device=GPU) / "validation" / "summary.json").is_file()


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_stage_goes_on_as_if_undisturbed(
    method: str, nnunet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for sums whose order the GPU chooses."""
    step, taken = SSLTrainer.train_step, iter(range(100))

    def interrupted(self: SSLTrainer, batch: dict) -> dict:
        if next(taken) == 4:
            raise KeyboardInterrupt
        return step(self, batch)

    whole = load_checkpoint(train(pretrainer(method), device=GPU) / "checkpoint_final.pth")
    shutil.rmtree(fold_folder(pretrainer(method)))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SSLTrainer, "train_step", interrupted)
        train(pretrainer(method), device=GPU)
    continued = load_checkpoint(train(pretrainer(method), device=GPU, continue_training=True) / "checkpoint_final.pth")
    assert difference(whole, continued) < 1e-3


def test_a_stage_of_the_gpu_goes_on_on_the_cpu_and_back(nnunet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, taken = SSLTrainer.train_step, iter(range(100))

    def interrupted(self: SSLTrainer, batch: dict) -> dict:
        if next(taken) in (4, 8):
            raise KeyboardInterrupt
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(SSLTrainer, "train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(PRETRAIN, device=GPU)
        with pytest.raises(KeyboardInterrupt):
            train(PRETRAIN, device=CPU, continue_training=True)
    folder = train(PRETRAIN, device=GPU, continue_training=True)
    assert load_checkpoint(folder / "checkpoint_final.pth")["finished"]


def test_both_stages_and_prediction(nnunet: Path, tmp_path: Path) -> None:
    folder = train(DROP_IN, device=GPU)
    pretrained = encoder_state(load_checkpoint(fold_folder(PRETRAIN) / "checkpoint_final.pth"))
    checkpoint = torch.load(folder / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    weights = encoder_state(checkpoint)
    assert 0 < max(float((weights[k].cpu() - v).abs().mean()) for k, v in pretrained.items()) < 0.05
    assert (folder / "validation" / "summary.json").is_file()
    source = tmp_path / "images"
    source.mkdir()
    for file in (nnunet / "nnUNet_raw" / DATASET / "imagesTr").glob(f"{CASE}_*"):
        shutil.copy(file, source)
    found = {}
    for device in ("cuda", "cpu"):
        options = ["-device", device, "-npp", "0", "-nps", "0", "--disable_tta"]
        here = ["-i", str(source), "-o", str(tmp_path / device), "-m", str(folder.parent), "-f", "0"]
        assert run(predict.main, [*here, *options]) == 0
        found[device] = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / device / f"{CASE}.nii.gz")))
    assert (found["cuda"] == found["cpu"]).mean() > 0.98


@pytest.mark.parametrize("trainer", ["nnUNetTrainerLinearFirst", "nnUNetTrainerLinearProbe"])
def test_linear_heads(trainer: str, nnunet: Path) -> None:
    train(PRETRAIN, device=GPU)
    folder = train(trainer, device=GPU)
    assert (folder / "validation" / "summary.json").is_file()


def test_modality_dropout(nnunet: Path) -> None:
    file = nnunet / "nnUNet_preprocessed" / DATASET / f"{PLANS}.json"
    text = file.read_text()
    plans = json.loads(text)
    plans["configurations"]["gaps"] = {"inherits_from": "toy_short", "emim": {"finetune_p_drop_modality": 0.5}}
    file.write_text(json.dumps(plans))
    try:
        assert (train(DROP_IN, "gaps", device=GPU) / "checkpoint_final.pth").is_file()
    finally:
        file.write_text(text)


def test_workers_and_pinned_memory_give_the_same_stage(nnunet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = []
    for workers in ("0", "2"):
        monkeypatch.setenv("nnUNet_n_proc_DA", workers)
        folder = train(PRETRAIN, device=GPU)
        weights.append(load_checkpoint(folder / "checkpoint_final.pth"))
        shutil.rmtree(folder)
    assert difference(*weights) < 1e-3


def test_commands_that_take_a_device(nnunet: Path, tmp_path: Path) -> None:
    folder = train(PRETRAIN, device=GPU)
    here = ["-d", "1", "-p", PLANS, "-c", "toy"]
    weights = tmp_path / "weights.pth"
    assert run(export_command.main, [str(folder), *here, "-o", str(weights)]) == 0
    tables = {}
    for device in ("cuda", "cpu"):
        report, table = tmp_path / f"report_{device}", tmp_path / f"{device}.csv"
        options = ["--patches", "4", "-device", device]
        assert run(diagnose.main, [str(folder), "-d", "1", "-o", str(report), *options]) == 0
        assert run(features.main, [str(folder), "-d", "1", "-o", str(table), "-device", device]) == 0
        tables[device] = np.genfromtxt(table, delimiter=",", skip_header=1)
    assert np.allclose(tables["cuda"], tables["cpu"], rtol=0.05, atol=0.05, equal_nan=True)
    reports = [
        json.loads((tmp_path / f"report_{device}" / "collapse_report.json").read_text()) for device in ("cuda", "cpu")
    ]
    ranks = [[stage["effective_rank"] for stage in report["now"]["stages"]] for report in reports]
    assert np.allclose(*ranks, rtol=0.05)


def test_a_comparison(nnunet: Path, tmp_path: Path) -> None:
    output = tmp_path / "comparison"
    options = ["--labelled", "1", "--seeds", "0", "--num_test", "2", "-device", "cuda"]
    assert run(compare.main, ["1", "toy", "-o", str(output), "--arms", "scratch", "mim", *options]) == 0
    assert {row["arm"] for row in json.loads((output / "results.json").read_text())["scores"]} == {"scratch", "mim"}
