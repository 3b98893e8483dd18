"""Losses as pure functions. With a batch that is split over ranks, each gives the value of one process with all of it."""

from emim_nnunet.losses.barlow import barlow_twins_loss, cross_correlation
from emim_nnunet.losses.contrastive import cosine_alignment, info_nce, info_nce_rows
from emim_nnunet.losses.reconstruction import masked_mse, normalise_cells

__all__ = [
    "barlow_twins_loss",
    "cosine_alignment",
    "cross_correlation",
    "info_nce",
    "info_nce_rows",
    "masked_mse",
    "normalise_cells",
]
