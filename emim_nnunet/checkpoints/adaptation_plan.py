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
        architecture: ``architecture`` of a configuration in the plans.
        network: Built from it; says itself where its encoder and stem are.
        spacing: mm per axis.
        patch_size: Voxels per axis.
        num_channels: Of the input.

    Returns:
        Plain numbers, strings, lists and dicts.
    """
    about: Any = network  # torch does not know these attributes of nnU-Net's
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
