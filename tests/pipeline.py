"""Phantoms that went through the real pipeline once per session, and nnU-Net's own entry points on them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from nnunetv2.run.run_training import get_trainer_from_args, run_training

from emim_nnunet.cli import convert, plan_and_preprocess
from emim_nnunet.cli._run import run
from emim_nnunet.networks.backbones import primus_architecture
from emim_nnunet.phantom import write_brats2023
from emim_nnunet.trainer_search import enable_search

PLANS, DATASET = "nnUNetEMIMPlans", "Dataset001_Toy"
CPU = torch.device("cpu")
PRETRAIN, FINETUNE, DROP_IN = "nnUNetTrainerEMIMPretrain", "nnUNetTrainerEMIMFinetune", "nnUNetTrainerEMIM"

TOY_BLOCK = {
    "cell_size": [4, 4, 4],
    "pyramid_levels": [1, 2],
    "projector_widths": [16, 16],
    "decoder_min_width": None,  # not what is planned: the old checkpoints are of plans that do not say
    "batch_size": 2,
    "num_epochs": 3,
    "num_iterations_per_epoch": 3,
    "num_val_iterations_per_epoch": 2,
    "checkpoint_minutes": 0,
    "finetune_num_epochs": 2,
    "finetune_num_iterations_per_epoch": 2,
    "finetune_num_val_iterations_per_epoch": 1,
}

PRIMUS_BLOCK = {
    "cell_size": [8, 8, 8],  # as large as its tokens
    "pyramid_levels": [1, 3],
    "local_regions": 2,
    "finetune_initial_lr": 1e-4,
    "finetune_scratch_lr": 3e-4,
}


def toy_architecture(architecture: dict[str, Any], num_axes: int = 3, kind: str = "residual") -> dict[str, Any]:
    kwargs = architecture["arch_kwargs"] | {
        "n_stages": 3,
        "features_per_stage": [4, 8, 16],
        "n_blocks_per_stage": [1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1],
        "kernel_sizes": [[3] * num_axes] * 3,
        "strides": [[1] * num_axes, [2] * num_axes, [2] * num_axes],
    }
    name = architecture["network_class_name"]
    if kind == "plain":
        kwargs["n_conv_per_stage"] = kwargs.pop("n_blocks_per_stage")
        name = name.replace("ResidualEncoderUNet", "PlainConvUNet")
    return architecture | {"arch_kwargs": kwargs, "network_class_name": name}


def toy_primus_architecture() -> dict[str, Any]:
    """A Primus of three narrow blocks for patches of 16^3."""
    architecture = primus_architecture("primus_s", (16, 16, 16))
    return architecture | {
        "arch_kwargs": architecture["arch_kwargs"] | {"embed_dim": 24, "eva_depth": 3, "eva_numheads": 2}
    }


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five labelled and two unlabelled phantoms, converted, planned and preprocessed by the commands.

    Of several processes of pytest-xdist the first one builds it. The others copy it, because tests change it for a while.
    """
    folder = tmp_path_factory.mktemp("nnunet")
    if "PYTEST_XDIST_WORKER" not in os.environ:
        _prepare(folder)
        return folder
    shared = tmp_path_factory.getbasetemp().parent / "prepared"
    with FileLock(f"{shared}.lock"):
        if shared.exists():
            shutil.copytree(shared, folder, dirs_exist_ok=True)
        else:
            _prepare(folder)
            shutil.copytree(folder, shared)
    return folder


def _prepare(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        set_folders(folder, patch)
        patch.setenv("nnUNet_n_proc_DA", "1")
        write_brats2023(folder / "source", 5, 2, seed=0, shape=(32, 32, 32))
        assert run(convert.main, ["brats2023", str(folder / "source"), "-d", "1", "--name", "Toy"]) == 0
        options = ["-d", "1", "-c", "2d", "3d_fullres", "-gpu_memory_target", "0.3", "-np", "2", "-npfp", "2"]
        assert run(plan_and_preprocess.main, options) == 0
    file = folder / "nnUNet_preprocessed" / DATASET / f"{PLANS}.json"
    plans = json.loads(file.read_text())
    add = plans["configurations"]
    full, flat = add["3d_fullres"]["architecture"], add["2d"]["architecture"]
    common = {"inherits_from": "3d_fullres", "batch_size": 2, "patch_size": [16, 16, 16], "emim": TOY_BLOCK}
    add["toy"] = common | {"architecture": toy_architecture(full)}
    add["toy_plain"] = common | {"architecture": toy_architecture(full, kind="plain")}
    add["toy_primus"] = common | {"architecture": toy_primus_architecture(), "emim": TOY_BLOCK | PRIMUS_BLOCK}
    flat_block = TOY_BLOCK | {"cell_size": [4, 4]}
    add["toy_2d"] = {
        "inherits_from": "2d",
        "batch_size": 4,
        "patch_size": [16, 16],
        "architecture": toy_architecture(flat, 2),
        "emim": flat_block,
    }
    add["toy_scratch"] = {"inherits_from": "toy", "emim": {"finetune_init": "scratch"}}
    add["toy_short"] = {
        "inherits_from": "toy_scratch",
        "emim": {"finetune_num_epochs": 1, "finetune_num_iterations_per_epoch": 1, "finetune_final_validation": False},
    }
    add["toy_probe"] = {"inherits_from": "toy", "emim": {"finetune_ssl_trainer": "nnUNetTrainerMIMPretrain"}}
    add["toy_seen"] = {"inherits_from": "toy", "emim": {"use_validation_cases": True}}
    add["toy_long"] = {"inherits_from": "toy", "emim": {"num_epochs": 400}}
    bad = {
        "typo": {"cel_size": [4]},
        "large_cell": {"cell_size": [32, 32, 32]},
        "deep": {"pyramid_levels": [1, 7]},
        "text": {"initial_lr": "fast"},
        "negative": {"num_epochs": 0},
    }
    add |= {f"bad_{name}": {"inherits_from": "toy", "emim": block} for name, block in bad.items()}
    add["bad_none"] = {k: v for k, v in (add["3d_fullres"] | {"architecture": full}).items() if k != "emim"}
    file.write_text(json.dumps(plans))


def set_folders(folder: Path, patch: pytest.MonkeyPatch) -> None:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (folder / name).mkdir(exist_ok=True)
        patch.setenv(name, str(folder / name))


@pytest.fixture
def nnunet(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The prepared data with fresh results."""
    set_folders(prepared, monkeypatch)
    (tmp_path / "results").mkdir()
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("nnUNet_extTrainer", "")
    enable_search()
    return prepared


def fold_folder(trainer: str, configuration: str = "toy", fold: int | str = 0) -> Path:
    return Path(os.environ["nnUNet_results"]) / DATASET / f"{trainer}__{PLANS}__{configuration}" / f"fold_{fold}"


def train(
    trainer: str, configuration: str = "toy", fold: int | str = 0, device: torch.device = CPU, **options: Any
) -> Path:
    run_training("1", configuration, fold, trainer, PLANS, device=device, **options)
    return fold_folder(trainer, configuration, fold)


def trained(trainer: str, configuration: str = "toy", fold: int | str = 0) -> Path:
    """As :func:`train` with the prepared data as they are; from the second time on it is a copy of the first."""
    folder = fold_folder(trainer, configuration, fold)
    kept = Path(os.environ["nnUNet_raw"]).with_name("trained") / folder.name / folder.parent.name
    if kept.exists():
        shutil.copytree(kept, folder.parent)
    else:
        train(trainer, configuration, fold)
        shutil.copytree(folder.parent, kept)
    return folder


def trainer_of(
    name: str,
    configuration: str = "toy",
    fold: int | str = 0,
    continued: bool = False,
    dataset: str = "1",
    device: torch.device = CPU,
) -> Any:
    return get_trainer_from_args(dataset, configuration, fold, name, PLANS, continued, device=device)


def log_of(folder: Path) -> str:
    return "".join(p.read_text() for p in sorted(folder.glob("training_log_*.txt")))
