"""The ``nnssl_adaptation_plan``: how nnU-Net's newer commands learn what a checkpoint holds.

Schema of MIC-DKFZ/nnssl, read by ``nnUNetv2_preprocess_like_nnssl`` and ``nnUNetv2_train_pretrained``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from emim_nnunet.errors import UserError
from emim_nnunet.networks import PRIMUS, is_primus
from emim_nnunet.networks.backbones import BACKBONES, TOKEN, primus_architecture

UNET = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
NAMED_PRIMUS = {f"Primus{backbone[-1].upper()}": backbone for backbone in BACKBONES}
ANY_PRIMUS = "Primus"  # of another size, which its arguments tell; the keys of both belong to HEAD's trainers
PRIMUS_ARGUMENTS = {
    "embed_dim": "embed_dim",
    "patch_embed_size": "patch_embed_size",
    "eva_depth": "encoder_eva_depth",
    "eva_numheads": "encoder_eva_numheads",
    "init_values": "init_values",
    "scale_attn_inner": "scale_attn_inner",
}
RES_ENC_L = {  # what nnssl and nnU-Net build for this name
    "n_stages": 6,
    "features_per_stage": [32, 64, 128, 256, 320, 320],
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[3, 3, 3]] * 6,
    "strides": [[1, 1, 1]] + [[2, 2, 2]] * 5,
    "n_blocks_per_stage": [1, 3, 4, 6, 6, 6],
    "n_conv_per_stage_decoder": [1] * 5,
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
IMPORTED = ["conv_op", "norm_op", "dropout_op", "nonlin"]


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
    described = _described(architecture)
    return {
        "architecture_plans": described,
        "architecture_kwargs": described["arch_kwargs"],
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


def _described(architecture: dict[str, Any]) -> dict[str, Any]:
    name, arguments = architecture["network_class_name"], architecture["arch_kwargs"]
    imported: list[str] | None = list(architecture["_kw_requires_import"])
    if is_primus(architecture):
        shape = arguments["input_shape"]
        known = [
            name for name, own in NAMED_PRIMUS.items() if primus_architecture(own, shape)["arch_kwargs"] == arguments
        ]
        name = known[0] if known else ANY_PRIMUS
        arguments = None if known else {new: arguments[old] for old, new in PRIMUS_ARGUMENTS.items()}
        imported = None if known else imported
    return {"arch_class_name": name, "arch_kwargs": arguments, "arch_kwargs_requiring_import": imported}


def architecture_of(described: dict[str, Any], patch_size: Sequence[int], where: str) -> dict[str, Any]:
    """The ``architecture`` that an adaptation plan describes, which may only name it.

    Args:
        described: The ``architecture_plans`` of the plan.
        patch_size: Voxels per axis that the network was pretrained with, which the positions of a Primus belong to.
        where: The file, for messages.

    Returns:
        As in a configuration of nnU-Net's plans; unchecked where the plan has the arguments of a U-Net.

    Raises:
        UserError: It names a network that is not supported.
        KeyError: Something is missing in the plan.
    """
    name, arguments = described["arch_class_name"], described["arch_kwargs"]
    if name == ANY_PRIMUS and arguments:
        own = {old: arguments[new] for old, new in PRIMUS_ARGUMENTS.items()}
        own |= {"input_shape": list(patch_size), "drop_path_rate": 0.2}
        return {"network_class_name": PRIMUS, "arch_kwargs": own, "_kw_requires_import": []}
    if arguments:
        imported = described["arch_kwargs_requiring_import"]
        return {"network_class_name": name, "arch_kwargs": arguments, "_kw_requires_import": imported}
    if name == "ResEncL":
        return {"network_class_name": UNET, "arch_kwargs": RES_ENC_L, "_kw_requires_import": IMPORTED}
    if name in NAMED_PRIMUS and all(size % TOKEN == 0 for size in patch_size):
        return primus_architecture(NAMED_PRIMUS[name], patch_size)
    raise UserError(
        f"{where} is of the network '{name}', which is none of those that can be started from: U-Nets with all their "
        f"arguments, {', '.join(['ResEncL', *NAMED_PRIMUS])} with patches divisible by {TOKEN}"
    )
