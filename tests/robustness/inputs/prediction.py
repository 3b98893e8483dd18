"""Models and images that ``emim_predict`` and ``emim_evaluate_modalities`` cannot use; tests/test_prediction.py has more."""

from __future__ import annotations

from pathlib import Path

from tests.robustness.inputs.table import bad
from tests.robustness.world import DATASET, DATASET_ID


def of(world: Path, *model: str) -> list[str]:
    return ["-i", str(world / "source"), "-o", str(world / "out"), "-device", "cpu", *model]


@bad("predict", r"is no folder of a trained model: it has no dataset.json")
def predict_with_no_model(world: Path) -> list[str]:
    return of(world, "-m", str(world / "source"))


@bad("predict", r"has no model nnUNetTrainerEMIM__nnUNetEMIMPlans__tiny \(-tr, -p, -c\); it has nnUNetTrainer")
def predict_with_unknown_trainer(world: Path) -> list[str]:
    return of(world, "-d", DATASET_ID, "-c", "tiny")


@bad("predict", r"-d needs -c")
def predict_without_configuration(world: Path) -> list[str]:
    return of(world, "-d", DATASET_ID)


@bad("predict", r"name the model with -d and -c, or its folder with -m")
def predict_with_two_models(world: Path) -> list[str]:
    return of(world, "-d", DATASET_ID, "-m", str(world / "results" / DATASET))


@bad("evaluate_modalities", r"-d 55: expected one folder of that data set")
def evaluate_unknown_data_set(world: Path) -> list[str]:
    return ["-d", "55", "-c", "tiny"]
