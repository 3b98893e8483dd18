"""Cells and masks. Masks are bool tensors named ``masked`` everywhere, True = masked (hidden from the network)."""

from emim_nnunet.masking.grid import (
    cells_to_voxels,
    choose_rows,
    foreground_cells,
    grid_size,
    take_rows,
    voxels_to_cells,
)
from emim_nnunet.masking.patterns import (
    hybrid_mask,
    hybrid_mask_of,
    hybrid_scores,
    masked_fraction,
    position_mask,
    top_cells,
)

__all__ = [
    "cells_to_voxels",
    "choose_rows",
    "foreground_cells",
    "grid_size",
    "hybrid_mask",
    "hybrid_mask_of",
    "hybrid_scores",
    "masked_fraction",
    "position_mask",
    "take_rows",
    "top_cells",
    "voxels_to_cells",
]
