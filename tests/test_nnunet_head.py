"""nnU-Net's git HEAD starts from our exports, with its own commands.

It is not released, so its checkout is named by the environment variable NNUNET_HEAD; ``.ci/newest`` makes one every week.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from emim_nnunet.checkpoints.encoder import encoder_state, fit_positions
from emim_nnunet.checkpoints.io import read_checkpoint
from emim_nnunet.cli import export as export_command
from emim_nnunet.cli._run import run
from emim_nnunet.storage.files import read_json, write_json
from tests.pipeline import DATASET, PRETRAIN, trained

HEAD = os.environ.get("NNUNET_HEAD", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path(HEAD, "nnunetv2").is_dir(), reason="NNUNET_HEAD names no checkout of nnU-Net"),
]
# what HEAD downloads from the Hub is copied from a folder
FROM_FOLDER = """
import os, shutil
import nnunetv2.experiment_planning.like_nnssl as like_nnssl
def downloaded(repo_id, filename, local_dir):
    assert repo_id == "lab/encoder"
    return shutil.copy(os.path.join(os.environ["HUB"], filename), local_dir)
like_nnssl.hf_hub_download = downloaded
"""
COMMANDS = {
    "nnUNetv2_plan_experiment": "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints:plan_experiment_entry",
    "nnUNetv2_plan_like_dynamic": "nnunetv2.experiment_planning.like_nnssl:plan_like_dynamic_entrypoint",
    "nnUNetv2_preprocess_like_nnssl": "nnunetv2.experiment_planning.like_nnssl:preprocess_like_nnssl_entrypoint",
    "nnUNetv2_train_pretrained": "nnunetv2.run.run_training_from_pretrained:train_pretrained_entrypoint",
}
# HEAD's trainers train for 1000 epochs of 250 steps; this shortens them and keeps the weights with which they begin
SHORT = """
import os, torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
start = nnUNetTrainer.on_train_start
def shortened(self):
    self.num_epochs = self.num_iterations_per_epoch = self.num_val_iterations_per_epoch = 1
    start(self)
    torch.save(self.network.state_dict(), os.environ["BEGINS_WITH"])
nnUNetTrainer.on_train_start = shortened
"""


def call(command: str, *arguments: str, **environment: str) -> str:
    module, function = COMMANDS[command].split(":")
    before = SHORT + (FROM_FOLDER if "HUB" in environment else "")
    code = f"{before}\nimport sys\nfrom {module} import {function} as command\nsys.argv[0] = {command!r}\ncommand()"
    workers = "0" if "train" in command else "1"  # of augmentation; planning counts threads by them
    paths = {"PYTHONPATH": HEAD, "nnUNet_n_proc_DA": workers, "nnUNet_compile": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | paths | environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def export_of(configuration: str, folder: Path) -> Path:
    file = folder / f"{configuration}.pth"
    assert run(export_command.main, [str(trained(PRETRAIN, configuration)), "--encoder", "-o", str(file)]) == 0
    return file


@pytest.mark.parametrize(
    ("configuration", "trainer"), [("toy", "PretrainedTrainer"), ("toy_primus", "PretrainedTrainer_Primusx")]
)
@pytest.mark.parametrize("patch", [16, 24])
def test_it_adapts_its_network_to_the_export(
    configuration: str, trainer: str, patch: int, nnunet: Path, tmp_path: Path
) -> None:
    file = export_of(configuration, tmp_path)
    adapts(configuration, trainer, patch, nnunet, tmp_path, file, str(file))


def test_it_downloads_a_folder_for_the_hub(nnunet: Path, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    assert run(export_command.main, [str(trained(PRETRAIN)), "--hub", str(hub)]) == 0
    file, address = hub / "checkpoint_final.pth", "https://huggingface.co/lab/encoder"
    folders = {"HUB": str(hub), "nnssl_pretrained_models": str(tmp_path)}
    adapts("toy", "PretrainedTrainer", 16, nnunet, tmp_path, file, address, **folders)
    downloaded = sorted(path.name for path in (tmp_path / "lab_encoder").iterdir())
    assert downloaded == ["adaptation_plan.json", "checkpoint_final.pth", "config.json"]
    keeps("toy", nnunet, tmp_path, file)


def adapts(
    configuration: str,
    trainer: str,
    patch: int,
    nnunet: Path,
    tmp_path: Path,
    file: Path,
    address: str,
    **environment: str,
) -> None:
    """HEAD plans and preprocesses like a checkpoint, and begins with its encoder."""
    name = f"{configuration}{patch}{'_hub' if environment else ''}"
    call("nnUNetv2_plan_experiment", "-d", "1")
    options = ["-d", "1", "-n", name, "-pc", address, "-am", "like_pretrained", "-np", "1"]
    call("nnUNetv2_preprocess_like_nnssl", *options, **environment)
    (plans,) = (nnunet / "nnUNet_preprocessed" / DATASET).glob(f"ptPlans__{name}____*.json")
    content = read_json(plans)
    content["configurations"]["3d_fullres"]["patch_size"] = [patch] * 3
    write_json(plans, content)
    begins_with = tmp_path / "begins_with.pth"
    options = ["1", "3d_fullres", "0", "-p", plans.stem, "-tr", trainer, "-device", "cpu"]
    text = call("nnUNetv2_train_pretrained", *options, BEGINS_WITH=str(begins_with))
    assert "Method used 'EMIM'" in text
    assert "Could not print" not in text
    ours = encoder_state(read_checkpoint(file))
    if configuration == "toy_primus":
        ours, _ = fit_positions(ours, [2] * 3, [patch // 8] * 3)
    theirs = encoder_state({"network_weights": torch.load(begins_with, weights_only=True)})
    assert ours.keys() == theirs.keys()
    assert [key for key, value in ours.items() if not torch.allclose(value, theirs[key], atol=1e-6)] == []


def test_it_keeps_its_own_network_and_takes_what_fits(nnunet: Path, tmp_path: Path) -> None:
    keeps("toy_plain", nnunet, tmp_path, export_of("toy_plain", tmp_path))


def keeps(configuration: str, nnunet: Path, tmp_path: Path, file: Path) -> None:
    """HEAD begins with the encoder of a checkpoint in the network of our plans."""
    options = ["-d", "1", "-n", configuration, "-pc", str(file), "-pl", "nnUNetEMIMPlans"]
    call("nnUNetv2_plan_like_dynamic", *options)
    plans = nnunet / "nnUNet_preprocessed" / DATASET / f"ptPlans_dynamic__{configuration}.json"
    content = read_json(plans)
    toy = read_json(plans.with_name("nnUNetEMIMPlans.json"))["configurations"][configuration]
    content["configurations"]["3d_fullres"] |= {key: toy[key] for key in ("architecture", "patch_size", "batch_size")}
    write_json(plans, content)
    begins_with = tmp_path / "begins_with.pth"
    options = ["1", "3d_fullres", "0", "-p", plans.stem, "-tr", "DynamicPretrainedTrainer", "-device", "cpu"]
    call("nnUNetv2_train_pretrained", *options, BEGINS_WITH=str(begins_with))
    ours = encoder_state(read_checkpoint(file))
    theirs = encoder_state({"network_weights": torch.load(begins_with, weights_only=True)})
    assert [key for key, value in ours.items() if not torch.equal(value, theirs[key])] == []
