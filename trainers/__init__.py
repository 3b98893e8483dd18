"""The trainers that ``nnUNetv2_train -tr`` finds. A new trainer is one file with one class, named like the file."""

from __future__ import annotations

from emim_nnunet.trainers.nnUNetTrainerEMIM import nnUNetTrainerEMIM
from emim_nnunet.trainers.nnUNetTrainerEMIMFinetune import nnUNetTrainerEMIMFinetune
from emim_nnunet.trainers.nnUNetTrainerEMIMPretrain import nnUNetTrainerEMIMPretrain
from emim_nnunet.trainers.nnUNetTrainerMIMPretrain import nnUNetTrainerMIMPretrain

__all__ = [
    "nnUNetTrainerEMIM",
    "nnUNetTrainerEMIMFinetune",
    "nnUNetTrainerEMIMPretrain",
    "nnUNetTrainerMIMPretrain",
]
