"""E-MIM, the SSL stage only."""

from __future__ import annotations

from emim_nnunet.methods.emim import EMIM
from emim_nnunet.training.ssl_trainer import SSLTrainer


class nnUNetTrainerEMIMPretrain(SSLTrainer):
    """Hybrid mask pattern and pyramid Barlow twins (arXiv 2407.10377)."""

    method_class = EMIM
