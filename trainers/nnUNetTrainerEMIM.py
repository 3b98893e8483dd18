"""E-MIM as a drop-in: pretrain if needed, then segment."""

from __future__ import annotations

from emim_nnunet.trainers.nnUNetTrainerEMIMFinetune import nnUNetTrainerEMIMFinetune


class nnUNetTrainerEMIM(nnUNetTrainerEMIMFinetune):
    """Runs (or continues) the E-MIM stage first unless it is finished for this data set, plans, configuration and fold."""

    runs_ssl_stage = True
