"""Prepared cases that would run code when they are read as nnU-Net reads them."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

from tests.robustness.inputs.spoiling import (
    changed_plans,
    classify,
    edit_plans,
    final,
    preprocessed,
    training,
    two_classes,
)
from tests.robustness.inputs.table import bad
from tests.robustness.world import DATASET_ID
from tests.robustness.world import pretrain as pretraining


class Ends:
    """Its unpickling ends the process, with a code of its own."""

    def __reduce__(self) -> tuple:
        return os._exit, (13,)


def with_code(world: Path) -> None:
    """Code in the properties of all preprocessed cases; it would run when they are read as nnU-Net reads them."""
    for file in (preprocessed(world) / "tiny").glob("*.pkl"):
        file.write_bytes(pickle.dumps({"class_locations": Ends()}))


@bad("pretrain", "", kind="data that runs code")
def pretrain_beside_code(world: Path) -> list[str]:
    edit_plans(world, lambda plans, tiny: tiny["emim"].update(num_epochs=1))
    with_code(world)
    return pretraining()


@bad("diagnose", "", kind="data that runs code")
def diagnose_beside_code(world: Path) -> list[str]:
    with_code(world)
    report = ["-o", str(world / "report"), "-device", "cpu", "--patches", "2"]
    return [str(final(world)), "-d", DATASET_ID, *report]


@bad("classify", "", kind="data that runs code")
def classify_beside_code(world: Path) -> list[str]:
    with_code(world)
    return classify(world, two_classes(), "all")


@bad(
    "estimate",
    r"pkl of the preprocessed case case0000\d cannot be read without running code",
    kind="data that runs code",
)
def estimate_a_segmentation_beside_code(world: Path) -> list[str]:
    with_code(world)
    return [DATASET_ID, "tiny", "0", "-tr", "nnUNetTrainerEMIMFinetune", "-device", "cpu", "--steps", "1"]


@bad(
    "train", r"pkl of the preprocessed case case0000\d cannot be read without running code", kind="data that runs code"
)
def segmentation_beside_code(world: Path) -> list[str]:
    with_code(world)
    changed_plans(world, lambda plans, tiny: tiny["emim"].update(finetune_init="scratch"))
    return training("0", "nnUNetTrainerEMIMFinetune")
