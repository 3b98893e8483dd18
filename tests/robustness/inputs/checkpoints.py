"""Bad checkpoints for ``emim_export``, ``emim_diagnose``, ``emim_train`` and ``emim_classify``."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

from tests.robustness.inputs.spoiling import (
    classify,
    damaged_checkpoint,
    edit_checkpoint,
    edit_plans,
    final,
    preprocessed,
    training,
    two_classes,
)
from tests.robustness.inputs.table import bad, good
from tests.robustness.world import DATASET_ID, stage_folder


class Malicious:
    """Its unpickling creates a folder."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.victim),)


def exporting(checkpoint: Path, world: Path, *options: str) -> list[str]:
    return [str(checkpoint), "-d", DATASET_ID, "-c", "tiny", "-o", str(world / "weights.pth"), *options]


@bad("export", r"neither a file nor a folder with checkpoint_final.pth")
def export_of_nothing(world: Path) -> list[str]:
    return exporting(world / "nothing.pth", world)


@bad("export", r"is no checkpoint of an SSL stage: its encoder cannot be exported alone")
def sharing_what_is_no_stage(world: Path) -> list[str]:
    keys, about = (
        ("network_weights", "current_epoch", "trainer_name"),
        ("plans", "configuration", "fold", "dataset_json"),
    )
    as_nnunet = lambda c: {k: c[k] for k in keys} | {"init_args": {k: c[k] for k in about}}  # noqa: E731
    file = edit_checkpoint(final(world), as_nnunet)
    return [str(file), "--hub", str(world / "hub")]


@bad("export", r"damaged or no checkpoint")
def sharing_a_truncated_checkpoint(world: Path) -> list[str]:
    return [str(damaged_checkpoint(world)), "--hub", str(world / "hub")]


@bad("export", r"hub is not an empty folder: choose another name")
def sharing_into_a_folder_that_is_not_empty(world: Path) -> list[str]:
    (world / "hub").mkdir()
    (world / "hub" / "notes.txt").write_text("mine")
    return [str(final(world)), "--hub", str(world / "hub")]


@bad("export", r"hub: its folder does not exist")
def sharing_into_nowhere(world: Path) -> list[str]:
    return [str(final(world)), "--hub", str(world / "nowhere" / "hub")]


@bad("export", r"hf://nobody/nothing: checkpoint_final.pth cannot be downloaded", HF_HUB_OFFLINE="1")
def export_of_a_repository_without_network(world: Path) -> list[str]:
    return exporting(Path("hf://nobody/nothing"), world)


@bad("export", r"damaged or no checkpoint")
def export_of_a_truncated_checkpoint(world: Path) -> list[str]:
    return exporting(damaged_checkpoint(world), world)


@bad("export", r"objects that only running code could restore, which is refused")
def export_of_a_malicious_checkpoint(world: Path) -> list[str]:
    return exporting(edit_checkpoint(final(world), lambda c: c | {"x": Malicious(world / "owned")}), world)


@bad("export", r"is not a checkpoint|damaged or no checkpoint")
def export_of_a_malicious_pickle(world: Path) -> list[str]:
    file = world / "evil.pth"
    file.write_bytes(pickle.dumps(Malicious(world / "owned")))
    return exporting(file, world)


@bad("export", r"has no 'network_weights'")
def export_of_something_else(world: Path) -> list[str]:
    return exporting(edit_checkpoint(final(world), lambda c: {"weights": c["network_weights"]}), world)


@bad("export", r"newer emim_nnunet")
def export_from_the_future(world: Path) -> list[str]:
    return exporting(edit_checkpoint(final(world), lambda c: c | {"format_version": 99}), world)


@bad("export", r"it lacks plans")
def export_without_plans(world: Path) -> list[str]:
    return exporting(edit_checkpoint(final(world), lambda c: {k: v for k, v in c.items() if k != "plans"}), world)


@bad("export", r"network 'os.system', which is not one of nnU-Net's")
def export_with_a_program_in_its_plans(world: Path) -> list[str]:
    def change(content: dict[str, Any]) -> dict[str, Any]:
        content["plans"]["configurations"]["tiny"]["architecture"]["network_class_name"] = "os.system"
        return content

    return exporting(edit_checkpoint(final(world), change), world)


@bad("export", r"weights.pth exists")
def export_over_a_file(world: Path) -> list[str]:
    (world / "weights.pth").write_text("precious")
    return exporting(final(world), world)


@bad("export", r"its folder does not exist")
def export_into_nowhere(world: Path) -> list[str]:
    return [str(final(world)), "-d", DATASET_ID, "-c", "tiny", "-o", str(world / "no" / "where.pth")]


@bad("export", r"have no configuration '9d'; they have: tiny")
def export_for_an_unknown_configuration(world: Path) -> list[str]:
    return [str(final(world)), "-d", DATASET_ID, "-c", "9d", "-o", str(world / "weights.pth")]


@bad("export", r"features_per_stage")
def export_into_another_network(world: Path) -> list[str]:
    def change(plans: dict[str, Any], tiny: dict[str, Any]) -> None:
        tiny["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 8, 32]

    shutil.copy(final(world), world / "old.pth")
    edit_plans(world, change)
    return exporting(world / "old.pth", world)


@bad("export", r"the encoder in .* does not fit")
def export_of_weights_of_other_shapes(world: Path) -> list[str]:
    def change(content: dict[str, Any]) -> dict[str, Any]:
        weights = content["network_weights"]
        key = next(k for k in weights if k.startswith("encoder.") and weights[k].ndim == 1)
        weights[key] = weights[key][:1]
        return content

    return exporting(edit_checkpoint(final(world), change), world)


@bad("export", r"-d is needed")
def export_for_nobody(world: Path) -> list[str]:
    return [str(final(world)), "-o", str(world / "weights.pth")]


def diverged(world: Path, value: float) -> Path:
    """The final checkpoint with one weight of the encoder that is not finite."""

    def change(content: dict[str, Any]) -> dict[str, Any]:
        weights = content["network_weights"]
        weights[next(k for k in weights if k.startswith("encoder."))].view(-1)[0] = value
        return content

    return edit_checkpoint(final(world), change)


@bad("export", r"holds NaN or infinite weights in \d+ of \d+ tensors")
def export_of_weights_that_are_nan(world: Path) -> list[str]:
    return exporting(diverged(world, float("nan")), world)


@bad("export", r"holds NaN or infinite weights")
def export_of_an_encoder_that_is_infinite(world: Path) -> list[str]:
    return [str(diverged(world, float("inf"))), "--encoder_only", "-o", str(world / "weights.pth")]


@bad("train", r"holds NaN or infinite weights")
def segmentation_from_a_stage_that_is_nan(world: Path) -> list[str]:
    diverged(world, float("nan"))
    return training("0", "nnUNetTrainerEMIMFinetune")


@bad("train", r"-pretrained_weights .* holds NaN or infinite weights")
def pretrained_weights_that_are_nan(world: Path) -> list[str]:
    return training("0", "nnUNetTrainer", "-pretrained_weights", str(diverged(world, float("nan"))))


@bad("classify", r"holds NaN or infinite weights")
def classify_with_an_encoder_that_is_nan(world: Path) -> list[str]:
    options = classify(world, two_classes(), "all")
    options.remove("--scratch")
    return [*options, "--checkpoint", str(diverged(world, float("nan")))]


@bad("export", r"'features_per_stage' of the network is out of range, it may be 4096 at most")
def export_of_a_giant_network(world: Path) -> list[str]:
    return exporting(giant(world), world)


@bad("diagnose", r"'features_per_stage' of the network is out of range")
def diagnose_a_giant_network(world: Path) -> list[str]:
    return [str(giant(world)), "-d", DATASET_ID, "-o", str(world / "report"), "-device", "cpu"]


def giant(world: Path) -> Path:
    def change(content: dict[str, Any]) -> dict[str, Any]:
        kwargs = content["plans"]["configurations"]["tiny"]["architecture"]["arch_kwargs"]
        kwargs["features_per_stage"] = [1 << 20] * 3
        return content

    return edit_checkpoint(final(world), change)


@bad("train", r"objects that only running code could restore, which is refused")
def malicious_pretrained_weights(world: Path) -> list[str]:
    file = edit_checkpoint(final(world), lambda c: c | {"x": Malicious(world / "owned")})
    return training("0", "nnUNetTrainerEMIMFinetune", "-pretrained_weights", str(file))


@bad("train", r"pretrained.pth does not exist")
def missing_pretrained_weights(world: Path) -> list[str]:
    return training("0", "nnUNetTrainerEMIMFinetune", "-pretrained_weights", str(world / "pretrained.pth"))


@bad("train", r"objects that only running code could restore, which is refused")
def segmentation_continues_from_a_malicious_checkpoint(world: Path) -> list[str]:
    folder = stage_folder(world).parent
    target = folder.with_name(folder.name.replace("EMIMPretrain", "EMIMFinetune")) / "fold_0"
    target.mkdir(parents=True)
    shutil.copy(edit_checkpoint(final(world), lambda c: c | {"x": Malicious(world / "owned")}), target)
    return training("0", "nnUNetTrainerEMIMFinetune", "--c")


@bad("diagnose", r"damaged or no checkpoint")
def diagnose_damage(world: Path) -> list[str]:
    return [str(damaged_checkpoint(world)), "-d", DATASET_ID, "-o", str(world / "report"), "-device", "cpu"]


@bad("diagnose", r"-d 55: expected one folder")
def diagnose_on_unknown_data(world: Path) -> list[str]:
    return [str(final(world)), "-d", "55", "-o", str(world / "report"), "-device", "cpu"]


@bad("diagnose", r"--patches must be at least 1")
def diagnose_no_patches(world: Path) -> list[str]:
    return [str(final(world)), "-d", DATASET_ID, "-o", str(world / "report"), "--patches", "0"]


@bad("diagnose", r"the network that .* describes cannot be built")
def diagnose_an_impossible_network(world: Path) -> list[str]:
    def change(content: dict[str, Any]) -> dict[str, Any]:
        content["plans"]["configurations"]["tiny"]["architecture"]["arch_kwargs"]["n_stages"] = 9
        return content

    edit_checkpoint(final(world), change)
    return [str(final(world)), "-d", DATASET_ID, "-o", str(world / "report"), "-device", "cpu"]


def of_nnunet(world: Path, fold: int) -> list[str]:
    """Arguments of a diagnosis of the stage's encoder in a checkpoint as nnU-Net writes it."""

    def change(content: dict[str, Any]) -> dict[str, Any]:
        about = {key: content[key] for key in ("plans", "configuration", "dataset_json")} | {"fold": fold}
        weights = {k: v for k, v in content["network_weights"].items() if k.startswith("encoder.")}
        return {"network_weights": weights, "init_args": about, "current_epoch": 1, "trainer_name": "nnUNetTrainer"}

    report = ["-o", str(world / "report"), "-device", "cpu", "--patches", "2"]
    return [str(edit_checkpoint(final(world), change)), "-d", DATASET_ID, *report]


@good("diagnose")
def diagnose_a_fold_that_is_not_in_the_split(world: Path) -> list[str]:
    return of_nnunet(world, 7)


@bad("diagnose", r"splits_final.json cannot be read as JSON")
def diagnose_beside_a_damaged_split(world: Path) -> list[str]:
    (preprocessed(world) / "splits_final.json").write_text("[{")
    return of_nnunet(world, 0)


@bad("diagnose", r"splits_final.json must be a list of folds")
def diagnose_beside_a_split_of_wrong_form(world: Path) -> list[str]:
    (preprocessed(world) / "splits_final.json").write_text('{"train": []}')
    return of_nnunet(world, 0)


@bad("classify", r"written by a newer emim_nnunet \(format 99\): update")
def predict_with_a_classifier_from_the_future(world: Path) -> list[str]:
    file = world / "classifier.pth"
    shutil.copy(final(world), file)
    edit_checkpoint(file, lambda content: {"format": "emim_nnunet.classifier", "format_version": 99})
    return ["predict", str(file), DATASET_ID, "-o", str(world / "p.csv"), "-device", "cpu"]
