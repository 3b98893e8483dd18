"""E-MIM, SSL stage only."""

from __future__ import annotations

from emim_nnunet.methods.emim import EMIM
from emim_nnunet.training.ssl_trainer import SSLTrainer


class nnUNetTrainerEMIMPretrain(SSLTrainer):
    """Pretrains the planned encoder with E-MIM (hybrid mask pattern, pyramid Barlow twins; arXiv 2407.10377)."""

    method_class = EMIM
