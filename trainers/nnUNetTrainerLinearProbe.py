"""Linear evaluation of a pretrained encoder."""

from __future__ import annotations

from emim_nnunet.trainers.nnUNetTrainerEMIMPretrain import nnUNetTrainerEMIMPretrain
from emim_nnunet.training.linear_probe import LinearProbeTrainer


class nnUNetTrainerLinearProbe(LinearProbeTrainer):
    """1x1x1 convolutions on a frozen encoder: of ``-pretrained_weights``, or of the SSL stage of ``finetune_ssl_trainer``."""

    ssl_trainer_class = nnUNetTrainerEMIMPretrain
