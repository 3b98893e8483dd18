"""Losses as pure functions; all of them equal the one-process value when the batch is sharded over ranks."""

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
