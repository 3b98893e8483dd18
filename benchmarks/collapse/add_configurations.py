"""Add the configurations of the real-data runs in RESULTS.md to the plans of a data set.

    python benchmarks/collapse/add_configurations.py DATASET_ID

``3d_watch``: a small encoder and short epochs on the data of ``3d_fullres``, for a CPU. ``3d_position16``: cells of 16^3
voxels, looked at every 5 steps, for nnUNetTrainerMIMPretrain. ``3d_minmax``: min-max intensities and background in the loss;
preprocess it first with ``nnUNetv2_preprocess -d DATASET_ID -plans_name nnUNetEMIMPlans -c 3d_minmax``.
"""

from __future__ import annotations

import argparse
from copy import deepcopy
from typing import Any

from emim_nnunet.datasets.folders import preprocessed_folder
from emim_nnunet.storage.files import read_json, write_json

STAGES = 4
WATCH: dict[str, Any] = {
    "cell_size": [8, 8, 8],
    "pyramid_levels": [1, 2, 3],
    "projector_widths": [512, 512, 512],
    "batch_size": 2,
    "num_epochs": 8,
    "num_iterations_per_epoch": 20,
    "num_val_iterations_per_epoch": 16,
    "checkpoint_minutes": 0,
    "reconstruction_every": 5,
}
POSITION_16 = {
    "cell_size": [16, 16, 16],
    "mask_ratio": 0.75,
    "num_epochs": 30,
    "num_iterations_per_epoch": 5,
    "initial_lr": 1e-2,
}
MINMAX = {"foreground_only": False, "num_epochs": 16, "initial_lr": 1e-2}

METHODS = {
    "parent_factor": [2, 2, 2],
    "patches_at_once": 4,
    "num_epochs": 3,
    "num_iterations_per_epoch": 8,
    "num_val_iterations_per_epoch": 4,
    "queue_size": 256,
    "zca_rows": 128,
    "key_momentum": 0.99,
    "finetune_num_epochs": 2,
    "finetune_num_iterations_per_epoch": 5,
    "finetune_num_val_iterations_per_epoch": 1,
    "finetune_ssl_trainer": "nnUNetTrainerMoCoZCAPretrain",
}


def main() -> None:
    """Read the options and rewrite the plans."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset_id", type=int)
    parser.add_argument("-p", dest="plans", default="nnUNetEMIMPlans")
    arguments = parser.parse_args()
    file = preprocessed_folder(arguments.dataset_id) / f"{arguments.plans}.json"
    plans = read_json(file)
    configurations = plans["configurations"]
    architecture = deepcopy(configurations["3d_fullres"]["architecture"])
    architecture["arch_kwargs"] |= {
        "n_stages": STAGES,
        "features_per_stage": [16, 32, 64, 128],
        "n_blocks_per_stage": [1] * STAGES,
        "n_conv_per_stage_decoder": [1] * (STAGES - 1),
        "kernel_sizes": [[3, 3, 3]] * STAGES,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (STAGES - 1),
    }
    small = {"batch_size": 2, "patch_size": [32, 64, 48], "architecture": architecture, "emim": WATCH}
    configurations["3d_watch"] = {"inherits_from": "3d_fullres"} | small
    configurations["3d_methods"] = {"inherits_from": "3d_watch", "emim": METHODS}
    configurations["3d_position16"] = {"inherits_from": "3d_watch", "emim": POSITION_16}
    configurations["3d_minmax"] = {
        "inherits_from": "3d_watch",
        "data_identifier": f"{arguments.plans}_3d_minmax",
        "normalization_schemes": ["RescaleTo01Normalization"] * len(configurations["3d_fullres"]["use_mask_for_norm"]),
        "use_mask_for_norm": [False] * len(configurations["3d_fullres"]["use_mask_for_norm"]),
        "emim": MINMAX,
    }
    write_json(file, plans, indent=4)
    print(f"3d_watch, 3d_methods, 3d_position16 and 3d_minmax added to {file.name}")


if __name__ == "__main__":
    main()
