"""Converters into nnU-Net's raw format: small tables, one file per kind of data set, and one table-driven core.

``family`` says what a table holds; the tables are in ``brats``, ``msd``, ``brain_lesions``, ``prostate``,
``glioma_cohorts`` and ``unlabelled``, and ``generic`` makes them of the options of the command. ``converter`` runs the core:
``finding`` the cases, ``checking`` them, ``writing`` them; a ``case`` is what these hand on. ``pool`` makes one data set of
several converted ones.
"""

from __future__ import annotations

from emim_nnunet.dataset_conversion import brain_lesions, brats, glioma_cohorts, msd, prostate, unlabelled
from emim_nnunet.dataset_conversion.family import DatasetFamily

FAMILIES: dict[str, DatasetFamily] = {
    family.name: family
    for module in (brats, msd, brain_lesions, prostate, glioma_cohorts, unlabelled)
    for family in module.FAMILIES
}

__all__ = ["FAMILIES", "DatasetFamily"]
