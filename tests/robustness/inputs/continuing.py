"""SSL stages that cannot be continued, or not be built upon: damaged, or made from something else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure.data import PLANS, write_cases

from tests.robustness.inputs.spoiling import changed_plans, edit_checkpoint, edit_json, preprocessed, training
from tests.robustness.inputs.table import bad
from tests.robustness.world import pretrain as pretraining
from tests.robustness.world import stage_folder


@bad("pretrain", r"is damaged or no checkpoint")
def continue_from_damage(world: Path) -> list[str]:
    for name in ("checkpoint_final.pth", "checkpoint_previous.pth"):
        (stage_folder(world) / name).write_bytes(b"PK\x03\x04 nothing")
    return pretraining("EMIM", "--c")


@bad("pretrain", r"was written by a newer emim_nnunet")
def continue_from_the_future(world: Path) -> list[str]:
    for name in ("checkpoint_final.pth", "checkpoint_previous.pth"):
        edit_checkpoint(stage_folder(world) / name, lambda content: content | {"format_version": 99})
    return pretraining("EMIM", "--c")


@bad("pretrain", r"ssl_log.csv\) but no checkpoint")
def continue_without_a_checkpoint(world: Path) -> list[str]:
    for file in stage_folder(world).glob("checkpoint_*"):
        file.unlink()
    return pretraining("EMIM", "--c")


@bad("pretrain", r"the SSL stage there was made with another value of patch_ratio")
def continue_with_other_settings(world: Path) -> list[str]:
    file = preprocessed(world) / f"{PLANS}.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["tiny"]["emim"]["patch_ratio"] = 0.3
    file.write_text(json.dumps(plans))
    return pretraining("EMIM", "--c")


def unfinished(world: Path) -> Path:
    """Let the finished stage be one that stopped in its last epoch; its folder."""
    folder = stage_folder(world)
    (folder / "checkpoint_final.pth").unlink()
    (folder / "checkpoint_previous.pth").rename(folder / "checkpoint_latest.pth")
    return folder


def continue_after(world: Path, change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> list[str]:
    unfinished(world)
    changed_plans(world, change)
    return pretraining("EMIM", "--c")


def swap_channels(world: Path) -> None:
    edit_json(preprocessed(world) / "dataset.json", lambda c: c | {"channel_names": {"0": "channel1", "1": "channel0"}})


def replace_case(world: Path) -> None:
    """Another image under the same name, of the same size."""
    folder = preprocessed(world) / "tiny"
    shutil.copy(folder / "case00001.b2nd", folder / "case00002.b2nd")


@bad("pretrain", r"another value of patch_size \(\[32, 32, 32\], now \[16, 16, 16\]\)", kind="changed runs")
def continue_with_another_patch(world: Path) -> list[str]:
    return continue_after(world, lambda plans, tiny: tiny.update(patch_size=[16] * 3))


@bad("pretrain", r"another value of spacing", kind="changed runs")
def continue_with_another_spacing(world: Path) -> list[str]:
    return continue_after(world, lambda plans, tiny: tiny.update(spacing=[3.0, 1.0, 1.0]))


@bad("pretrain", r"another value of normalization_schemes", kind="changed runs")
def continue_with_another_normalisation(world: Path) -> list[str]:
    return continue_after(world, lambda plans, tiny: tiny.update(normalization_schemes=["NoNormalization"] * 2))


@bad("pretrain", r"another value of use_mask_for_norm", kind="changed runs")
def continue_with_another_mask(world: Path) -> list[str]:
    return continue_after(world, lambda plans, tiny: tiny.update(use_mask_for_norm=[False] * 2))


@bad("pretrain", r"another value of nonlin ", kind="changed runs")
def continue_with_another_nonlinearity(world: Path) -> list[str]:
    return continue_after(world, lambda _, tiny: tiny["architecture"]["arch_kwargs"].update(nonlin="torch.nn.ReLU"))


@bad("pretrain", r"another value of strides", kind="changed runs")
def continue_with_other_strides(world: Path) -> list[str]:
    strides = [[1, 1, 1], [2, 2, 2], [1, 2, 2]]
    return continue_after(world, lambda plans, tiny: tiny["architecture"]["arch_kwargs"].update(strides=strides))


@bad("pretrain", r"another value of transpose_forward", kind="changed runs")
def continue_with_transposed_axes(world: Path) -> list[str]:
    return continue_after(world, lambda plans, tiny: plans.update(transpose_forward=[1, 0, 2]))


@bad("pretrain", r"another value of data_identifier", kind="changed runs")
def continue_with_another_folder(world: Path) -> list[str]:
    shutil.copytree(preprocessed(world) / "tiny", preprocessed(world) / "other")
    return continue_after(world, lambda plans, tiny: tiny.update(data_identifier="other"))


@bad("pretrain", r"with the channels channel0, channel1, dataset.json now has channel1, channel0", kind="changed runs")
def continue_with_swapped_channels(world: Path) -> list[str]:
    unfinished(world)
    swap_channels(world)
    return pretraining("EMIM", "--c")


@bad("pretrain", r"content of 1 preprocessed cases has changed .*\(case00002\)", kind="changed runs")
def continue_with_a_replaced_case(world: Path) -> list[str]:
    unfinished(world)
    replace_case(world)
    return pretraining("EMIM", "--c")


@bad("pretrain", r"content of 6 preprocessed cases has changed", kind="changed runs")
def continue_with_other_data_of_the_same_names(world: Path) -> list[str]:
    unfinished(world)
    folder = preprocessed(world) / "tiny"
    shutil.rmtree(folder)
    write_cases(folder, 6, 2, (20, 20, 20), 32)
    (preprocessed(world) / "tiny.checksums").unlink()  # as an older version leaves it
    return pretraining("EMIM", "--c")


@bad("train", r"another value of normalization_schemes .*, spacing ", kind="changed runs")
def segmentation_after_a_stage_on_other_intensities(world: Path) -> list[str]:
    changed_plans(
        world, lambda plans, tiny: tiny.update(normalization_schemes=["NoNormalization"] * 2, spacing=[3] * 3)
    )
    return training("0", "nnUNetTrainerEMIMFinetune")


@bad("train", r"content of 1 preprocessed cases has changed", kind="changed runs")
def segmentation_after_a_stage_on_other_images(world: Path) -> list[str]:
    replace_case(world)
    return training("0", "nnUNetTrainerEMIMFinetune")


@bad("pretrain", r"does not fit the network of this stage", kind="changed runs")
def continue_with_weights_of_other_shapes(world: Path) -> list[str]:
    def change(content: dict[str, Any]) -> dict[str, Any]:
        weights = content["network_weights"]
        key = next(k for k in weights if k.startswith("encoder.") and weights[k].ndim == 1)
        weights[key] = weights[key][:1]
        return content

    edit_checkpoint(unfinished(world) / "checkpoint_latest.pth", change)
    return pretraining("EMIM", "--c")


@bad("pretrain", r"does not fit the network of this stage", kind="changed runs")
def continue_with_moments_of_other_shapes(world: Path) -> list[str]:
    def change(content: dict[str, Any]) -> dict[str, Any]:
        state = content["optimizer_state"]["state"]
        state[0]["exp_avg"] = state[0]["exp_avg"][:1]
        return content

    edit_checkpoint(unfinished(world) / "checkpoint_latest.pth", change)
    return pretraining("EMIM", "--c")


@bad("pretrain", r"'history' must be rows of numbers")
def continue_with_a_history_of_another_type(world: Path) -> list[str]:
    file = unfinished(world) / "checkpoint_latest.pth"
    edit_checkpoint(file, lambda content: content | {"history": {"epoch": 1}})
    return pretraining("EMIM", "--c")
