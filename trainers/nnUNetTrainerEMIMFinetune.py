"""Segmentation from an encoder that E-MIM pretrained."""

from __future__ import annotations

from emim_nnunet.trainers.nnUNetTrainerEMIMPretrain import nnUNetTrainerEMIMPretrain
from emim_nnunet.training.finetune_trainer import FinetuneTrainer


class nnUNetTrainerEMIMFinetune(FinetuneTrainer):
    """Takes the encoder from ``-pretrained_weights``, or from the finished E-MIM stage of the same plans and fold."""

    ssl_trainer_class = nnUNetTrainerEMIMPretrain
