"""The memory that the planner counts, and that a segmentation step takes: ``planned.py TASK JSON_ARGUMENTS``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from own import make_trainer, peak_bytes, report

LABELS = {"background": 0, "oedema": 1, "core": 2, "enhancing": 3}


def plan(
    dataset_id: int, channels: int, shape: list[int], spacing: list[float], cases: int, target: float
) -> dict[str, Any]:
    """Plan a data set of which only a fingerprint exists: ``cases`` cases of one shape (voxels) and spacing (mm).

    Returns:
        Configuration -> patch and batch sizes of nnU-Net's plan for the target (GB) and of ours, and the GB that are counted.
    """
    from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
        nnUNetPlannerResEncL,
    )
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    from emim_nnunet.methods import method_classes
    from emim_nnunet.planners import nnUNetPlannerEMIM
    from emim_nnunet.planners.memory import segmentation_gigabytes, ssl_gigabytes

    preprocessed = write_fingerprint(dataset_id, channels, shape, spacing, cases)
    labels = LabelManager(LABELS, None)
    plans = []
    for planner_class in (nnUNetPlannerResEncL, nnUNetPlannerEMIM):
        planner = planner_class(dataset_id, target)
        planner.plan_experiment()
        written = json.loads((preprocessed / f"{planner.plans_identifier}.json").read_text())
        plans.append(written["configurations"])
    result = {}
    for name in ("2d", "3d_fullres"):
        stock, ours = (configurations[name] for configurations in plans)
        result[name] = {
            "stock": describe(stock) | {"segmentation": segmentation_gigabytes(stock, channels, labels)},
            "ours": describe(ours) | {"segmentation": segmentation_gigabytes(ours, channels, labels)},
            "ssl_batch_size": ours["emim"]["batch_size"],
            "ssl": {m.__name__: ssl_gigabytes(m, ours, ours["emim"], channels) for m in method_classes()},
        }
    return {"configurations": result}


def describe(configuration: dict[str, Any]) -> dict[str, Any]:
    """The keys of a configuration that decide how much memory it takes."""
    return {key: configuration[key] for key in ("patch_size", "batch_size")}


def write_fingerprint(dataset_id: int, channels: int, shape: list[int], spacing: list[float], cases: int) -> Path:
    """Write one tiny case and a fingerprint of many large ones; returns the preprocessed folder of the data set."""
    import SimpleITK as sitk

    name = f"Dataset{dataset_id:03d}_Planned"
    raw, preprocessed = (Path(os.environ[f"nnUNet_{kind}"]) / name for kind in ("raw", "preprocessed"))
    for folder in (raw / "imagesTr", raw / "labelsTr", preprocessed):
        folder.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(np.ones((8, 8, 8), np.uint8))
    for channel in range(channels):
        sitk.WriteImage(image, str(raw / "imagesTr" / f"case_{channel:04d}.nii.gz"))
    sitk.WriteImage(image, str(raw / "labelsTr" / "case.nii.gz"))
    dataset = {
        "channel_names": {str(c): f"channel{c}" for c in range(channels)},
        "labels": LABELS,
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    keys = ("mean", "median", "std", "min", "max", "percentile_99_5", "percentile_00_5")
    fingerprint = {
        "spacings": [spacing] * cases,
        "shapes_after_crop": [shape] * cases,
        "foreground_intensity_properties_per_channel": {str(c): dict.fromkeys(keys, 1.0) for c in range(channels)},
        "median_relative_size_after_cropping": 1.0,
    }
    (raw / "dataset.json").write_text(json.dumps(dataset))
    (preprocessed / "dataset.json").write_text(json.dumps(dataset))
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    return preprocessed


def segmentation(dataset: str, configuration: str, device: str, steps: int) -> dict[str, Any]:
    """Measure the peak memory in bytes of steps of nnU-Net's own trainer on noise."""
    import nnunetv2.training.nnUNetTrainer.nnUNetTrainer as module
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    module.infer_dataset_class = lambda folder: nnUNetDatasetBlosc2  # there are no cases whose files would say it
    made = make_trainer(dataset, configuration, "nnUNetTrainer", device)
    about = made.configuration_manager
    image = torch.randn(about.batch_size, made.num_input_channels, *about.patch_size)
    scales = made._get_deep_supervision_scales()
    sizes = [[round(p * s) for p, s in zip(about.patch_size, scale, strict=True)] for scale in scales]
    target = [
        torch.randint(made.label_manager.num_segmentation_heads, (about.batch_size, 1, *size)).float() for size in sizes
    ]
    for _ in range(steps):
        made.train_step({"data": image.clone(), "target": [t.clone() for t in target]})
    return {"peak_bytes": peak_bytes(device)}


if __name__ == "__main__":
    report(globals()[sys.argv[1]](**json.loads(sys.argv[2])))
