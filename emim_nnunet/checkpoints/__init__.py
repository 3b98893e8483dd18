"""Checkpoints: their format, safe reading, transfer into nnU-Net."""
