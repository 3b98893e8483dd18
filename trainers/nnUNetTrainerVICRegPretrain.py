"""VICReg on cells, the SSL stage only."""

from __future__ import annotations

from emim_nnunet.methods.vicreg import VICReg
from emim_nnunet.training.ssl_trainer import SSLTrainer


class nnUNetTrainerVICRegPretrain(SSLTrainer):
    """Variance, invariance and covariance of the features of cells (arXiv 2105.04906)."""

    method_class = VICReg
