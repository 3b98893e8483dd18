"""Dense probe: how well labels can be read off the frozen features of a stage, cell by cell, with a linear model.

This is the only measure in this package that uses labels. It tells what is linearly present in frozen features, which is not
the same as what fine-tuning gains.
"""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

ALPHAS = np.logspace(-2, 5, 8)
FOLDS = 5


def dense_probe(rows: np.ndarray, targets: np.ndarray, patients: np.ndarray) -> float:
    """R2 of ridge regression from features to label fractions, on patients that were not fitted.

    Args:
        rows: (N, C) float, features of N cells.
        targets: (N, K) float in [0, 1], the share of each of K labels in each cell.
        patients: (N,) the patient of each cell; there are at most five folds, and none splits a patient.

    Returns:
        R2 over all held-out cells, weighted by the variance of each label: at most 1, 0 = no better than the mean. NaN when no
        target varies.

    Raises:
        ValueError: There are fewer than two patients.
    """
    num_patients = len(np.unique(patients))
    if num_patients < 2:
        raise ValueError(f"a probe that splits by patient needs at least two of them, there are {num_patients}")
    varying = targets.std(0) > 0
    if not varying.any():
        return float("nan")
    targets = targets[:, varying]
    predicted = np.empty_like(targets)
    for fitted, held_out in GroupKFold(min(FOLDS, num_patients)).split(rows, groups=patients):
        model = make_pipeline(StandardScaler(), RidgeCV(ALPHAS)).fit(rows[fitted], targets[fitted])
        predicted[held_out] = model.predict(rows[held_out]).reshape(len(held_out), -1)
    return float(r2_score(targets, predicted, multioutput="variance_weighted"))
