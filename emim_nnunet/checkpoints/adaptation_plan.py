"""The ``nnssl_adaptation_plan``: how nnU-Net's newer commands learn what a checkpoint holds.

Schema of MIC-DKFZ/nnssl, read by ``nnUNetv2_preprocess_like_nnssl`` and ``nnUNetv2_train_pretrained``.
"""

from __future__ import annotations

from typing import Any

from torch import nn


def adaptation_plan(
    architecture: dict[str, Any], network: nn.Module, *, spacing: list[float], patch_size: list[int], num_channels: int
) -> dict[str, Any]:
    """Describe the network of an export.

    Args:
        architecture: The ``architecture`` of a configuration in the plans.
        network: The network built from it, whose attributes name the keys of its encoder and stem.
        spacing: Voxel size in mm per axis.
        patch_size: Voxels per axis.
        num_channels: Number of input channels.

    Returns:
        The plan, made of plain numbers, strings, lists and dicts.
    """
    about: Any = network  # torch's types do not know these attributes, which are nnU-Net's
    return {
        "architecture_plans": {
            "arch_class_name": architecture["network_class_name"],
            "arch_kwargs": architecture["arch_kwargs"],
            "arch_kwargs_requiring_import": list(architecture["_kw_requires_import"]),
        },
        "architecture_kwargs": architecture["arch_kwargs"],
        "pretrain_plan": {
            "plans_name": "emim_nnunet",
            "configurations": {"pretrain": {"spacing": list(spacing), "patch_size": list(patch_size)}},
        },
        "pretrain_num_input_channels": num_channels,
        "recommended_downstream_patchsize": list(patch_size),
        "key_to_encoder": about.key_to_encoder,
        "key_to_stem": about.key_to_stem,
        "keys_to_in_proj": list(about.keys_to_in_proj),
        "key_to_lpe": about.key_to_lpe,
    }
