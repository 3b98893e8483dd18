"""nnU-Net's training command."""

from __future__ import annotations

from nnunetv2.run import run_training

__all__ = ["run_training"]
