"""The collapse monitor inside an SSL stage, and emim_diagnose on what it and nnU-Net leave behind."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch import nn

from emim_nnunet.checkpoints.export import export
from emim_nnunet.checkpoints.io import load_checkpoint, read_checkpoint, save_checkpoint
from emim_nnunet.checkpoints.locate import find_checkpoint
from emim_nnunet.checkpoints.source import EncoderSource, read_source
from emim_nnunet.cli import diagnose as command
from emim_nnunet.cli._run import run
from emim_nnunet.diagnosis.air import without_air
from emim_nnunet.diagnosis.collapse_monitor import CollapseMonitor
from emim_nnunet.diagnosis.probe_data import choose_cases
from emim_nnunet.diagnosis.reference import read_reference
from emim_nnunet.diagnosis.subjects import subjects
from emim_nnunet.diagnostics import Thresholds
from emim_nnunet.errors import UserError
from emim_nnunet.methods import method_classes
from emim_nnunet.methods.emim import EMIM
from emim_nnunet.methods.mim import MIM
from emim_nnunet.training.epoch_report import log_lines
from tests.pipeline import DATASET, PLANS, PRETRAIN, fold_folder, log_of, train, trained, trainer_of
from tests.toy import toy_batch, toy_method

MIM_PRETRAIN = "nnUNetTrainerMIMPretrain"


def monitor(method: Any, **changes: Any) -> CollapseMonitor:
    options = {"seed": 0, "warmup_epochs": 0, "norm_pix": False} | changes
    return CollapseMonitor(method.patch_size, method.config.cell_size, ["a", "b", "c", "d"], **options)


def look(watch: CollapseMonitor, method: nn.Module, epoch: int) -> dict[str, Any]:
    watch.start()
    for first in (0, 2, 4):
        image, foreground, draws = toy_batch(method, first=first)
        with torch.no_grad():
            output = method.eval()(image, foreground, draws)
        watch.update(range(first, first + 2), image, foreground, output, method.encoder)
    return watch.finish(epoch, 250 * epoch)


def test_features_are_those_of_the_unmasked_image_whether_or_not_the_method_computes_them() -> None:
    plain = toy_method(EMIM, barlow_weight=0.0)
    with_views = toy_method(EMIM, pyramid_levels=(1, 2), projector_widths=(0, 0))
    with_views.load_state_dict(plain.state_dict())
    stages = [look(monitor(method), method, 0)["stages"] for method in (plain, with_views)]
    assert stages[0] == stages[1]
    rows = torch.cat([plain.encoder(toy_batch(plain, 6)[0])[2].flatten(2).transpose(1, 2).flatten(0, 1)])
    assert stages[0][2]["count"] < len(rows)  # only cells in the body


def test_a_constant_output_and_constant_features_are_called_so() -> None:
    method = toy_method(MIM)
    watch = monitor(method)
    with torch.no_grad():
        method.decoder.head.weight.zero_()
        method.decoder.head.bias.zero_()
    levels = [look(watch, method, epoch)["level"] for epoch in range(4)]
    assert levels == ["ok", "note", "note", "warning"]
    assert "constant output" in watch.log_line()
    assert watch.unhealthy_epochs == 1
    with torch.no_grad():
        for parameter in method.encoder.parameters():
            parameter.zero_()
    assert look(watch, method, 4)["level"] == "error"
    assert "features of stage 0 are the same everywhere" in watch.log_line()
    assert watch.unhealthy_epochs == 2


def test_a_network_that_knows_only_the_outline_is_called_so() -> None:
    method = toy_method(MIM, foreground_only=False)
    watch = monitor(method)
    for epoch in (0, 1):
        watch.start()
        image, foreground, draws = toy_batch(method, 6)
        image = (image * 0.1 + 1) * foreground  # min-max like: bright inside, 0 outside
        with torch.no_grad():
            output = method.eval()(image, foreground, draws)
        drawn = output.reconstruction._replace(prediction=foreground.float().expand_as(image))
        watch.update(range(6), image, foreground, output._replace(reconstruction=drawn), method.encoder)
        watch.finish(epoch, 250 * epoch)
    assert watch.verdict.level == "warning"
    assert "learned the outline only" in watch.verdict.line


def test_crops_of_air_that_is_not_zero_are_called_empty_and_have_no_skill() -> None:
    """A background of -0.42 that counts as body, as on images that were skull-stripped to a constant that is not 0."""
    method = toy_method(MIM)
    watch = monitor(method)
    noise = torch.Generator().manual_seed(0)
    for epoch in range(4):
        watch.start()
        image, foreground, draws = toy_batch(method, 6)
        air = -0.42 + 0.02 * torch.randn(image.shape, generator=noise)
        with torch.no_grad():
            output = method.eval()(air, torch.ones_like(foreground), draws)
        watch.update(range(6), air, torch.ones_like(foreground), output, method.encoder)
        watch.finish(epoch, 250 * epoch)
    assert watch.verdict.level == "warning"
    assert watch.verdict.line.startswith("WARNING: the probe crops are empty: they hardly vary")
    assert "--background_to_zero or --mask" in watch.verdict.line
    assert not {"no_skill", "low_skill"} & {finding.rule for finding in watch.verdict.findings}
    assert all(isnan(skill) for skill in watch.skills().values())
    row = {"train/loss": 1.0, "val/loss": 1.0, "seconds": 1.0, "patches_per_second": 1.0} | watch.skills()
    assert "Skill over the constant prediction: a n/a, b n/a, c n/a, d n/a, all n/a" in log_lines(row)


@pytest.mark.parametrize("num_axes", [2, 3])
def test_a_silhouette_is_no_skill_although_everything_counts_as_body(num_axes: int) -> None:
    """Whole heads with noise around them, in data whose body was not looked for: a flat head on black explains half of them."""
    method = toy_method(MIM, num_axes=num_axes)
    image, head, draws = toy_batch(method, 6, num_axes=num_axes)
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    image = torch.where(head, 2 + 0.5 * image, 0.05 * noise)
    everything = torch.ones_like(head)
    with torch.no_grad():
        output = method.eval()(image, everything, draws)
    assert output.reconstruction is not None
    blurred = (nn.functional.avg_pool2d if num_axes == 2 else nn.functional.avg_pool3d)(head.float(), 3, 1, 1)
    painted = {"silhouette": 2.0 * blurred.expand_as(image), "learnt": torch.where(head, 0.4 + 0.8 * image, 0.0)}
    flagged = {}
    for name, prediction in painted.items():
        watch = monitor(method)
        drawn = output._replace(reconstruction=output.reconstruction._replace(prediction=prediction))
        for epoch in range(4):
            watch.start()
            watch.update(range(6), image, everything, drawn if epoch else output, method.encoder)
            watch.finish(epoch, 250 * epoch)
        scores = watch.history[-1]["reconstruction"]["all"]
        assert scores["skill"] > 0.3
        flagged[name] = {finding.rule for finding in watch.verdict.findings}
    assert "outline_only" in flagged["silhouette"]
    assert not flagged["learnt"]


def test_only_air_is_taken_out_of_the_body() -> None:
    method = toy_method(MIM)
    image, head, _ = toy_batch(method, 2)
    assert without_air(image, head) is head  # it has an outline
    tissue = image[:, :, 5:11, 5:11, 5:11]
    inside = torch.ones_like(tissue[:, :1], dtype=torch.bool)
    assert without_air(tissue, inside).all()
    whole = torch.where(head, image + 2, 0.01 * image)
    found = without_air(whole, torch.ones_like(head))
    assert (found == head).float().mean() > 0.95


def same_patch(reconstruction: Any) -> Any:
    """What a decoder puts out that has no sense of place: one patch for all cells, about the mean of each sample."""
    mean = reconstruction.image.mean((2, 3, 4), keepdim=True)
    return mean + reconstruction.target[:1, :, :4, :4, :4].repeat(1, 1, 4, 4, 4) * 0.1


def sample_mean(reconstruction: Any) -> Any:
    return reconstruction.image.mean((2, 3, 4), keepdim=True).expand_as(reconstruction.image)


def partly_right(reconstruction: Any) -> Any:
    noise = torch.randn(reconstruction.target.shape, generator=torch.Generator().manual_seed(0))
    return 0.3 * reconstruction.target + 0.05 * noise


@pytest.mark.parametrize("draws_what", [same_patch, sample_mean, partly_right])
def test_cells_that_all_get_the_same_are_found_although_there_is_skill(draws_what: Any) -> None:
    method = toy_method(MIM)
    watch = monitor(method)
    image, foreground, draws = toy_batch(method, 6)
    # samples of different brightness: knowing the mean of each is a skill
    image = (image + torch.linspace(-2, 2, 6).view(6, 1, 1, 1, 1)) * foreground
    with torch.no_grad():
        output = method.eval()(image, foreground, draws)
    drawn = output._replace(reconstruction=output.reconstruction._replace(prediction=draws_what(output.reconstruction)))
    for epoch in range(4):
        watch.start()
        watch.update(range(6), image, foreground, drawn if epoch else output, method.encoder)
        watch.finish(epoch, 250 * epoch)
    assert watch.history[0]["level"] == "ok"  # the untrained network is not judged
    assert watch.history[-1]["reconstruction"]["all"]["foreground_skill"] > 0.3
    found = {(finding.rule, finding.level) for finding in watch.verdict.findings}
    collapsed = draws_what is not partly_right
    assert (("cells_alike", "warning") in found) == collapsed
    assert ("fully masked cells of a sample get nearly the same content" in watch.log_line()) == collapsed
    assert "no_skill" not in {rule for rule, _ in found}


def test_measurements_of_an_earlier_version_go_on(tmp_path: Path) -> None:
    method = toy_method(MIM)
    watch = monitor(method)
    for epoch in range(2):
        look(watch, method, epoch)
    for key in ("baselines", "mask_losses"):
        watch.history[0].pop(key)
    for scores in (scores for m in watch.history for scores in m["reconstruction"].values()):
        scores.pop("within")
    assert watch.first_lines() == []
    look(watch, method, 2)
    watch.write(tmp_path, {}, picture=True)
    rows = list(csv.DictReader((tmp_path / "collapse.csv").open()))
    assert [row["within"] == "" for row in rows if row["name"] == "all"] == [True, True, False]
    assert imread(tmp_path / "collapse_spectrum.png").std() > 0.05


def test_a_rank_of_too_few_rows_is_marked_and_the_mark_explained() -> None:
    method = toy_method(MIM)
    watch = monitor(method)
    look(watch, method, 0)
    assert "?" not in watch.log_line()
    watch.history[0]["stages"][1]["status"] = "insufficient"
    assert re.search(r"/4, [\d.]+/8\?, [\d.]+/16; \? = fewer than 10 rows per channel, no verdict\)$", watch.log_line())


def test_nan_is_an_error_that_names_the_stage() -> None:
    method = toy_method(MIM)
    watch = monitor(method)
    with torch.no_grad():
        next(method.encoder.parameters()).fill_(torch.nan)
    look(watch, method, 0)
    assert watch.verdict.level == "error"
    assert {f.scope for f in watch.verdict.findings} >= {"reconstruction", "stage 0", "stage 1", "stage 2"}


def test_a_run_leaves_table_report_picture_and_verdict(nnunet: Path) -> None:
    folder = trained(PRETRAIN)
    rows = list(csv.DictReader((folder / "collapse.csv").open()))
    names = ["all", "T1", "T1ce", "T2", "Flair"]
    assert [r["name"] for r in rows if r["epoch"] == "3"] == [*names, "0", "1", "2"]
    kinds = ("constant", "sample_constant", "outline", "depth", "mask")
    first = {k: {r["name"]: float(r["loss"]) for r in rows if r["kind"] == k and r["epoch"] == "0"} for k in kinds}
    collapsed = {r["name"]: float(r["collapsed_loss"]) for r in rows if r["kind"] == "modality" and r["epoch"] == "0"}
    assert first["constant"] == pytest.approx(collapsed)
    assert list(first["depth"]) == names
    assert all(first["depth"][n] < first["outline"][n] <= first["constant"][n] * (1 + 1e-9) for n in names)
    assert all(0 < first["sample_constant"][n] < first["constant"][n] for n in names)
    assert list(first["mask"]) == ["position", "patch", "modality", "hybrid"]
    assert list(first["mask"].values()) == pytest.approx([collapsed["all"]] * 4, rel=0.1)
    assert {r["epoch"] for r in rows} == {"0", "1", "2", "3"}  # 0 = untrained
    report = json.loads((folder / "collapse_report.json").read_text())
    assert (report["schema"], report["schema_version"]) == ("emim_nnunet.collapse_report", 1)
    assert report["now"]["epoch"] == 3
    assert report["now"]["num_patches"] == 4
    assert report["about"]["probe_is_held_out"] is True
    assert report["about"]["seed"] == 0
    losses = report["untrained"]["constant_losses"]
    assert losses["global"] >= losses["modality"] >= losses["cell_position"] >= losses["voxel_position"] > 0
    for stage, relative in zip(report["now"]["stages"], report["relative_to_untrained"], strict=True):
        assert len(stage["spectrum"]) == stage["channels"]
        assert sum(stage["spectrum"]) == pytest.approx(1)
        assert relative["trace"] > 0
    with (folder / "ssl_log.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["skill/T1"]) == pytest.approx(report["now"]["reconstruction"]["T1"]["skill"])
    assert imread(folder / "collapse_spectrum.png").std() > 0.05
    checkpoint = load_checkpoint(folder / "checkpoint_final.pth")
    assert checkpoint["verdict"]["level"] == report["verdict"]
    assert [m["epoch"] for m in checkpoint["collapse"]] == [0, 1, 2, 3]
    assert {r["step"] for r in rows} == {"0", "3", "6", "9"}
    log = log_of(folder)
    assert "Losses of constant predictions on the probe set: per global" in log
    assert log.count("Collapse monitor: ") == 4
    assert re.search(
        r"Losses without image content: constant [\d.]+ \(skill 0\.000\), sample constant [\d.]+ \(skill", log
    )
    assert re.search(r"Collapsed loss with other masks: position [\d.]+, patch [\d.]+, modality [\d.]+, hybrid", log)
    assert {m["reconstruction"]["all"]["within"] > 0 for m in checkpoint["collapse"]} == {True}


def test_the_losses_of_another_stage_are_drawn_beside_or_refused_before_the_start(nnunet: Path, tmp_path: Path) -> None:
    other = trained(PRETRAIN)
    with (other / "ssl_log.csv").open() as file:
        losses = [float(row["val/reconstruction"]) for row in csv.DictReader(file)]
    named = (str(other), str(other / "ssl_log.csv"), str(other.relative_to(os.environ["nnUNet_results"])))
    for reference in map(read_reference, named):
        assert reference is not None
        assert reference.losses == tuple(losses)
        assert reference.epochs == (1, 2, 3)
        assert reference.name == f"{other.parent.name}/fold_0"
    file = nnunet / "nnUNet_preprocessed" / DATASET / f"{PLANS}.json"
    text = file.read_text()
    plans = json.loads(text)
    block = plans["configurations"]["toy_beside"] = {"inherits_from": "toy", "emim": {"num_epochs": 1}}
    try:
        block["emim"]["collapse_reference"] = "nowhere"
        file.write_text(json.dumps(plans))
        with pytest.raises(UserError, match=r"collapse_reference nowhere: .*; name the folder of another SSL stage"):
            trainer_of(MIM_PRETRAIN, "toy_beside")
        assert not fold_folder(MIM_PRETRAIN, "toy_beside").exists()
        block["emim"]["collapse_reference"] = named[2]
        file.write_text(json.dumps(plans))
        folder = train(MIM_PRETRAIN, "toy_beside")
    finally:
        file.write_text(text)
    assert f"Reference {other.parent.name}/fold_0: reconstruction loss {losses[-1]:.4f} after 3 epochs" in log_of(
        folder
    )
    about = json.loads((folder / "collapse_report.json").read_text())["about"]
    assert about["reference"] == f"{other.parent.name}/fold_0"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no reconstruction losses"),
        (b"epoch,val/loss\n0,1.0\n", "no reconstruction losses"),
        (b"epoch,val/reconstruction\n0,nan\n", "no reconstruction losses"),
        (b"epoch,val/reconstruction\n0,\n", "not the ssl_log.csv of an SSL stage"),
        (b"time,val/reconstruction\n0,1.0\n", "not the ssl_log.csv of an SSL stage"),
        (b"PK\xff\xfe\x00", "not the ssl_log.csv of an SSL stage"),
    ],
)
def test_what_is_no_log_of_a_stage_is_refused_in_one_line(content: bytes, reason: str, nnunet_dirs: Path) -> None:
    (nnunet_dirs / "ssl_log.csv").write_bytes(content)
    with pytest.raises(UserError, match=reason) as refused:
        read_reference(str(nnunet_dirs))
    assert "\n" not in str(refused.value)


def test_a_run_is_never_stopped_unless_asked_to(nnunet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate of almost nothing: no skill for as long as it lasts."""
    file = nnunet / "nnUNet_preprocessed" / DATASET / f"{PLANS}.json"
    text = file.read_text()
    plans = json.loads(text)
    stuck = {"initial_lr": 1e-9, "num_epochs": 6}
    plans["configurations"]["toy_stuck"] = {"inherits_from": "toy", "emim": stuck}
    plans["configurations"]["toy_stopped"] = {"inherits_from": "toy", "emim": stuck | {"collapse_patience": 2}}
    try:
        file.write_text(json.dumps(plans))
        folder = train(MIM_PRETRAIN, "toy_stuck")
        final = load_checkpoint(folder / "checkpoint_final.pth")
        assert final["verdict"]["level"] == "note"  # 18 steps are too few for a warning
        assert [m["step"] for m in final["collapse"]] == [0, 3, 6, 9, 12, 15, 18]
        monkeypatch.setattr(CollapseMonitor, "thresholds", Thresholds(patience_steps=9))
        shutil.rmtree(folder)
        folder = train(MIM_PRETRAIN, "toy_stuck")
        assert load_checkpoint(folder / "checkpoint_final.pth")["verdict"]["level"] == "warning"
        with pytest.raises(UserError, match=r"stopped after 4 epochs \(collapse_patience 2\): WARNING: no skill over"):
            train(MIM_PRETRAIN, "toy_stopped")
        stopped = fold_folder(MIM_PRETRAIN, "toy_stopped")
        assert load_checkpoint(stopped / "checkpoint_latest.pth")["current_epoch"] == 4
        plans["configurations"]["toy_stopped"]["emim"]["collapse_patience"] = None
        file.write_text(json.dumps(plans))
        train(MIM_PRETRAIN, "toy_stopped", continue_training=True)
        assert load_checkpoint(stopped / "checkpoint_final.pth")["current_epoch"] == 6
    finally:
        file.write_text(text)


# ------------------------------------------------------------------------------------------------------ emim_diagnose


def diagnose(*arguments: Any, capsys: Any) -> tuple[int, str]:
    try:
        code = run(command.main, [str(a) for a in arguments] + ["-device", "cpu"])
    except SystemExit as end:
        code = end.code
    out = capsys.readouterr()
    return code, out.out + out.err


@pytest.fixture
def stage_checkpoint(nnunet: Path) -> Path:
    return trained(PRETRAIN) / "checkpoint_final.pth"


def test_diagnose_our_stage_stock_nnunet_and_an_export(
    stage_checkpoint: Path, nnunet: Path, tmp_path: Path, capsys: Any
) -> None:
    code, text = diagnose(stage_checkpoint, "-d", 1, "--patches", 8, "-o", tmp_path / "ours", capsys=capsys)
    assert code == 0
    assert "SSL stage, nnUNetTrainerEMIMPretrain, 3 epochs" in text
    assert "held out in training" in text
    assert "Skill over a constant in the body: all" in text
    assert re.search(
        r"Losses without image content: constant .*, depth [\d.]+ \(skill [\d.-]+\); of the network [\d.]+", text
    )
    report = json.loads((tmp_path / "ours" / "collapse_report.json").read_text())
    assert report["about"]["probe_cases"] == load_checkpoint(stage_checkpoint)["validation_cases"]
    assert report["now"]["reconstruction"]["all"]["skill"] != report["untrained"]["reconstruction"]["all"]["skill"]

    trainer = trainer_of("nnUNetTrainer")
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 2, 1
    trainer.run_training()
    stock = fold_folder("nnUNetTrainer").parent  # nnU-Net's folder of a model
    other = ("--compare", stage_checkpoint, "--probe")
    code, text = diagnose(stock, "-d", 1, "--patches", 12, "-o", tmp_path / "stock", *other, capsys=capsys)
    assert code == 0, text
    assert "nnU-Net, nnUNetTrainer, 1 epochs" in text
    assert "Reconstruction: n/a" in text
    assert "probe R2 compared" in text
    assert "The dense probe takes all 5 labelled cases" in text
    report = json.loads((tmp_path / "stock" / "collapse_report.json").read_text())
    assert report["now"]["reconstruction"] is None
    assert report["about"]["compared"]["stages"][0]["channels"] == 4
    assert imread(tmp_path / "stock" / "collapse_spectrum.png").std() > 0.05

    dataset = nnunet / "nnUNet_preprocessed" / DATASET
    plans, dataset_json = (json.loads((dataset / n).read_text()) for n in (f"{PLANS}.json", "dataset.json"))
    export(stage_checkpoint, plans, "toy", dataset_json, tmp_path / "weights.pth")
    code, text = diagnose(tmp_path / "weights.pth", "-d", 1, "-o", tmp_path / "x", capsys=capsys)
    assert code == 2
    assert "say with -p and -c" in text
    data = ("-d", 1, "-p", PLANS, "-c", "toy", "--patches", 8)
    code, text = diagnose(tmp_path / "weights.pth", *data, "-o", tmp_path / "export", capsys=capsys)
    assert code == 0, text
    exported = json.loads((tmp_path / "export" / "collapse_report.json").read_text())
    assert exported["about"]["kind"] == "adaptation plan"
    # the exported encoder is the pretrained one: same features on the same patches
    code, _ = diagnose(stage_checkpoint, *data, "-o", tmp_path / "again", capsys=capsys)
    again = json.loads((tmp_path / "again" / "collapse_report.json").read_text())
    if exported["about"]["probe_cases"] == again["about"]["probe_cases"]:
        assert exported["now"]["stages"][2]["spectrum"] == pytest.approx(again["now"]["stages"][2]["spectrum"])


@pytest.mark.parametrize("method", [method.__name__ for method in method_classes()])
def test_the_untrained_twin_is_the_network_before_the_first_step(method: str, nnunet: Path, tmp_path: Path) -> None:
    trainer = trainer_of(f"nnUNetTrainer{method}Pretrain")
    torch.manual_seed(1)  # whatever the global generator
    trainer.initialize()
    trainer.cases = trainer.find_cases()
    trainer.save_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    before = trainer.method.state_dict()
    torch.manual_seed(2)
    _, untrained, _ = subjects(read_source(tmp_path / "checkpoint_latest.pth"), trainer.channel_names)
    twin = untrained.method.state_dict()
    assert twin.keys() == before.keys()
    assert [key for key in twin if not torch.equal(twin[key], before[key])] == []


def test_diagnose_strict_fails_on_a_collapsed_stage(stage_checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    checkpoint = load_checkpoint(stage_checkpoint)
    weights = checkpoint["network_weights"]
    for key in ("decoder.head.weight", "decoder.head.bias"):
        weights[key] = torch.zeros_like(weights[key])
    save_checkpoint(checkpoint, tmp_path / "collapsed.pth")
    arguments = (tmp_path / "collapsed.pth", "-d", 1, "--patches", 4, "-o", tmp_path / "report")
    code, text = diagnose(*arguments, capsys=capsys)
    assert code == 0
    assert "Verdict: WARNING: no skill over a constant (plateau or collapse, constant output)" in text
    assert "; fully masked cells of a sample get nearly the same content (their variance is 0.0000" in text
    code, _ = diagnose(*arguments, "--strict", capsys=capsys)
    assert code == 1


def test_diagnose_with_another_number_of_channels(stage_checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    """A network for one channel, as nnssl's are, on four-channel data."""
    checkpoint = load_checkpoint(stage_checkpoint)
    single = {k: v for k, v in checkpoint["network_weights"].items() if k.startswith("encoder.")}
    for key, value in single.items():
        if value.ndim == 5 and value.shape[1] == 4 and ("stem" in key):
            single[key] = value[:, :1].clone()
    architecture = checkpoint["plans"]["configurations"]["toy"]["architecture"]
    plan = {
        "architecture_plans": {
            "arch_class_name": architecture["network_class_name"],
            "arch_kwargs": architecture["arch_kwargs"],
            "arch_kwargs_requiring_import": architecture["_kw_requires_import"],
        },
        "pretrain_num_input_channels": 1,
        "recommended_downstream_patchsize": [16, 16, 16],
        "key_to_encoder": "encoder.stages",
    }
    torch.save({"network_weights": single, "nnssl_adaptation_plan": plan}, tmp_path / "nnssl.pth")
    arguments = (tmp_path / "nnssl.pth", "-d", 1, "-p", PLANS, "-c", "toy", "--patches", 4, "-o", tmp_path / "report")
    code, text = diagnose(*arguments, capsys=capsys)
    assert code == 0, text
    assert "stem adapted from 1 to 4 input channels" in text
    assert "held out or not: unknown" in text
    plan["architecture_plans"]["arch_class_name"] = "os.system"
    torch.save({"network_weights": single, "nnssl_adaptation_plan": plan}, tmp_path / "nnssl.pth")
    code, text = diagnose(*arguments, capsys=capsys)
    assert code == 2
    assert "not one of nnU-Net's" in text


def test_diagnose_refuses_what_it_cannot_use(stage_checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    output = ("-o", tmp_path / "report")
    torch.save({"weights": 1}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no checkpoint")
    torch.save({"network_weights": nn.Linear(1, 1)}, tmp_path / "pickle.pth")
    torch.save({"network_weights": {}}, tmp_path / "bare.pth")
    cases = {
        ("missing", "-d", 1): "neither a file nor a folder",
        ("other.pth", "-d", 1): "no 'network_weights'",
        ("text.pth", "-d", 1): "text.pth",
        ("pickle.pth", "-d", 1): "holds objects that only running code could restore",
        ("bare.pth", "-d", 1): "does not say which network",
    }
    for (name, *rest), message in cases.items():
        code, text = diagnose(tmp_path / name, *rest, *output, capsys=capsys)
        assert code == 2, name
        assert message in text
        assert "Traceback" not in text
    for rest, message in {
        ("-d", 7): "expected one folder Dataset007_NAME",
        ("-d", 1, "-p", "Nothing"): "-p Nothing",
        ("-d", 1, "-c", "nothing"): "have no configuration 'nothing'",
        ("-d", 1, "--patches", 0): "--patches must be at least 1",
        ("-d", 1, "--probe", "--patches", 1): "all patches came from one case",
    }.items():
        code, text = diagnose(stage_checkpoint, *rest, *output, capsys=capsys)
        assert code == 2, rest
        assert message in text
    assert not (tmp_path / "report").exists()


def test_held_out_cases_are_those_of_the_split(nnunet: Path, tmp_path: Path) -> None:
    dataset = nnunet / "nnUNet_preprocessed" / DATASET

    def found(fold: int | str, dataset_name: str = DATASET) -> tuple[bool | None, list[str]]:
        source = EncoderSource(tmp_path, "nnU-Net", {}, {}, 4, (16,) * 3, fold=fold, dataset_name=dataset_name)
        data = choose_cases(source, 1, PLANS, "toy")
        return data.held_out, [case.identifier for case in data.cases]

    validation = json.loads((dataset / "splits_final.json").read_text())[1]["val"]
    assert found(1) == (True, validation)
    whole = found("all")
    assert whole[0] is False
    assert len(whole[1]) == 7
    for fold in (5, -1):  # nnU-Net draws a split of its own for it
        assert found(fold) == (None, whole[1])
    assert found(1, "Dataset002_Other") == (None, whole[1])


def test_a_model_with_several_folds_asks_which(stage_checkpoint: Path) -> None:
    model = stage_checkpoint.parent.parent
    assert find_checkpoint(model) == stage_checkpoint
    shutil.copytree(stage_checkpoint.parent, model / "fold_1")
    with pytest.raises(UserError, match=r"several folds \(fold_0, fold_1\): choose with -f"):
        find_checkpoint(model)
    assert find_checkpoint(model, "1").parent.name == "fold_1"


def test_numpy_numbers_are_read_and_code_is_not(tmp_path: Path) -> None:
    numbers = {"a": np.float64(0.5), "b": [np.float32(1), np.int64(3)], "c": np.bool_(True)}
    torch.save(numbers, tmp_path / "numbers.pth")
    assert read_checkpoint(tmp_path / "numbers.pth") == numbers
