"""Checkpoints: safe reading, atomic writing, transfer into nnU-Net."""
