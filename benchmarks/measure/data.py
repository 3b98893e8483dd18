"""Synthetic preprocessed data sets of known size: plans with ResEnc-L, and images of noise inside a body."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

RES_ENC_L = {
    "n_stages": 6,
    "features_per_stage": [32, 64, 128, 256, 320, 320],
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[3, 3, 3]] * 6,
    "strides": [[1, 1, 1], *[[2, 2, 2]] * 5],
    "n_blocks_per_stage": [1, 3, 4, 6, 6, 6],
    "n_conv_per_stage_decoder": [1] * 5,
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-05, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
TINY = RES_ENC_L | {
    "n_stages": 3,
    "features_per_stage": [4, 8, 16],
    "kernel_sizes": [[3, 3, 3]] * 3,
    "strides": [[1, 1, 1], *[[2, 2, 2]] * 2],
    "n_blocks_per_stage": [1, 1, 1],
    "n_conv_per_stage_decoder": [1, 1],
}
BRAIN = (168, 200, 168)
PLANS = "nnUNetEMIMPlans"


def volumes(count: int, channels: int, shape: Sequence[int], seed: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Make bodies of noise: image (C, *shape) float32, standard normal inside, 0 outside; seg (1, *shape) int16, 0 and -1."""
    axes = np.meshgrid(*[np.linspace(-1, 1, n, dtype=np.float32) for n in shape], indexing="ij")
    body = sum(a**2 for a in axes) < 1.1
    random = np.random.default_rng(seed)
    for _ in range(count):
        image = random.standard_normal((channels, *shape), dtype=np.float32) * body
        yield image, np.where(body, 0, -1).astype(np.int16)[None]


def dataset_name(channels: int) -> str:
    """Name of the data set with that many channels, which is also the name of its folder."""
    return f"Dataset{900 + channels:03d}_Bench"


def write_plans(folder: Path, channels: int, patches: Sequence[int], batch_size: int, **block: Any) -> None:
    """Write ``dataset.json`` and plans with a configuration ``pN`` (ResEnc-L) for each patch side N, and ``tiny``.

    Args:
        folder: Folder of the preprocessed data set; it is made when needed.
        channels: Number of channels of the images.
        patches: Sides of the patches in voxels.
        batch_size: Batch size of both stages.
        block: More keys of the ``emim`` block, with their values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = {str(c): f"channel{c}" for c in range(channels)}
    dataset = {
        "channel_names": names,
        "labels": {"background": 0, "lesion": 1},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(dataset))
    networks = [*((f"p{side}", side, RES_ENC_L) for side in patches), ("tiny", 32, TINY)]
    configurations = {
        name: _configuration(name, [side] * 3, kwargs, channels, batch_size, block) for name, side, kwargs in networks
    }
    plans = {
        "dataset_name": folder.name,
        "plans_name": PLANS,
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": list(BRAIN),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": configurations,
        "experiment_planner_used": "nnUNetPlannerEMIM",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {},
    }
    (folder / f"{PLANS}.json").write_text(json.dumps(plans, indent=1))


def _configuration(
    name: str, patch: list[int], kwargs: dict[str, Any], channels: int, batch_size: int, block: dict[str, Any]
) -> dict[str, Any]:
    """A configuration of the plans as our planner would write it."""
    from emim_nnunet.planners import ssl_plan

    sampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    cell = ssl_plan.cell_size(kwargs["strides"], patch)
    levels = ssl_plan.pyramid_levels(kwargs["strides"], patch, cell, batch_size)
    emim = {
        "cell_size": list(cell),
        "pyramid_levels": list(levels),
        "projector_widths": list(ssl_plan.projector_widths(kwargs["features_per_stage"], levels)),
        "batch_size": batch_size,
        "num_epochs": 100,
    }
    return {
        "data_identifier": name,
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": batch_size,
        "patch_size": patch,
        "median_image_size_in_voxels": list(BRAIN),
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"] * channels,
        "use_mask_for_norm": [True] * channels,
        **{f"resampling_fn_{kind}": "resample_data_or_seg_to_shape" for kind in ("data", "seg", "probabilities")},
        **{f"resampling_fn_{kind}_kwargs": sampling for kind in ("data", "seg", "probabilities")},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
            "arch_kwargs": kwargs,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": True,
        "emim": emim | block,
    }


def write_cases(folder: Path, count: int, channels: int, shape: Sequence[int], patch: int) -> None:
    """Write preprocessed cases as nnU-Net's preprocessor does for patches of that side."""
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

    folder.mkdir(parents=True)
    for number, (image, seg) in enumerate(volumes(count, channels, shape)):
        layout = {}
        for suffix, array in (("", image), ("_seg", seg)):
            blocks, chunks = comp_blosc2_params(array.shape, (patch,) * 3, array.itemsize)
            layout |= {f"blocks{suffix}": blocks, f"chunks{suffix}": chunks}
        locations = np.argwhere(seg >= 0)[:: max(1, seg.size // 10_000)]  # about as many as nnU-Net keeps of a class
        nnUNetDatasetBlosc2.save_case(
            image, seg, {"class_locations": {1: locations}}, str(folder / f"case{number:05d}"), **layout
        )


def prepare(
    folder: Path, channels: int, patches: Sequence[int], *, cases: int = 8, batch_size: int = 2, **block: Any
) -> None:
    """Write a data set for some patch sides into nnU-Net's folders below ``folder``, see :func:`common.threads_env`."""
    target = folder / "nnUNet" / "preprocessed" / dataset_name(channels)
    write_plans(target, channels, patches, batch_size, **block)
    for side in patches:
        write_cases(target / f"p{side}", cases, channels, BRAIN, side)
    for name in ("raw", "results"):
        (folder / "nnUNet" / name).mkdir(exist_ok=True)


def multiply(folder: Path, count: int) -> None:
    """Fill a folder of preprocessed cases up to ``count`` cases with hard links to those that are there."""
    originals = sorted({p.name.split(".")[0].removesuffix("_seg") for p in folder.iterdir()})
    for number in range(len(originals), count):
        source = originals[number % len(originals)]
        for ending in (".b2nd", "_seg.b2nd", ".pkl"):
            os.link(folder / f"{source}{ending}", folder / f"case{number:05d}{ending}")


def remove(folder: Path) -> None:
    """Remove a folder and all that is in it."""
    shutil.rmtree(folder, ignore_errors=True)
