"""The trainers that ``nnUNetv2_train -tr`` finds: one per SSL method, and those that follow an SSL stage."""

from __future__ import annotations

from emim_nnunet.trainers.nnUNetTrainerEMIM import nnUNetTrainerEMIM
from emim_nnunet.trainers.nnUNetTrainerEMIMFinetune import nnUNetTrainerEMIMFinetune
from emim_nnunet.trainers.nnUNetTrainerEMIMPretrain import nnUNetTrainerEMIMPretrain
from emim_nnunet.trainers.nnUNetTrainerLinearFirst import nnUNetTrainerLinearFirst
from emim_nnunet.trainers.nnUNetTrainerLinearProbe import nnUNetTrainerLinearProbe
from emim_nnunet.trainers.nnUNetTrainerMaskedSelfDistillationPretrain import nnUNetTrainerMaskedSelfDistillationPretrain
from emim_nnunet.trainers.nnUNetTrainerMaskInMaskPretrain import nnUNetTrainerMaskInMaskPretrain
from emim_nnunet.trainers.nnUNetTrainerMIMPretrain import nnUNetTrainerMIMPretrain
from emim_nnunet.trainers.nnUNetTrainerMoCoZCAPretrain import nnUNetTrainerMoCoZCAPretrain
from emim_nnunet.trainers.nnUNetTrainerVICRegPretrain import nnUNetTrainerVICRegPretrain
from emim_nnunet.trainers.pretrainers import pretrainers_except

__all__ = [
    "nnUNetTrainerEMIM",
    "nnUNetTrainerEMIMFinetune",
    "nnUNetTrainerEMIMPretrain",
    "nnUNetTrainerLinearFirst",
    "nnUNetTrainerLinearProbe",
    "nnUNetTrainerMIMPretrain",
    "nnUNetTrainerMaskInMaskPretrain",
    "nnUNetTrainerMaskedSelfDistillationPretrain",
    "nnUNetTrainerMoCoZCAPretrain",
    "nnUNetTrainerVICRegPretrain",
]

# a method of your own is one file: its trainer needs none
_others = pretrainers_except(__all__)
globals().update(_others)
__all__ += list(_others)
