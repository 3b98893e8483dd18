"""Segmentation with few labelled cases."""

from __future__ import annotations

from emim_nnunet.trainers.nnUNetTrainerEMIMPretrain import nnUNetTrainerEMIMPretrain
from emim_nnunet.training.linear_first import LinearFirstTrainer


class nnUNetTrainerLinearFirst(LinearFirstTrainer):
    """A fitted linear head, then all weights: from ``-pretrained_weights``, or the SSL stage of ``finetune_ssl_trainer``."""

    ssl_trainer_class = nnUNetTrainerEMIMPretrain
