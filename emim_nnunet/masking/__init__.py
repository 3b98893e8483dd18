"""Cells and masks. Convention everywhere: bool tensors named ``masked``, True = masked (hidden from the network)."""

from emim_nnunet.masking.grid import cells_to_voxels, foreground_cells, grid_size, voxels_to_cells
from emim_nnunet.masking.patterns import hybrid_mask, masked_fraction, position_mask

__all__ = [
    "cells_to_voxels",
    "foreground_cells",
    "grid_size",
    "hybrid_mask",
    "masked_fraction",
    "position_mask",
    "voxels_to_cells",
]
