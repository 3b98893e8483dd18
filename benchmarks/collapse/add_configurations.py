"""Add the configurations of the real-data runs in RESULTS.md to the plans of a data set.

    python benchmarks/collapse/add_configurations.py DATASET_ID

``3d_watch``: a small encoder and short epochs on the data of ``3d_fullres``, for a CPU. ``3d_position16``: cells of 16^3
voxels, looked at every 5 steps, for nnUNetTrainerMIMPretrain. ``3d_minmax``: min-max intensities and background in the loss;
preprocess it first with ``nnUNetv2_preprocess -d DATASET_ID -plans_name nnUNetEMIMPlans -c 3d_minmax``. On the data of ``2d``:
``2d_watch``, slices of 96x96 voxels, and ``2d_position16``, likewise with cells of 16x16.
"""

from __future__ import annotations

import argparse
from copy import deepcopy
from typing import Any

from emim_nnunet.datasets.folders import preprocessed_folder
from emim_nnunet.storage.files import read_json, write_json

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
WATCH_2D: dict[str, Any] = {
    "cell_size": [8, 8],
    "pyramid_levels": [2, 3, 4],
    "projector_widths": [256, 256, 256],
    "batch_size": 8,
    "num_epochs": 12,
    "num_iterations_per_epoch": 60,
    "num_val_iterations_per_epoch": 4,
    "initial_lr": 2e-3,
    "checkpoint_minutes": 0,
    "reconstruction_every": 4,
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
    before = set(configurations)
    if "3d_fullres" in configurations:
        add_3d(configurations, arguments.plans)
    if "2d" in configurations:
        add_2d(configurations)
    write_json(file, plans, indent=4)
    print(f"added to {file.name}: {', '.join(sorted(set(configurations) - before))}")


def add_3d(configurations: dict[str, Any], plans_name: str) -> None:
    """``3d_watch``, ``3d_methods``, ``3d_position16`` and ``3d_minmax``."""
    architecture = small(configurations["3d_fullres"]["architecture"], [16, 32, 64, 128], 3)
    changes = {"batch_size": 2, "patch_size": [32, 64, 48], "architecture": architecture, "emim": WATCH}
    channels = len(configurations["3d_fullres"]["use_mask_for_norm"])
    configurations["3d_watch"] = {"inherits_from": "3d_fullres"} | changes
    configurations["3d_methods"] = {"inherits_from": "3d_watch", "emim": METHODS}
    configurations["3d_position16"] = {"inherits_from": "3d_watch", "emim": POSITION_16}
    configurations["3d_minmax"] = {
        "inherits_from": "3d_watch",
        "data_identifier": f"{plans_name}_3d_minmax",
        "normalization_schemes": ["RescaleTo01Normalization"] * channels,
        "use_mask_for_norm": [False] * channels,
        "emim": MINMAX,
    }


def add_2d(configurations: dict[str, Any]) -> None:
    """``2d_watch`` and ``2d_position16``."""
    architecture = small(configurations["2d"]["architecture"], [12, 24, 48, 96, 192], 2)
    changes = {"batch_size": 8, "patch_size": [96, 96], "architecture": architecture, "emim": WATCH_2D}
    configurations["2d_watch"] = {"inherits_from": "2d"} | changes
    configurations["2d_position16"] = {"inherits_from": "2d_watch", "emim": POSITION_16 | {"cell_size": [16, 16]}}


def small(architecture: dict[str, Any], features: list[int], axes: int) -> dict[str, Any]:
    """A planned architecture with so many channels per stage, and one block or convolution in each."""
    architecture, stages = deepcopy(architecture), len(features)
    kwargs = architecture["arch_kwargs"]
    depth = next(key for key in ("n_blocks_per_stage", "n_conv_per_stage") if key in kwargs)
    kwargs |= {
        "n_stages": stages,
        "features_per_stage": features,
        depth: [1] * stages,
        "n_conv_per_stage_decoder": [1] * (stages - 1),
        "kernel_sizes": [[3] * axes] * stages,
        "strides": [[1] * axes] + [[2] * axes] * (stages - 1),
    }
    return architecture


if __name__ == "__main__":
    main()
