"""MiM, mask in mask, the SSL stage only."""

from __future__ import annotations

from emim_nnunet.methods.mask_in_mask import MaskInMask
from emim_nnunet.training.ssl_trainer import SSLTrainer


class nnUNetTrainerMaskInMaskPretrain(SSLTrainer):
    """Masks in masks on three levels of patches (arXiv 2404.15580)."""

    method_class = MaskInMask
