"""Bad plans, splits, prepared cases and options for ``emim_train``, ``emim_pretrain`` and ``emim_estimate``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from measure.data import PLANS

from tests.robustness.inputs.spoiling import (
    changed_plans,
    classify,
    edit_json,
    edit_plans,
    final,
    preprocessed,
    training,
)
from tests.robustness.inputs.table import bad, good
from tests.robustness.world import DATASET, DATASET_ID, TRAINER
from tests.robustness.world import pretrain as pretraining


@bad("train", r"-d 55: expected one folder Dataset055_NAME")
def train_unknown_data_set(world: Path) -> list[str]:
    return ["55", *training()[1:]]


@bad("train", r"data set ../../x: neither a number nor the name of a folder")
def train_a_path(world: Path) -> list[str]:
    return ["../../x", *training()[1:]]


@bad("train", r"have no configuration '4d'")
def train_unknown_configuration(world: Path) -> list[str]:
    return [DATASET_ID, "4d", *training()[2:]]


@bad("train", r"-p Nowhere: .* has nnUNetEMIMPlans")
def train_unknown_plans(world: Path) -> list[str]:
    arguments = training()
    arguments[arguments.index(PLANS)] = "Nowhere"
    return arguments


@bad("train", r"-tr nnUNetTrainerNoSuch: there is no such trainer")
def train_unknown_trainer(world: Path) -> list[str]:
    return training("0", "nnUNetTrainerNoSuch")


@bad("train", r"fold 5: splits_final.json of .* has the folds 0 to 4")
def fold_too_large(world: Path) -> list[str]:
    return training("5")


@bad("pretrain", r"must be a number or 'all', not 'x'")
def fold_of_letters(world: Path) -> list[str]:
    return [DATASET_ID, "tiny", "x", "-device", "cpu"]


@bad("pretrain", r"-1")
def fold_negative(world: Path) -> list[str]:
    return [DATASET_ID, "tiny", "-1", "-device", "cpu"]


@bad("pretrain", r"is not the trainer of an SSL stage")
def pretrain_with_a_segmentation_trainer(world: Path) -> list[str]:
    return training("0", "nnUNetTrainerEMIMFinetune")


@bad("train", r"already holds an SSL stage")
def train_over_a_finished_stage(world: Path) -> list[str]:
    return training("0", TRAINER)


@bad("pretrain", r"nnUNetEMIMPlans.json cannot be read as JSON")
def plans_of_broken_json(world: Path) -> list[str]:
    (preprocessed(world) / f"{PLANS}.json").write_text('{"configurations": {')
    return pretraining()


@bad("pretrain", r"must be a JSON object")
def plans_are_a_list(world: Path) -> list[str]:
    (preprocessed(world) / f"{PLANS}.json").write_text("[1, 2]")
    return pretraining()


@bad("pretrain", r"'configurations' must be a JSON object")
def plans_without_configurations(world: Path) -> list[str]:
    edit_plans(world, lambda plans, tiny: plans.pop("configurations"))
    return pretraining()


@bad("pretrain", r"configuration 'tiny' of the plans cannot be used .*cell")
def cells_of_two_axes(world: Path) -> list[str]:
    edit_plans(world, lambda plans, tiny: tiny["emim"].update(cell_size=[4, 4]))
    return pretraining("VICReg")


@bad("pretrain", r"unknown key 'cell_sise'")
def unknown_setting(world: Path) -> list[str]:
    edit_plans(world, lambda plans, tiny: tiny["emim"].update(cell_sise=4))
    return pretraining()


@bad("pretrain", r"key 'num_epochs' .* must be a int")
def setting_of_wrong_type(world: Path) -> list[str]:
    edit_plans(world, lambda plans, tiny: tiny["emim"].update(num_epochs="many"))
    return pretraining()


@bad("pretrain", r"initial_lr must be positive")
def setting_out_of_range(world: Path) -> list[str]:
    edit_plans(world, lambda plans, tiny: tiny["emim"].update(initial_lr=-1.0))
    return pretraining()


@bad("pretrain", r"initial_lr must be a finite number, not inf")
def learning_rate_infinite(world: Path) -> list[str]:
    edit_plans(world, lambda plans, tiny: tiny["emim"].update(initial_lr=float("inf")))
    return pretraining()


@bad("pretrain", r"gradient_clip must be a finite number, not inf")
def gradient_clip_infinite(world: Path) -> list[str]:
    edit_plans(world, lambda plans, tiny: tiny["emim"].update(gradient_clip=float("inf")))
    return pretraining()


@bad("pretrain", r"batch_size must be at most 10000, not 1000000")
def batch_of_a_million(world: Path) -> list[str]:
    edit_plans(world, lambda plans, tiny: tiny["emim"].update(batch_size=10**6))
    return pretraining()


@bad("pretrain", r"num_epochs must be at most 1000000")
def epochs_without_end(world: Path) -> list[str]:
    edit_plans(world, lambda plans, tiny: tiny["emim"].update(num_epochs=10**18))
    return pretraining()


@bad("pretrain", r"'n_blocks_per_stage' of the network is out of range, it may be 100 at most")
def blocks_of_a_million(world: Path) -> list[str]:
    kwargs = {"n_blocks_per_stage": [1, 1, 10**6]}
    edit_plans(world, lambda plans, tiny: tiny["architecture"]["arch_kwargs"].update(kwargs))
    return pretraining()


@bad("pretrain", r"'features_per_stage' of the network is out of range")
def features_of_a_million(world: Path) -> list[str]:
    kwargs = {"features_per_stage": [10**6] * 3}
    edit_plans(world, lambda plans, tiny: tiny["architecture"]["arch_kwargs"].update(kwargs))
    return pretraining()


@bad("pretrain", r"'patch_size' of configuration 'tiny' must be")
def patch_size_negative(world: Path) -> list[str]:
    edit_plans(world, lambda plans, tiny: tiny.update(patch_size=[-32, 32, 32]))
    return pretraining()


@bad("pretrain", r"must order 0, 1, 2")
def axes_not_in_order(world: Path) -> list[str]:
    edit_plans(world, lambda plans, tiny: plans.update(transpose_forward=[0, 0, 2]))
    return pretraining()


@bad("pretrain", r"inherits from itself")
def configurations_in_a_circle(world: Path) -> list[str]:
    edit_plans(world, lambda plans, tiny: tiny.update(inherits_from="tiny"))
    return pretraining()


@bad("pretrain", r"network 'subprocess.getoutput', which is not one of nnU-Net's")
def plans_that_call_a_program(world: Path) -> list[str]:
    call = {
        "network_class_name": "subprocess.getoutput",
        "arch_kwargs": {"cmd": f"touch {world}/owned"},
        "_kw_requires_import": [],
    }
    edit_plans(world, lambda plans, tiny: tiny.update(architecture=call))
    return pretraining()


@bad("pretrain", r"'conv_op' of the network is 'os.system'")
def plans_that_import_something_else(world: Path) -> list[str]:
    edit_plans(world, lambda plans, tiny: tiny["architecture"]["arch_kwargs"].update(conv_op="os.system"))
    return pretraining()


@bad("pretrain", r"'data_identifier' .* must be a name that a folder can have")
def plans_that_read_elsewhere(world: Path) -> list[str]:
    edit_plans(world, lambda plans, tiny: tiny.update(data_identifier="../../elsewhere"))
    return pretraining()


@bad("pretrain", r"'dataset_name' must be a name that a folder can have")
def plans_that_write_elsewhere(world: Path) -> list[str]:
    edit_plans(world, lambda plans, tiny: plans.update(dataset_name="../../evil"))
    return pretraining()


@bad("pretrain", r"is of another data set, Dataset111_Other")
def plans_of_another_data_set(world: Path) -> list[str]:
    edit_plans(world, lambda plans, tiny: plans.update(dataset_name="Dataset111_Other"))
    return pretraining()


@bad("pretrain", r"dataset.json")
def wrong_channel_count(world: Path) -> list[str]:
    shutil.rmtree(world / "results" / DATASET)
    edit_json(preprocessed(world) / "dataset.json", lambda content: content | {"channel_names": {"0": "T1"}})
    return pretraining()


@bad("pretrain", r"no preprocessed case in")
def nothing_preprocessed(world: Path) -> list[str]:
    shutil.rmtree(preprocessed(world) / "tiny")
    return pretraining()


@bad("pretrain", r"has one labelled case, which cannot be split: use fold 'all'|has the folds")
def one_case_and_a_fold(world: Path) -> list[str]:
    shutil.rmtree(world / "results" / DATASET)
    for file in (preprocessed(world) / "tiny").glob("case0000[1-9]*"):
        file.unlink()
    (preprocessed(world) / "splits_final.json").unlink()
    return pretraining()


@bad("pretrain", r"has labelled cases of one patient, which cannot be split: use fold 'all'")
def one_patient_and_a_fold(world: Path) -> list[str]:
    shutil.rmtree(world / "results" / DATASET)
    cases = [file.stem for file in (preprocessed(world) / "tiny").glob("*.pkl")]
    (preprocessed(world) / "patients.json").write_text(json.dumps(dict.fromkeys(cases, "a")))
    (preprocessed(world) / "splits_final.json").unlink()
    return pretraining()


@bad("pretrain", r"splits_final.json cannot be read as JSON")
def split_of_broken_json(world: Path) -> list[str]:
    (preprocessed(world) / "splits_final.json").write_text("[{")
    return pretraining()


@bad("pretrain", r"names cases that are not preprocessed: ghost")
def split_with_unknown_case(world: Path) -> list[str]:
    file = preprocessed(world) / "splits_final.json"
    edit_json(file, lambda folds: [fold | {"train": [*fold["train"], "ghost"]} for fold in folds])
    return pretraining()


@bad("pretrain", r"must be a list of folds")
def split_of_wrong_form(world: Path) -> list[str]:
    (preprocessed(world) / "splits_final.json").write_text('{"train": []}')
    return pretraining()


@bad("pretrain", r"patients.json must be a JSON object")
def patients_of_wrong_form(world: Path) -> list[str]:
    shutil.rmtree(world / "results" / DATASET)
    (preprocessed(world) / "patients.json").write_text("[]")
    return pretraining()


@bad("pretrain", r"the preprocessed case case0000\d cannot be read")
def damaged_preprocessed_cases(world: Path) -> list[str]:
    shutil.rmtree(world / "results" / DATASET)
    for file in (preprocessed(world) / "tiny").glob("*[0-9].b2nd"):
        file.write_bytes(file.read_bytes()[:50])
    return pretraining()


@bad("pretrain", r"nnUNet_preprocessed is not set|expected one folder", nnUNet_preprocessed="")
def no_variable(world: Path) -> list[str]:
    return pretraining()


@bad("estimate", r"--steps must be at least 1")
def estimate_of_no_steps(world: Path) -> list[str]:
    return [DATASET_ID, "tiny", "0", "-device", "cpu", "--steps", "0"]


@bad("estimate", r"its folder does not exist")
def estimate_into_nowhere(world: Path) -> list[str]:
    return [DATASET_ID, "tiny", "0", "-device", "cpu", "--json", str(world / "no" / "where.json")]


@bad("estimate", r"fold 9: splits_final.json")
def estimate_of_no_fold(world: Path) -> list[str]:
    return [DATASET_ID, "tiny", "9", "-device", "cpu"]


def add_gpu_that_is_not_there(name: str, arguments: Callable[[Path], list[str]]) -> None:
    """Ask a command for a GPU on a machine that has none."""

    @bad(name, r"there is no GPU: use -device cpu", CUDA_VISIBLE_DEVICES="")
    def gpu_that_is_not_there(world: Path) -> list[str]:
        return [*arguments(world), "-device", "cuda"]


for _name, _arguments in {
    "train": lambda world: [DATASET_ID, "tiny", "0", "-tr", TRAINER, "-p", PLANS],
    "pretrain": lambda world: [DATASET_ID, "tiny", "0"],
    "estimate": lambda world: [DATASET_ID, "tiny", "0"],
    "diagnose": lambda world: [str(final(world)), "-d", DATASET_ID, "-o", str(world / "report")],
    "compare": lambda world: [DATASET_ID, "tiny", "-o", str(world / "comparison")],
    "classify": lambda world: classify(world, "case,kind\ncase00000,a\ncase00001,b\n")[:-2],
    "demo": lambda world: ["-o", str(world / "demo")],
}.items():
    add_gpu_that_is_not_there(_name, _arguments)


@bad("train", r"there is no GPU: use -device cpu", CUDA_VISIBLE_DEVICES="")
def several_gpus_that_are_not_there(world: Path) -> list[str]:
    return [DATASET_ID, "tiny", "0", "-tr", TRAINER, "-p", PLANS, "-num_gpus", "2"]


@bad("train", r"argument -device: invalid choice: 'gpu'")
def device_of_another_name(world: Path) -> list[str]:
    return [DATASET_ID, "tiny", "0", "-tr", TRAINER, "-p", PLANS, "-device", "gpu"]


@bad("pretrain", r"collapse_reference nowhere: .*; name the folder of another SSL stage, or set it to null")
def reference_that_is_not_there(world: Path) -> list[str]:
    changed_plans(world, lambda plans, tiny: tiny["emim"].update(collapse_reference="nowhere"))
    return pretraining()


@good("train", CUDA_VISIBLE_DEVICES="")
def no_gpu_and_no_device_named(world: Path) -> list[str]:
    return [DATASET_ID, "tiny", "0", "-tr", TRAINER, "-p", PLANS, "--c"]  # finished: nothing is trained


@bad("pretrain", r"mask_ratio has no effect with EMIM: take it out, or set it to null")
def setting_that_would_change_nothing(world: Path) -> list[str]:
    changed_plans(world, lambda plans, tiny: tiny["emim"].update(mask_ratio=0.75))
    return pretraining()
