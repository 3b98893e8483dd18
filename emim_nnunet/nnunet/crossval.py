"""nnU-Net's folds; apart from the rest because of what it imports (scikit-learn, a second)."""

from __future__ import annotations

from nnunetv2.utilities.crossval_split import generate_crossval_split

__all__ = ["generate_crossval_split"]
