"""The sizes of nnU-Net's Primus (arXiv 2503.01835), as architectures of plans, and the trainers that build them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from emim_nnunet.networks.planned import PRIMUS, is_primus

TOKEN = 8  # voxels of a token per axis
# name -> width, blocks and heads, as nnU-Net's trainer has them, and the name of that trainer
BACKBONES = {
    "primus_s": (396, 12, 6, "nnUNet_Primus_S_Trainer"),
    "primus_b": (792, 12, 12, "nnUNet_Primus_B_Trainer"),
    "primus_m": (864, 16, 12, "nnUNet_Primus_M_Trainer"),
    "primus_l": (1056, 24, 16, "nnUNet_Primus_L_Trainer"),
}


def primus_architecture(backbone: str, patch_size: Sequence[int]) -> dict[str, Any]:
    """The ``architecture`` of a configuration, which describes the network that nnU-Net's trainer of that size builds.

    Args:
        backbone: A key of :data:`BACKBONES`.
        patch_size: Voxels per axis, three multiples of :data:`TOKEN`.
    """
    width, depth, heads, _ = BACKBONES[backbone]
    arguments = {
        "embed_dim": width,
        "patch_embed_size": [TOKEN] * 3,
        "eva_depth": depth,
        "eva_numheads": heads,
        "input_shape": [int(size) for size in patch_size],
        "drop_path_rate": 0.2,
        "scale_attn_inner": True,
        "init_values": 0.1,
    }
    return {"network_class_name": PRIMUS, "arch_kwargs": arguments, "_kw_requires_import": []}


def primus_trainer(architecture: dict[str, Any]) -> str | None:
    """Name of nnU-Net's trainer that builds an ``architecture``, which its predictions need; None = there is none."""
    arguments = architecture["arch_kwargs"]
    shape = tuple(arguments.get(key) for key in ("embed_dim", "eva_depth", "eva_numheads"))
    return next((trainer for *own, trainer in BACKBONES.values() if tuple(own) == shape), None)


def primus_grid(architecture: dict[str, Any]) -> list[int] | None:
    """Tokens per axis of a Primus, None for another ``architecture``."""
    if not is_primus(architecture):
        return None
    sizes = (architecture["arch_kwargs"][key] for key in ("input_shape", "patch_embed_size"))
    return [length // token for length, token in zip(*sizes, strict=True)]


def for_patch(architecture: dict[str, Any], patch_size: Sequence[int]) -> dict[str, Any]:
    """An ``architecture`` for patches of that size, which only a Primus is made for."""
    if not is_primus(architecture):
        return architecture
    return architecture | {"arch_kwargs": architecture["arch_kwargs"] | {"input_shape": [int(n) for n in patch_size]}}
