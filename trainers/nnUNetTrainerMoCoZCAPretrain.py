"""MoCo v2 with local features and ZCA whitening, the SSL stage only."""

from __future__ import annotations

from emim_nnunet.methods.moco import MoCoZCA
from emim_nnunet.training.ssl_trainer import SSLTrainer


class nnUNetTrainerMoCoZCAPretrain(SSLTrainer):
    """Contrasts views of whole crops and of regions (arXiv 2402.14611); plain MoCo v2 by settings."""

    method_class = MoCoZCA
