"""Phantoms for a comparison on a CPU: written, converted, planned and preprocessed, with a small configuration ``3d_compare``.

    python benchmarks/compare/prepare_phantoms.py FOLDER
    export nnUNet_raw=FOLDER/nnUNet_raw nnUNet_preprocessed=FOLDER/nnUNet_preprocessed nnUNet_results=FOLDER/nnUNet_results
    nnUNet_n_proc_DA=0 emim_compare 993 3d_compare -o OUT --num_test 8 -device cpu

There are 24 cases without label and 12 with one. The noise is as strong as the signal: without it, a handful of labelled
phantoms suffices to learn the task, and no pretraining changes the Dice score.
"""

from __future__ import annotations

import argparse
import os
import sys
from copy import deepcopy
from pathlib import Path

DATASET_ID, NAME, PLANS = 993, "ComparePhantom", "nnUNetEMIMPlans"
LABELLED, UNLABELLED, SEED, NOISE = 12, 24, 7000, 200.0
FEATURES = [8, 16, 32, 64]
BLOCK = {
    "cell_size": [8, 8, 8],
    "pyramid_levels": [1, 2, 3],
    "projector_widths": [64, 64, 64],
    "parent_factor": [2, 2, 2],
    "patches_at_once": None,
    "batch_size": 4,
    "num_epochs": 10,
    "num_iterations_per_epoch": 60,
    "num_val_iterations_per_epoch": 8,
    "initial_lr": 3e-3,
    "checkpoint_minutes": 0,
    "key_momentum": 0.99,  # 0.999 belongs to runs of many thousand steps
    "queue_size": 512,
    "zca_rows": 256,
    "finetune_num_epochs": 20,
    "finetune_num_iterations_per_epoch": 50,
    "finetune_num_val_iterations_per_epoch": 1,
}


def main() -> None:
    """Read the options and prepare the phantoms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.absolute()
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (folder / name).mkdir(parents=True)
        os.environ[name] = str(folder / name)

    from emim_nnunet.cli import convert, plan_and_preprocess
    from emim_nnunet.cli._run import run
    from emim_nnunet.phantom import write_brats2023
    from emim_nnunet.storage.files import read_json, write_json

    write_brats2023(folder / "source", LABELLED, UNLABELLED, seed=SEED, noise=NOISE)
    commands = [
        (convert.main, ["brats2023", str(folder / "source"), "-d", str(DATASET_ID), "--name", NAME]),
        (
            plan_and_preprocess.main,
            ["-d", str(DATASET_ID), "-c", "3d_fullres", "-gpu_memory_target", "0.5", "-np", "2"],
        ),
    ]
    for command, arguments in commands:
        code = run(command, arguments)
        if code:
            sys.exit(code)
    file = folder / "nnUNet_preprocessed" / f"Dataset{DATASET_ID}_{NAME}" / f"{PLANS}.json"
    plans = read_json(file)
    architecture = deepcopy(plans["configurations"]["3d_fullres"]["architecture"])
    stages = len(FEATURES)
    architecture["arch_kwargs"] |= {
        "n_stages": stages,
        "features_per_stage": FEATURES,
        "n_blocks_per_stage": [1] * stages,
        "n_conv_per_stage_decoder": [1] * (stages - 1),
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
    }
    plans["configurations"]["3d_compare"] = {
        "inherits_from": "3d_fullres",
        "batch_size": 2,
        "patch_size": [32, 32, 32],
        "architecture": architecture,
        "emim": BLOCK,
    }
    write_json(file, plans, indent=4)


if __name__ == "__main__":
    main()
