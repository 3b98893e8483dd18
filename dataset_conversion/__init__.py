"""Converters into nnU-Net's raw format: small tables, one file per kind of data set, and one table-driven core."""

from __future__ import annotations

from emim_nnunet.dataset_conversion import brain_lesions, brats, glioma_cohorts, msd, prostate, unlabelled
from emim_nnunet.dataset_conversion.family import DatasetFamily

FAMILIES: dict[str, DatasetFamily] = {
    family.name: family
    for module in (brats, msd, brain_lesions, prostate, glioma_cohorts, unlabelled)
    for family in module.FAMILIES
}

__all__ = ["FAMILIES", "DatasetFamily"]
