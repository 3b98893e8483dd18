"""Plain masked image modelling, the SSL stage only."""

from __future__ import annotations

from emim_nnunet.methods.mim import MIM
from emim_nnunet.training.ssl_trainer import SSLTrainer


class nnUNetTrainerMIMPretrain(SSLTrainer):
    """One random position mask that hides the same fraction as E-MIM's: the baseline."""

    method_class = MIM
