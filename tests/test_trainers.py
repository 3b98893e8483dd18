"""The trainers through nnU-Net's own entry points, on phantoms that went through the real pipeline."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from runpy import run_module
from typing import Any

import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.run.run_training import maybe_load_checkpoint, run_training
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from emim_nnunet import trainers
from emim_nnunet.checkpoints.encoder import encoder_state
from emim_nnunet.checkpoints.export import export
from emim_nnunet.checkpoints.io import load_checkpoint
from emim_nnunet.cli import diagnose, estimate
from emim_nnunet.cli import export as export_command
from emim_nnunet.cli._run import run
from emim_nnunet.errors import UserError
from emim_nnunet.estimate import StageEstimate
from emim_nnunet.planners.ssl_plan import PLANNED_KEYS
from emim_nnunet.settings.plans import planned
from emim_nnunet.training import ssl_trainer
from emim_nnunet.training.description import describe_unused
from emim_nnunet.training.log import without_paths
from emim_nnunet.training.ssl_trainer import SSLTrainer
from emim_nnunet.training.stage import settings_without_effect
from tests.pipeline import DATASET, DROP_IN, FINETUNE, PLANS, PRETRAIN, fold_folder, log_of, train, trained, trainer_of


@pytest.mark.parametrize("trainer", [PRETRAIN, "nnUNetTrainerMIMPretrain"])
def test_ssl_stage_leaves_log_pictures_and_a_safe_checkpoint(
    trainer: str, nnunet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = count(time.time(), -86400)  # the clock on the wall is put back all the time
    monkeypatch.setattr(time, "time", lambda: next(clock))
    monkeypatch.setattr(ssl_trainer, "time", time.time, raising=False)
    folder = train(trainer)
    rows = list(csv.DictReader((folder / "ssl_log.csv").open()))
    assert all(0 < float(r["seconds"]) < 600 and float(r["patches_per_second"]) > 0 for r in rows)
    assert load_checkpoint(folder / "checkpoint_previous.pth")["current_epoch"] == 2
    assert [float(r["epoch"]) for r in rows] == [0, 1, 2]
    assert {"train/loss", "val/reconstruction", "skill/T1ce", "skill/all", "lr", "seconds"} <= set(rows[0])
    assert (folder / "progress.png").is_file()
    assert sorted(p.name[:10] for p in (folder / "reconstructions").iterdir()) == ["epoch_0000", "epoch_0002"]
    assert not (folder / "checkpoint_latest.pth").exists()
    checkpoint = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    assert checkpoint["finished"]
    assert checkpoint["channel_names"] == ["T1", "T1ce", "T2", "Flair"]
    log = log_of(folder)
    assert "Skill over the constant prediction: T1 " in log
    assert "reconstruction decoder (thrown away)" in log


def test_validation_cases_are_not_learnt_from_unless_asked(nnunet: Path) -> None:
    trainer = trainer_of(PRETRAIN)
    cases = trainer.find_cases()
    splits = json.loads((nnunet / "nnUNet_preprocessed" / DATASET / "splits_final.json").read_text())
    learnt = [c.identifier for c in cases.training]
    assert sorted(learnt) == sorted([*splits[0]["train"], "BraTS-GLI-00006-000", "BraTS-GLI-00007-000"])
    assert [c.identifier for c in cases.probe] == splits[0]["val"]
    assert cases.probe_is_held_out
    asked = trainer_of(PRETRAIN, "toy_seen").find_cases()
    assert set(splits[0]["val"]) < {c.identifier for c in asked.training}
    assert not asked.probe_is_held_out
    everything = trainer_of(PRETRAIN, fold="all").find_cases()
    assert len(everything.training) == 7
    assert not everything.probe_is_held_out


def test_other_scans_of_held_out_patients_are_left_out(nnunet: Path, tmp_path: Path, monkeypatch: Any) -> None:
    copy = tmp_path / "preprocessed"
    shutil.copytree(nnunet / "nnUNet_preprocessed", copy)
    monkeypatch.setenv("nnUNet_preprocessed", str(copy))
    held_out = json.loads((copy / DATASET / "splits_final.json").read_text())[0]["val"][0]
    again = "BraTS-GLI-00006-000"  # an unlabelled scan of the same patient
    (copy / DATASET / "patients.json").write_text(json.dumps({held_out: "P1", again: "P1"}))
    cases = trainer_of(PRETRAIN).find_cases()
    assert [c.identifier for c in cases.left_out] == [again]
    assert again not in {c.identifier for c in cases.training}
    assert [c.subject for c in cases.probe] == ["P1"]
    everything = trainer_of(PRETRAIN, "toy_seen").find_cases()
    assert not everything.left_out
    (copy / DATASET / "patients.json").write_text("[]")
    with pytest.raises(UserError, match=r"patients.json must be a JSON object"):
        trainer_of(PRETRAIN).find_cases()


@pytest.mark.parametrize("configuration", ["toy_2d", "toy_plain"])
def test_flat_and_plain_networks(configuration: str, nnunet: Path) -> None:
    assert load_checkpoint(train(PRETRAIN, configuration) / "checkpoint_final.pth")["finished"]


@pytest.mark.parametrize("method", ["MoCoZCA", "MaskInMask", "VICReg", "MaskedSelfDistillation"])
def test_stages_of_other_methods_are_exported_and_diagnosed(method: str, nnunet: Path, tmp_path: Path) -> None:
    folder = trained(f"nnUNetTrainer{method}Pretrain")
    weights_of_stage = load_checkpoint(folder / "checkpoint_final.pth")["network_weights"]
    weights = tmp_path / "weights.pth"
    assert run(export_command.main, [str(folder), "-d", "1", "-p", PLANS, "-c", "toy", "-o", str(weights)]) == 0
    stock = trainer_of("nnUNetTrainer")
    stock.initialize()
    load_pretrained_weights(stock.network, str(weights))
    expected = {k: v for k, v in weights_of_stage.items() if k.startswith("encoder.")}
    assert all(torch.equal(v, stock.network.state_dict()[k]) for k, v in expected.items())
    report = tmp_path / "report"
    assert run(diagnose.main, [str(folder), "-d", "1", "-o", str(report), "--patches", "4", "-device", "cpu"]) == 0
    measured = json.loads((report / "collapse_report.json").read_text())
    assert (measured["now"]["reconstruction"] is None) == (method in ("MoCoZCA", "VICReg"))


def test_an_existing_stage_is_never_overwritten(nnunet: Path) -> None:
    folder = trained(PRETRAIN)
    before = (folder / "checkpoint_final.pth").read_bytes()
    with pytest.raises(UserError, match=r"already holds an SSL stage.*--c"):
        train(PRETRAIN)
    train(PRETRAIN, continue_training=True)  # finished: nothing to do
    assert (folder / "checkpoint_final.pth").read_bytes() == before
    trainer = trainer_of(PRETRAIN, continued=True)
    trainer.block = trainer.block | {"patch_ratio": 0.4}
    with pytest.raises(UserError, match="another value of patch_ratio"):
        trainer.load_checkpoint(str(folder / "checkpoint_final.pth"))
    other = trainer_of("nnUNetTrainerMIMPretrain", continued=True)
    with pytest.raises(UserError, match="is of method EMIM"):
        other.load_checkpoint(str(folder / "checkpoint_final.pth"))


def test_drop_in_pretrains_once_then_segments_and_needs_nothing_of_us_to_predict(nnunet: Path) -> None:
    folder = train(DROP_IN)
    ssl = load_checkpoint(fold_folder(PRETRAIN) / "checkpoint_final.pth")
    log = log_of(folder)
    assert "SSL stage first" in log
    assert f"Encoder: from {without_paths(fold_folder(PRETRAIN))}" in log
    checkpoint = torch.load(folder / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    assert (folder / "validation" / "summary.json").is_file()
    # the encoder has moved on from the pretrained one, by little
    weights = encoder_state(checkpoint)
    pretrained = encoder_state(ssl)
    changes = [float((weights[k] - v).abs().mean()) for k, v in pretrained.items()]
    assert 0 < max(changes) < 0.05
    # a second run takes the finished stage; --c continues the segmentation without touching the encoder
    shutil.rmtree(folder)
    stamp = (fold_folder(PRETRAIN) / "checkpoint_final.pth").stat().st_mtime_ns
    trainer = trainer_of(DROP_IN)
    trainer.initialize()
    trainer._prepare_encoder()
    assert (fold_folder(PRETRAIN) / "checkpoint_final.pth").stat().st_mtime_ns == stamp
    loaded = trainer.encoder.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in pretrained.items())


def test_drop_in_continues_an_unfinished_ssl_stage(nnunet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = iter(range(100))
    step = SSLTrainer.train_step

    def interrupted(self: SSLTrainer, batch: dict) -> dict:
        if next(steps) == 4:
            raise KeyboardInterrupt
        return step(self, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SSLTrainer, "train_step", interrupted)
        train(DROP_IN)
    trainer = trainer_of(DROP_IN, continued=True)
    trainer.initialize()
    trainer._prepare_encoder()
    assert "Continuing after 1 of 3 epochs" in log_of(fold_folder(PRETRAIN))
    assert load_checkpoint(fold_folder(PRETRAIN) / "checkpoint_final.pth")["finished"]


def test_segmentation_continues_without_the_ssl_stage(nnunet: Path) -> None:
    trainer = trainer_of(DROP_IN, "toy_scratch")
    trainer.num_epochs = 1
    trainer.run_training()
    final = fold_folder(DROP_IN, "toy_scratch") / "checkpoint_final.pth"
    final.rename(final.with_name("checkpoint_latest.pth"))
    continued = trainer_of(DROP_IN, "toy_scratch", continued=True)
    maybe_load_checkpoint(continued, True, False)
    assert continued.current_epoch == 1
    continued.run_training()
    assert not fold_folder(PRETRAIN, "toy_scratch").exists()
    assert final.is_file()


def test_a_segmentation_checkpoint_is_nnunets_under_another_name_written_once(
    nnunet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(DROP_IN, "toy_scratch")
    trainer.initialize()
    nnUNetTrainer.save_checkpoint(trainer, str(tmp_path / "stock.pth"))
    saved = []
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda content, file: saved.append(content) or save(content, file))
    trainer.save_checkpoint(str(tmp_path / "ours.pth"))
    assert len(saved) == 1
    assert type(trainer).__name__ == DROP_IN
    stock, ours = (torch.load(tmp_path / f"{name}.pth", weights_only=False) for name in ("stock", "ours"))
    assert (stock.pop("trainer_name"), ours.pop("trainer_name")) == (DROP_IN, "nnUNetTrainer")
    assert ours.keys() == stock.keys()
    weights, expected = ours.pop("network_weights"), stock.pop("network_weights")
    assert all(torch.equal(weights[key], expected[key]) for key in weights.keys() | expected.keys())
    assert ours["init_args"].pop("modality_dropout") == {"p": 0.0, "never": []}
    assert ours == stock


def test_the_final_validation_can_be_left_to_a_later_command(nnunet: Path) -> None:
    folder = train(FINETUNE, "toy_short")
    assert (folder / "checkpoint_final.pth").is_file()
    assert not (folder / "validation").exists()
    assert "finetune_final_validation is false: --val predicts whole cases" in log_of(folder)
    train(FINETUNE, "toy_short", only_run_validation=True)
    assert (folder / "validation" / "summary.json").is_file()


def test_finetune_needs_a_stage_or_weights(nnunet: Path) -> None:
    with pytest.raises(UserError, match="no finished SSL stage"):
        train(FINETUNE)


def test_export_feeds_the_stock_trainer_and_the_finetune_trainer(nnunet: Path, tmp_path: Path) -> None:
    folder = trained(PRETRAIN, fold="all")
    dataset = nnunet / "nnUNet_preprocessed" / DATASET
    plans, dataset_json = (json.loads((dataset / n).read_text()) for n in (f"{PLANS}.json", "dataset.json"))
    weights = tmp_path / "weights.pth"
    export(folder / "checkpoint_final.pth", plans, "toy", dataset_json, weights)
    pretrained = encoder_state(load_checkpoint(folder / "checkpoint_final.pth"))
    for name in ("nnUNetTrainer", FINETUNE):
        trainer = trainer_of(name)
        maybe_load_checkpoint(trainer, False, False, str(weights))
        if name == FINETUNE:
            trainer._prepare_encoder()
            assert "Encoder: from -pretrained_weights" in log_of(fold_folder(FINETUNE))
        loaded = trainer.network.encoder.state_dict()
        assert all(torch.equal(loaded[k], v) for k, v in pretrained.items())


def test_given_weights_count_even_if_they_change_nothing(nnunet: Path, tmp_path: Path) -> None:
    trainer = trainer_of(FINETUNE)
    trainer.initialize()
    torch.save({"network_weights": trainer.network.state_dict()}, tmp_path / "weights.pth")
    load_pretrained_weights(trainer.network, str(tmp_path / "weights.pth"))
    trainer._prepare_encoder()  # there is no SSL stage
    assert "Encoder: from -pretrained_weights" in log_of(fold_folder(FINETUNE))


@pytest.mark.parametrize(
    ("configuration", "given", "peak", "why"),
    [
        ("toy", True, 1e-3, "0.001 (finetune_initial_lr: the encoder is pretrained)"),
        ("toy_scratch", True, 1e-3, "0.001 (finetune_initial_lr: the encoder is pretrained)"),
        ("toy_scratch", False, 1e-2, "0.01 (finetune_scratch_lr: the encoder is from scratch)"),
    ],
    ids=["weights", "weights in the configuration of scratch", "scratch"],
)
def test_each_arm_warms_up_to_its_own_peak_and_decays(
    configuration: str, given: bool, peak: float, why: str, nnunet: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(FINETUNE, configuration)
    trainer.config = dataclasses.replace(trainer.config, finetune_num_epochs=100, finetune_warmup_epochs=10)
    trainer.num_epochs = 100
    trainer.initialize()
    if given:
        torch.save({"network_weights": trainer.network.state_dict()}, tmp_path / "weights.pth")
        load_pretrained_weights(trainer.network, str(tmp_path / "weights.pth"))
    trainer._prepare_encoder()
    assert f"Peak learning rate: {why}" in log_of(fold_folder(FINETUNE, configuration))
    rates = []
    for epoch in range(100):
        trainer.lr_scheduler.step(epoch)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates[:10] == pytest.approx([peak * (e + 1) / 11 for e in range(10)])
    assert max(rates) == rates[10] == peak
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.05 * peak
    # what the first step after the warm-up does to a weight: momentum is still 0, Nesterov adds 0.99 of the gradient
    trainer.lr_scheduler.step(10)
    bias = trainer.network.decoder.seg_layers[-1].bias
    before = bias.detach().clone()
    trainer.optimizer.zero_grad()
    bias.grad = torch.ones_like(bias)
    trainer.optimizer.step()
    assert torch.allclose(before - bias, peak * 1.99 * (1 + trainer.weight_decay * before), rtol=1e-4)


def test_a_stage_goes_on_at_the_rate_with_which_it_began(nnunet: Path, tmp_path: Path) -> None:
    begun = trainer_of(FINETUNE, "toy_scratch")
    begun.config = dataclasses.replace(begun.config, finetune_scratch_lr=1e-3)  # as earlier versions had it
    begun.initialize()
    begun._prepare_encoder()
    begun.save_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    continued = trainer_of(FINETUNE, "toy_scratch", continued=True)
    continued.load_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    continued._prepare_encoder()
    continued.lr_scheduler.step(0)
    assert continued.optimizer.param_groups[0]["lr"] == 1e-3
    assert "Peak learning rate: 0.001 (with which the stage began)" in log_of(fold_folder(FINETUNE, "toy_scratch"))


def test_without_deep_supervision_there_is_one_output_and_every_weight_learns(nnunet: Path) -> None:
    image = torch.zeros(2, 4, 16, 16, 16)
    outputs = {}
    for asked in (True, False):
        trainer = trainer_of(FINETUNE, "toy_scratch")
        plans = {**trainer.plans_manager.plans, "continue_training": False}
        block = {"finetune_deep_supervision": asked}
        plans["configurations"] = plans["configurations"] | {"x": {"inherits_from": "toy_scratch", "emim": block}}
        trainer = getattr(trainers, FINETUNE)(plans, "x", 0, trainer.dataset_json, torch.device("cpu"))
        trainer.initialize()
        trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)  # as on_train_start does
        outputs[asked] = trainer.network(image)
    assert [tuple(o.shape[2:]) for o in outputs[True]] == [(16, 16, 16), (8, 8, 8)]
    assert tuple(outputs[False].shape[2:]) == (16, 16, 16)
    assert trainer._get_deep_supervision_scales() is None  # of the targets
    outputs[False].square().mean().backward()
    learning = {n for n, p in trainer.network.named_parameters() if p.requires_grad}  # DDP waits for all of them
    assert {n for n, p in trainer.network.named_parameters() if p.grad is not None} == learning
    assert not any("seg_layers.0" in name for name in learning)


def test_leaked_validation_cases_are_refused(nnunet: Path) -> None:
    trained(PRETRAIN)
    splits_file = nnunet / "nnUNet_preprocessed" / DATASET / "splits_final.json"
    splits = splits_file.read_text()
    try:
        splits_file.write_text(json.dumps(json.loads(splits)[::-1]))
        with pytest.raises(UserError, match="has learnt from validation cases of fold 0"):
            train(FINETUNE)
    finally:
        splits_file.write_text(splits)


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        ("bad_typo", "unknown key 'cel_size'.*cell_size"),
        ("bad_large_cell", "cell_size .* at most patch_size"),
        ("bad_deep", r"pyramid_levels \[1, 7\] must be different stages of the encoder, which has 3"),
        ("bad_text", "key 'initial_lr' .* must be a float"),
        ("bad_negative", "num_epochs must be at least 1"),
        ("bad_none", "has no 'emim' block"),
    ],
)
def test_bad_blocks_are_refused_before_anything_is_written(configuration: str, message: str, nnunet: Path) -> None:
    with pytest.raises(UserError, match=message):
        trainer_of(PRETRAIN, configuration)
    assert list(Path(os.environ["nnUNet_results"]).iterdir()) == []


def test_settings_of_other_methods_are_told_or_refused(nnunet: Path) -> None:
    data = nnunet / "nnUNet_preprocessed" / DATASET
    plans, dataset_json = (json.loads((data / name).read_text()) for name in (f"{PLANS}.json", "dataset.json"))
    plans["configurations"]["mixed"] = {
        "inherits_from": "toy",
        "emim": {"mask_ratio": 0.75, "queue_size": 64, "barlow_weight": 0.2, "seed": 3, "finetune_seed": 3},
    }
    assert plans["configurations"]["3d_fullres"]["emim"].keys() == set(PLANNED_KEYS)

    def trainer(name: str, configuration: str, continued: bool = False) -> SSLTrainer:
        arguments = (plans | {"continue_training": continued}, configuration, 0, dataset_json, torch.device("cpu"))
        return getattr(trainers, f"nnUNetTrainer{name}Pretrain")(*arguments)

    def told(stage: SSLTrainer) -> list[str]:
        return describe_unused(settings_without_effect(stage.block, stage.method_config.__class__))

    line = "Settings of other methods, without effect here: "
    assert told(trainer("MIM", "mixed")) == [f"{line}barlow_weight, queue_size"]
    assert told(trainer("MoCoZCA", "mixed")) == [f"{line}barlow_weight, mask_ratio"]
    for name in ("MIM", "MoCoZCA", "MaskInMask", "VICReg", "EMIM"):  # the planner's keys are nobody's mistake
        assert told(trainer(name, "3d_fullres")) == []
    for name in ("EMIM", "MaskInMask"):
        with pytest.raises(UserError, match=f"mask_ratio has no effect with {name}: take it out"):
            trainer(name, "mixed")
    # a stage of an earlier version goes on
    assert told(trainer("EMIM", "mixed", continued=True)) == [f"{line}mask_ratio, queue_size"]
    begun = trainer("MIM", "mixed")
    begun.on_train_start()
    assert f"{line}barlow_weight, queue_size \n" in log_of(fold_folder("nnUNetTrainerMIMPretrain", "mixed"))


def test_nnunets_own_command_ends_in_one_line(nnunet: Path) -> None:
    code = "from nnunetv2.run.run_training import run_training_entry; run_training_entry()"
    arguments = ["1", "bad_typo", "0", "-tr", PRETRAIN, "-p", PLANS, "-device", "cpu"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "error: unknown key 'cel_size'" in done.stderr.splitlines()[-1]


def test_training_on_a_cpu_keeps_to_the_thread_limit(nnunet: Path) -> None:
    """nnU-Net's command takes all cores; several commands on one machine would wait for each other."""
    arguments = ["1", "toy_short", "0", "-tr", DROP_IN, "-p", PLANS, "-device", "cpu"]
    code = f"from emim_nnunet.cli.train import main; main({arguments}); import torch; print(torch.get_num_threads())"
    more = "import multiprocessing, torch; multiprocessing.cpu_count = lambda: 3; torch.set_num_threads(3)\n"
    done = subprocess.run(
        [sys.executable, "-c", more + code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "2"},
    )
    assert done.stdout.split()[-1] == "2"


@pytest.mark.parametrize("trainer", [PRETRAIN, FINETUNE, DROP_IN])
def test_without_a_gpu_plain_nnunet_is_told_what_to_type(trainer: str, nnunet: Path, monkeypatch: Any) -> None:
    """Its -device is cuda unless the user says something else."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="there is no GPU: use -device cpu"):
        run_training("1", "toy", 0, trainer, PLANS)
    assert list(Path(os.environ["nnUNet_results"]).iterdir()) == []


def test_only_what_the_plans_can_cause_is_said_to_be_of_the_plans() -> None:
    with pytest.raises(UserError, match="plan again"), planned("the network cannot be built"):
        raise RuntimeError("stride must be positive")
    for message in ("Found no NVIDIA driver on your system", "CUDA error: invalid device", "DefaultCPUAllocator: full"):
        with pytest.raises(RuntimeError, match=message[:12]), planned("the network cannot be built"):
            raise RuntimeError(message)


@pytest.mark.parametrize("num_cases", [1, 2])
def test_one_or_two_cases_are_enough(num_cases: int, nnunet: Path, tmp_path: Path, monkeypatch: Any) -> None:
    small = tmp_path / "preprocessed" / DATASET
    big = nnunet / "nnUNet_preprocessed" / DATASET
    data = small / "nnUNetEMIMPlans_3d_fullres"
    data.mkdir(parents=True)
    for name in (f"{PLANS}.json", "dataset.json", "dataset_fingerprint.json"):
        shutil.copy(big / name, small / name)
    for number in range(1, num_cases + 1):
        for file in (big / data.name).glob(f"BraTS-GLI-0000{number}-000*"):
            shutil.copy(file, data)
    monkeypatch.setenv("nnUNet_preprocessed", str(small.parent))
    if num_cases == 1:
        with pytest.raises(UserError, match="use fold 'all'"):
            train(PRETRAIN)
    folder = train(PRETRAIN, fold=0 if num_cases == 2 else "all")
    checkpoint = load_checkpoint(folder / "checkpoint_final.pth")
    assert len(checkpoint["training_cases"]) == 1
    assert len(checkpoint["validation_cases"]) == num_cases - 1


def test_wholly_unlabelled_data(nnunet: Path, tmp_path: Path, monkeypatch: Any) -> None:
    small = tmp_path / "preprocessed" / DATASET
    shutil.copytree(nnunet / "nnUNet_preprocessed" / DATASET, small)
    shutil.rmtree(small / "nnUNetEMIMPlans_3d_fullres")
    (small / "nnUNetEMIMPlans_3d_fullres.records").unlink()  # or the folder would lack what it says
    monkeypatch.setenv("nnUNet_preprocessed", str(small.parent))
    checkpoint = load_checkpoint(train(PRETRAIN) / "checkpoint_final.pth")
    assert checkpoint["training_cases"] == ["BraTS-GLI-00006-000", "BraTS-GLI-00007-000"]


def test_the_splits_are_those_that_nnunet_would_write(nnunet: Path) -> None:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    splits_file = nnunet / "nnUNet_preprocessed" / DATASET / "splits_final.json"
    ours = splits_file.read_text()  # emim_plan_and_preprocess wrote it
    splits_file.unlink()
    try:
        nnUNetTrainer.do_split(trainer_of(PRETRAIN))
        assert json.loads(splits_file.read_text()) == json.loads(ours)
    finally:
        splits_file.write_text(ours)


def test_the_preprocessed_data_may_be_read_only(nnunet: Path) -> None:
    data = nnunet / "nnUNet_preprocessed"
    prefix = ["unshare", "--mount", "sh", "-c"]
    mount = f"mount --bind '{data}' '{data}' && mount -o remount,ro,bind '{data}'"
    if subprocess.run([*prefix, mount], capture_output=True, check=False).returncode:
        pytest.skip("mounting read-only needs root")
    command = f"{mount} && ! touch '{data}/x' && exec {sys.executable} -m emim_nnunet.cli.pretrain 1 toy 0 -device cpu"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([*prefix, command], env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (fold_folder(PRETRAIN) / "checkpoint_final.pth").is_file()


def test_an_estimate_describes_both_stages_and_leaves_nothing(
    nnunet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = list(Path(os.environ["nnUNet_results"]).iterdir())
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setenv("nnUNet_results", os.environ["nnUNet_results"])  # the command sets it
    out = tmp_path / "cost.json"
    assert run(estimate.main, ["1", "toy", "0", "-device", "cpu", "--steps", "2", "--json", str(out)]) == 0
    ssl, segmentation = json.loads(out.read_text())
    assert (ssl["stage"], segmentation["stage"]) == ("SSL stage", "segmentation")
    assert (ssl["num_epochs"], ssl["num_iterations_per_epoch"], ssl["batch_size"]) == (3, 3, 2)
    for stage in (ssl, segmentation):
        pace = max(stage["step_seconds"], stage["loading_seconds"])
        seconds = stage["num_iterations_per_epoch"] * pace + stage["validation_seconds"]
        assert stage["hours"] == pytest.approx(stage["num_epochs"] * seconds / 3600)
        assert stage["patches_per_second"] == pytest.approx(2 / pace)
        assert 0.1 < stage["peak_memory_gigabytes"] < 20
    printed = capsys.readouterr().out
    assert "SSL stage (nnUNetTrainerEMIMPretrain, cpu): " in printed
    assert "together: " in printed
    assert list(temporary.iterdir()) == []

    folder = trained(PRETRAIN)
    written = (folder / "checkpoint_final.pth").stat().st_size
    assert ssl["checkpoint_gigabytes"] * 1e9 == pytest.approx(written, rel=0.35)  # tiny: names and history count
    assert list(Path(os.environ["nnUNet_results"]).iterdir()) != results


def test_an_estimate_of_unknown_things_ends_in_one_line(
    nnunet: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_results", os.environ["nnUNet_results"])
    assert run(estimate.main, ["1", "bad_typo", "0", "-device", "cpu"]) == 2
    assert "unknown key 'cel_size'" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")  # it is run again, on other systems
def test_peak_memory_is_told_on_every_system(monkeypatch: pytest.MonkeyPatch) -> None:
    module, cpu = StageEstimate.__module__, torch.device("cpu")
    used = run_module(module)["_peak_gigabytes"](cpu)  # KiB on Linux
    assert 0.1 < used < 50
    monkeypatch.setattr(sys, "platform", "darwin")  # bytes
    assert run_module(module)["_peak_gigabytes"](cpu) == pytest.approx(used / 1024, rel=0.1)
    monkeypatch.setitem(sys.modules, "resource", None)  # Windows: it cannot be imported
    windows = run_module(module)
    assert windows["_peak_gigabytes"](cpu) is None
    costs = dict.fromkeys((field.name for field in dataclasses.fields(StageEstimate)), 1.0)
    estimated = StageEstimate(**costs | {"peak_memory_gigabytes": windows["_peak_gigabytes"](cpu)})
    assert "peak memory not measured (counted" in estimated.lines()[-1]
