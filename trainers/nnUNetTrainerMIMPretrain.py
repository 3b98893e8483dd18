"""Plain masked image modelling, SSL stage only."""

from __future__ import annotations

from emim_nnunet.methods.mim import MIM
from emim_nnunet.training.ssl_trainer import SSLTrainer


class nnUNetTrainerMIMPretrain(SSLTrainer):
    """The baseline: masks whole positions at the same masked fraction as E-MIM, zero fill, no Barlow twins."""

    method_class = MIM
