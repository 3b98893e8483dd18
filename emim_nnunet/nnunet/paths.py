"""nnU-Net's folders."""

from __future__ import annotations

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results

__all__ = ["nnUNet_preprocessed", "nnUNet_raw", "nnUNet_results"]
