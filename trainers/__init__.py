"""The trainers that ``nnUNetv2_train -tr`` finds: one per SSL method, made from it, and those that follow an SSL stage."""

from __future__ import annotations

from emim_nnunet.trainers.nnUNetTrainerEMIM import nnUNetTrainerEMIM
from emim_nnunet.trainers.nnUNetTrainerEMIMFinetune import nnUNetTrainerEMIMFinetune
from emim_nnunet.trainers.nnUNetTrainerLinearProbe import nnUNetTrainerLinearProbe
from emim_nnunet.trainers.pretrainers import PRETRAINERS

globals().update(PRETRAINERS)

__all__ = ["nnUNetTrainerEMIM", "nnUNetTrainerEMIMFinetune", "nnUNetTrainerLinearProbe", *PRETRAINERS]
