"""nnU-Net's trainer and its losses."""

from __future__ import annotations

from nnunetv2.training.logging.nnunet_logger import get_cluster_job_id
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.helpers import empty_cache

__all__ = [
    "DC_and_BCE_loss",
    "DC_and_CE_loss",
    "DeepSupervisionWrapper",
    "MemoryEfficientSoftDiceLoss",
    "PolyLRScheduler",
    "empty_cache",
    "get_allowed_n_proc_DA",
    "get_cluster_job_id",
    "nnUNetTrainer",
]
