"""Converters into nnU-Net's raw format: one small file per family of data sets, one table-driven core."""

from __future__ import annotations

from emim_nnunet.dataset_conversion.brats2023 import BRATS2023_GLI
from emim_nnunet.dataset_conversion.family import DatasetFamily

FAMILIES: dict[str, DatasetFamily] = {family.name: family for family in (BRATS2023_GLI,)}

__all__ = ["FAMILIES", "DatasetFamily"]
