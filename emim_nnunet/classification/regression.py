"""Numbers of whole cases (ages, volumes): the fit, scores beside those of the mean predictor, the calibration picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import style
from matplotlib.figure import Figure
from sklearn.linear_model import RidgeCV
from torch import Tensor, nn

from emim_nnunet.distributed import all_reduce_sum
from emim_nnunet.errors import UserError
from emim_nnunet.storage.figures import TITLE, save_figure
from emim_nnunet.storage.tables import markdown_table

PENALTIES = np.logspace(-1, 6, 15)  # of the ridge regression; the best is chosen by leaving cases out
SCORES = ("mae", "mae_of_mean", "gain", "r2", "r2_of_mean")


def mean_column(target: str) -> str:
    """Name of the column that holds the mean of the training cases."""
    return f"mean({target})"


def standardised(numbers: np.ndarray, columns: Sequence[int]) -> tuple[np.ndarray, dict[int, tuple[float, float]]]:
    """Numbers with mean 0 and variance 1 over the training cases, in which a head is fitted and trained.

    Args:
        numbers: (N, targets) float, NaN = unknown.
        columns: Targets that are numbers; the others stay.

    Returns:
        The numbers, and column -> mean and standard deviation.

    Raises:
        UserError: A target has one value only.
    """
    result, scales = numbers.copy(), {}
    for column in columns:
        mean, std = np.nanmean(numbers[:, column]), np.nanstd(numbers[:, column])
        if not std > 0:
            raise UserError("the training cases have a single number: nothing can be learnt")
        result[:, column] = (numbers[:, column] - mean) / std
        scales[column] = (float(mean), float(std))
    return result, scales


def to_units(heads: nn.ModuleList, scales: Mapping[int, tuple[float, float]]) -> None:
    """Let heads that were trained on standardised numbers predict in the units of the table, in place."""
    with torch.no_grad():
        for column, (mean, std) in scales.items():
            head: Any = heads[column]
            head.weight.mul_(std)
            head.bias.mul_(std).add_(mean)


def fit_number(head: nn.Linear, rows: np.ndarray, column: np.ndarray) -> None:
    """Fit a ridge regression and write it into a head.

    Args:
        head: Linear layer with one output.
        rows: (N, width) float64, standardised features.
        column: (N,) float, standardised numbers, NaN = unknown.
    """
    known = np.isfinite(column)
    fit = RidgeCV(PENALTIES).fit(rows[known], column[known])
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(fit.coef_)[None])
        head.bias.fill_(float(fit.intercept_))


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of the known targets, over all processes.

    Args:
        output: (B, 1) float.
        target: (B,) float, standardised, NaN = unknown.

    Returns:
        () float; 0 where no target is known.
    """
    known = target.isfinite()
    error = torch.where(known, output[:, 0].float() - target.nan_to_num(), 0.0)
    return all_reduce_sum(error.square().sum()) / all_reduce_sum(known.sum().to(error.dtype)).clamp_min(1)


def regression_scores(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Scores of predicted numbers, and of the mean of the training cases in their place.

    R2 is 1 minus the ratio of the squared errors to those of the mean of these cases, which nobody knows beforehand: that of
    the mean predictor is 0 at most.

    Args:
        true: (N,) float, the true numbers.
        predicted: (N, 2) float, the predicted numbers and the means of the training cases.

    Returns:
        ``mae``, ``mae_of_mean``, ``gain`` (the difference, positive where the prediction is better), ``r2``, ``r2_of_mean``.
    """
    errors = true[:, None] - predicted
    mae = np.abs(errors).mean(0)
    r2 = 1 - (errors**2).mean(0) / true.var() if true.var() > 0 else np.full(2, np.nan)
    return dict(zip(SCORES, map(float, (mae[0], mae[1], mae[1] - mae[0], r2[0], r2[1])), strict=True))


def calibration(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Line of the true numbers over the predicted ones (least squares): slope 1 and intercept 0 where these can be believed.

    Args:
        true: (N,) float.
        predicted: (N,) float.

    Returns:
        ``slope`` and ``intercept``; NaN where all predictions are equal.
    """
    if np.ptp(predicted) == 0:
        return {"slope": float("nan"), "intercept": float("nan")}
    slope, intercept = np.polyfit(predicted, true, 1)
    return {"slope": float(slope), "intercept": float(intercept)}


def regression_table(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines of a Markdown table with a row per target.

    Args:
        results: Target -> ``scores``, ``calibration``, ``remark``, ``num_cases``, ``num_patients``.
    """
    rows = []
    for target, result in results.items():
        cells = {}
        for key, s in result["scores"].items():
            interval = "(too few)" if result["remark"] else f"({s['low']:.3g} to {s['high']:.3g})"
            cells[key] = f"{s['value']:.3g}" + ("" if key.endswith("of_mean") else f" {interval}")
        slope = f"{result['calibration']['slope']:.2f}"
        rows.append([target, *(cells[key] for key in SCORES), slope, result["num_cases"], result["num_patients"]])
    head = ["MAE (95 %)", "MAE of the mean", "gain (95 %)", "R2 (95 %)", "R2 of the mean", "slope", "cases", "patients"]
    return markdown_table(["target", *head], rows)


@style.context("default")
def plot_calibration(
    target: str, true: np.ndarray, predicted: np.ndarray, result: Mapping[str, Any], path: Path
) -> None:
    """Draw the true numbers over the predicted ones, with the line on which they should be.

    Args:
        target: Name of the target.
        true: (N,) float.
        predicted: (N, 2) float, the predicted numbers and the means of the training cases.
        result: ``calibration``, ``num_cases``, ``num_patients`` and ``remark``.
        path: The PNG file to write.
    """
    figure = Figure(figsize=(5.2, 4.8), layout="constrained")
    ax = figure.subplots()
    ends = np.array([min(true.min(), predicted.min()), max(true.max(), predicted.max())])
    ax.plot(ends, ends, color="0.6", linewidth=1, label="predicted = true")
    line = result["calibration"]
    if np.isfinite(line["slope"]):
        between = np.array([predicted[:, 0].min(), predicted[:, 0].max()])
        name = f"least squares, slope {line['slope']:.2f}"
        ax.plot(between, line["intercept"] + line["slope"] * between, color="tab:blue", linewidth=1.5, label=name)
    ax.plot(predicted[:, 1], true, "x", color="tab:orange", markersize=5, label="mean of the training cases")
    ax.plot(predicted[:, 0], true, "o", color="tab:blue", markersize=5, alpha=0.7, label="predicted")
    ax.set_xlabel(f"predicted {target}")
    ax.set_ylabel(f"true {target}")
    ax.legend(fontsize=8, frameon=False)
    few = "\n(too few for intervals)" if result["remark"] else ""
    ax.set_title(f"{target}, {result['num_cases']} cases of {result['num_patients']} patients{few}", **TITLE)
    save_figure(figure, path)
