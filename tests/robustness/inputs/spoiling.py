"""Ways to spoil the world, and arguments of commands, that the inputs of several commands share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measure.data import PLANS

from tests.robustness.world import DATASET, DATASET_ID, RAW, stage_folder

NEW = ["-d", "7"]  # of a conversion
CASE = "BraTS-GLI-00001-000"


def image(world: Path, suffix: str = "t1n", case: str = CASE) -> Path:
    return next((world / "source").rglob(f"{case}-{suffix}.nii.gz"))


def convert(world: Path, *options: str) -> list[str]:
    return ["brats2023", str(world / "source"), *NEW, *options]


def rewrite(file: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change the voxels (z, y, x) and keep the grid, where its size stays."""
    import SimpleITK as sitk

    old = sitk.ReadImage(str(file))
    new = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(old)))
    if new.GetSize() == old.GetSize():
        new.CopyInformation(old)
    sitk.WriteImage(new, str(file))


def own_folders(world: Path, name: str, *options: str) -> list[str]:
    """One case whose id is ``name``."""
    target = world / "own" / name
    target.mkdir(parents=True)
    shutil.copy(image(world), target / "T1.nii.gz")
    return ["folders", str(world / "own"), *NEW, "--channel", "T1={case}/T1.nii.gz", *options]


def edit_json(file: Path, change: Callable[[Any], Any]) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def raw(world: Path) -> Path:
    return world / "raw" / RAW


def preprocessed(world: Path) -> Path:
    return world / "preprocessed" / DATASET


def edit_plans(world: Path, change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> None:
    """Change plans (first argument) or their configuration (second); results are moved out of the way."""
    file = preprocessed(world) / f"{PLANS}.json"
    plans = json.loads(file.read_text())
    change(plans, plans["configurations"]["tiny"])
    file.write_text(json.dumps(plans))
    shutil.rmtree(world / "results" / DATASET)


def training(fold: str = "0", trainer: str = "nnUNetTrainerEMIM", *options: str) -> list[str]:
    return [DATASET_ID, "tiny", fold, "-tr", trainer, "-p", PLANS, "-device", "cpu", *options]


def changed_plans(world: Path, change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> None:
    """Change plans as in :func:`edit_plans`; the results stay."""

    def changed(plans: dict[str, Any]) -> dict[str, Any]:
        change(plans, plans["configurations"]["tiny"])
        return plans

    edit_json(preprocessed(world) / f"{PLANS}.json", changed)


def edit_checkpoint(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    import torch

    torch.save(change(torch.load(file, weights_only=True)), file)
    return file


def final(world: Path) -> Path:
    return stage_folder(world) / "checkpoint_final.pth"


def damaged_checkpoint(world: Path) -> Path:
    file = final(world)
    file.write_bytes(file.read_bytes()[:3000])
    return file


def two_classes() -> str:
    return "case,kind\n" + "".join(f"case{number:05d},{'ab'[number % 2]}\n" for number in range(6))


def classify(world: Path, table: str | bytes, fold: str = "0") -> list[str]:
    file = world / "labels.csv"
    file.write_bytes(table.encode() if isinstance(table, str) else table)
    options = ["--scratch", "--steps", "1", "-o", str(world / "classifier"), "-device", "cpu"]
    return ["train", DATASET_ID, "tiny", fold, str(file), *options]
