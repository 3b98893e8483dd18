"""Masked self-distillation, the SSL stage only."""

from __future__ import annotations

from emim_nnunet.methods.self_distillation import MaskedSelfDistillation
from emim_nnunet.training.ssl_trainer import SSLTrainer


class nnUNetTrainerMaskedSelfDistillationPretrain(SSLTrainer):
    """Reconstruction and the features of a momentum teacher at masked cells (arXiv 2202.03555, 2205.10342)."""

    method_class = MaskedSelfDistillation
