"""Measures of whether a pretraining has collapsed, and rules that turn them into a verdict."""

from emim_nnunet.diagnostics.baselines import constant_losses, position_sums
from emim_nnunet.diagnostics.dense_probe import dense_probe
from emim_nnunet.diagnostics.hypersphere import alignment, uniformity
from emim_nnunet.diagnostics.probe import CollapseProbe
from emim_nnunet.diagnostics.reconstruction import reconstruction_scores, reconstruction_sums
from emim_nnunet.diagnostics.rules import Finding, Thresholds, Verdict, judge
from emim_nnunet.diagnostics.spectrum import (
    CovarianceSums,
    cell_grid,
    effective_rank,
    eigenvalues,
    foreground_rows,
    isotropic_eigenvalues,
    participation_ratio,
    stage_scores,
)

__all__ = [
    "CollapseProbe",
    "CovarianceSums",
    "Finding",
    "Thresholds",
    "Verdict",
    "alignment",
    "cell_grid",
    "constant_losses",
    "dense_probe",
    "effective_rank",
    "eigenvalues",
    "foreground_rows",
    "isotropic_eigenvalues",
    "judge",
    "participation_ratio",
    "position_sums",
    "reconstruction_scores",
    "reconstruction_sums",
    "stage_scores",
    "uniformity",
]
