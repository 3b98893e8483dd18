"""The arms of the collapse experiment, and the methods that only it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from emim_nnunet.methods.base import SSLMethod
from emim_nnunet.methods.emim import EMIM, EMIMConfig
from emim_nnunet.methods.mim import MIM
from emim_nnunet.methods.pyramid_barlow import PyramidBarlowTwins


@dataclass(frozen=True)
class Arm:
    """An arm of the experiment: a method with settings, or training from scratch.

    Attributes:
        settings: Keys of the ``emim`` block, with their values.
        method: Class of the method; None = from scratch.
        cell: Voxels of a mask cell along each axis.
        lr_factor: Factor of the peak learning rate of pretraining.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    method: type[SSLMethod] | None = EMIM
    cell: int = 8
    lr_factor: float = 1.0


class ModalityOnly(EMIM):
    """E-MIM with three of four modalities masked everywhere: the masked fraction of the other arms, but whole modalities."""

    def draw(self, generator: torch.Generator, present: Tensor | None = None) -> dict[str, Tensor]:
        """Draw as :meth:`EMIM.draw` does, but a mask of whole modalities."""
        draws = super().draw(generator, present)
        hidden = torch.randperm(self.num_modalities, generator=generator)[: round(0.75 * self.num_modalities)]
        masked = torch.zeros_like(draws["masked"])
        masked[:, hidden] = True
        return draws | {"masked": masked}


class GlobalBarlowTwins(PyramidBarlowTwins):
    """Barlow twins on the averages over each patch."""

    def losses(
        self,
        features_a: Any,
        features_b: Any,
        visible: Tensor,
        foreground: Tensor,
        draws: dict[str, Tensor],
        projectors: nn.ModuleList,
    ) -> dict[str, Tensor]:
        """See :meth:`PyramidBarlowTwins.losses`."""
        pooled = [[f.mean((2, 3, 4), keepdim=True).expand_as(f) for f in view] for view in (features_a, features_b)]
        first = {k: torch.zeros_like(v).index_fill(1, torch.tensor(0), 1.0) for k, v in draws.items() if "scores" in k}
        everything = torch.ones_like(foreground)
        return super().losses(*pooled, torch.ones_like(visible), everything, draws | first, projectors)


class GlobalBarlow(EMIM):
    """E-MIM with Barlow twins on globally pooled vectors, one row per sample: degenerate at small batches, a control."""

    def __init__(self, encoder: Any, num_modalities: int, patch_size: Sequence[int], config: EMIMConfig) -> None:
        super().__init__(encoder, num_modalities, patch_size, config)
        self.pyramid = GlobalBarlowTwins(replace(config, cells_per_sample=1), patch_size, encoder.strides)


class DeepestOnly(nn.Module):
    """A reconstruction decoder without skip connections: it gets the deepest stage only.

    Args:
        decoder: The decoder to wrap; it gets zeros for the other stages.
    """

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, features: list[Tensor]) -> Tensor:
        """Reconstruct the patch (B, C, *P) from the deepest stage."""
        return self.decoder([*(torch.zeros_like(f) for f in features[:-1]), features[-1]])


class WithoutSkips(EMIM):
    """E-MIM whose decoder has no skip connections."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.decoder = DeepestOnly(self.decoder)


# about the same masked fraction in all arms: 48 of 64 cells (0.75), and 0.754 for the hybrid mask
FRACTION = {"position_ratio": 0.25, "patch_ratio": 0.5625}


PLAIN = {"barlow_weight": 0.0}


PBT = FRACTION | {"pyramid_levels": (1, 2, 3), "projector_widths": (128, 128, 128)}


NO_PROJECTOR = {"projector_widths": (0, 0, 0)}


ARMS: dict[str, Arm] = {
    "scratch": Arm(method=None),
    "plain MIM (position, zero fill)": Arm({"mask_ratio": 0.75}, MIM),
    "position": Arm(PLAIN | {"position_ratio": 0.75, "patch_ratio": 0.0, "modality_mask": False}),
    "modality": Arm(PLAIN, ModalityOnly),
    "patch": Arm(PLAIN | {"position_ratio": 0.0, "patch_ratio": 0.75, "modality_mask": False}),
    "HMP": Arm(PLAIN | FRACTION),
    "HMP, zero fill": Arm(PLAIN | FRACTION | {"fill": "zero"}),
    "HMP, fill from -3": Arm(PLAIN | FRACTION | {"fill_start": -3.0}),  # where no tissue is
    "HMP, sparse encoder": Arm(PLAIN | FRACTION | {"sparse_encoder": True}),
    "position, norm_pix": Arm(
        PLAIN | {"position_ratio": 0.75, "patch_ratio": 0.0, "modality_mask": False, "norm_pix": True}
    ),
    "HMP, norm_pix": Arm(PLAIN | FRACTION | {"norm_pix": True}),
    "HMP + PBT": Arm(PBT),
    "PBT, no projector": Arm(PBT | NO_PROJECTOR),
    "PBT, no projector, weight 1": Arm(PBT | NO_PROJECTOR | {"barlow_weight": 1.0}),
    "PBT, no projector, weight 0.01": Arm(PBT | NO_PROJECTOR | {"barlow_weight": 0.01}),
    "PBT, no projector, kappa 5": Arm(PBT | NO_PROJECTOR | {"barlow_kappa": 5.0}),
    "PBT, no projector, deepest level": Arm(PBT | {"pyramid_levels": (3,), "projector_widths": (0,)}),
    "PBT, no projector, gradient in both": Arm(PBT | NO_PROJECTOR | {"original_view_gradient": True}),
    "PBT, no projector, two masked views": Arm(PBT | NO_PROJECTOR | {"second_view": "masked"}),
    "PBT, global samples": Arm(PBT | NO_PROJECTOR, GlobalBarlow),
}


# the plateau: two large cells per axis and a high rate, as in the first prototype
POSITION_16 = PLAIN | {"position_ratio": 0.75, "patch_ratio": 0.0, "modality_mask": False}


HMP_16 = PLAIN | {"position_ratio": 0.25, "patch_ratio": 0.5}  # 0.719, the closest fraction that 8 cells allow


PLATEAU_ARMS: dict[str, Arm] = {
    "position, 16^3 cells": Arm(POSITION_16, cell=16, lr_factor=3.0),
    "HMP, 16^3 cells": Arm(HMP_16, cell=16, lr_factor=3.0),
    "position, 16^3 cells, no skips": Arm(POSITION_16, WithoutSkips, cell=16, lr_factor=3.0),
    "HMP, 16^3 cells, no skips": Arm(HMP_16, WithoutSkips, cell=16, lr_factor=3.0),
}
