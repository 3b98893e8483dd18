"""Scores of predicted classes (AUROC, balanced accuracy, F1) and numbers, with bootstrap intervals over patients."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, roc_auc_score

from emim_nnunet.bootstrap import bootstrap_interval
from emim_nnunet.classification.regression import (
    calibration,
    mean_column,
    plot_calibration,
    regression_scores,
    regression_table,
)
from emim_nnunet.classification.table import CASE, LabelTable
from emim_nnunet.errors import UserError
from emim_nnunet.report import leave_report
from emim_nnunet.storage.figures import TITLE, save_figure
from emim_nnunet.storage.files import plain_json, write_text
from emim_nnunet.storage.tables import markdown_table, write_csv

RESAMPLES = 2000
MIN_PATIENTS = 10  # with fewer, a bootstrap says little: with five right cases every sample has an AUROC of 1
TOO_FEW = f"too few patients for an interval, at least {MIN_PATIENTS} are needed"


def probability_column(target: str, name: str) -> str:
    """Name of the column that holds the probability of a class of a target."""
    return f"p({target}={name})"


def write_predictions(
    path: Path,
    cases: Sequence[str],
    classes: dict[str, list[str]],
    predicted: dict[str, np.ndarray],
    means: Mapping[str, float] | None = None,
) -> None:
    """Write a row per case: for each target the predicted class, and the probability of each class; or the predicted number,
    and the mean of the training cases.

    Args:
        path: The CSV file to write.
        cases: Ids of N cases.
        classes: Target -> names of its classes, none for a number.
        predicted: Target -> (N, classes) probabilities, or (N, 1) numbers.
        means: Target -> mean of the training cases, for numbers.
    """
    rows: list[dict[str, str]] = []
    for number, case in enumerate(cases):
        row = {CASE: case}
        for target, names in classes.items():
            values = predicted[target][number]
            if not names:
                row |= {target: f"{values[0]:.6g}", mean_column(target): f"{(means or {})[target]:.6g}"}
                continue
            row[target] = names[int(values.argmax())]
            row |= {probability_column(target, n): f"{v:.6g}" for n, v in zip(names, values, strict=True)}
        rows.append(row)
    write_csv(path, rows)


def read_predictions(paths: Sequence[Path], classes: dict[str, list[str]]) -> tuple[list[str], dict[str, np.ndarray]]:
    """Read the predictions of one file or of several (one per fold).

    Args:
        paths: Files that :func:`write_predictions` wrote.
        classes: Target -> names of its classes, none for a number.

    Returns:
        Ids of the N cases, and target -> (N, classes) float probabilities, or (N, 2) float: the predicted number and the mean
        of the training cases.

    Raises:
        UserError: A file is unreadable or lacks a column, or a case is predicted twice.
    """
    cases: list[str] = []
    values: dict[str, list[list[float]]] = {target: [] for target in classes}
    for path in paths:
        try:
            rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
            for row in rows:
                cases.append(row[CASE])
                for target, names in classes.items():
                    columns = [probability_column(target, name) for name in names] or [target, mean_column(target)]
                    values[target].append([float(row[column]) for column in columns])
        except KeyError as error:
            raise UserError(
                f"{path} has no column {error}: was it predicted with these classes and numbers?"
            ) from error
        except (OSError, UnicodeDecodeError, ValueError, TypeError, csv.Error) as error:
            raise UserError(f"{path} cannot be read as predictions of emim_classify ({error})") from error
    twice = sorted({case for case in cases if cases.count(case) > 1})
    if twice:
        raise UserError(
            f"case {twice[0]} is predicted twice: were some of {', '.join(map(str, paths))} of the same fold?"
        )
    return cases, {target: np.array(rows).reshape(len(cases), -1) for target, rows in values.items()}


def scores(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """AUROC, balanced accuracy and F1.

    Args:
        true: (N,) int, the true class numbers.
        predicted: (N, classes) float, the predicted probabilities.

    Returns:
        ``auroc`` (of the second class of two; otherwise the mean over the classes that occur, each against the rest; NaN where
        undefined), ``balanced_accuracy``, ``f1`` (mean over classes).
    """
    chosen = predicted.argmax(1)
    columns = [k for k in range(predicted.shape[1]) if 0 < (true == k).sum() < len(true)]
    columns = columns[-1:] if predicted.shape[1] == 2 else columns
    areas = [roc_auc_score(true == k, predicted[:, k]) for k in columns]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class that is predicted but does not occur in a bootstrap sample
        return {
            "auroc": float(np.mean(areas)) if areas else float("nan"),
            "balanced_accuracy": float(balanced_accuracy_score(true, chosen)),
            "f1": float(f1_score(true, chosen, average="macro", labels=np.unique(true))),
        }


def bootstrap(
    true: np.ndarray,
    predicted: np.ndarray,
    patients: Sequence[str],
    score: Callable[[np.ndarray, np.ndarray], dict[str, float]] = scores,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals of scores: patients are drawn with replacement, each together with all cases of that patient.

    Args:
        true: (N,) int, the true class numbers, or (N,) float, the true numbers.
        predicted: (N, K) float, what ``score`` takes for them: the predicted probabilities, for example.
        patients: The patient of each of the N cases.
        score: Computes the scores of a sample, as :func:`scores` does.
        seed: Seed of the draws.

    Returns:
        Score -> lower and upper end; samples with a single class, where the scores are undefined, are left out.
    """
    names = np.array(patients)
    groups = [np.flatnonzero(names == name) for name in np.unique(names)]
    keys = list(score(true, predicted))

    def statistic(rng: np.random.Generator) -> np.ndarray:
        rows = np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))])
        if len(np.unique(true[rows])) < 2:
            return np.full(len(keys), np.nan)
        found = score(true[rows], predicted[rows])
        return np.array([found[key] for key in keys])

    ends = bootstrap_interval(statistic, RESAMPLES, seed)
    return {key: (float(lower), float(upper)) for key, lower, upper in zip(keys, *ends, strict=True)}


def evaluate(table: LabelTable, predictions: Sequence[Path], output: Path) -> list[str]:
    """Score predictions and write ``metrics.json``, ``metrics.md``, ``per_case.csv`` and a picture per target.

    The picture is ``confusion_TARGET.png``, for numbers ``calibration_TARGET.png``.

    Args:
        table: The true classes and numbers.
        predictions: Files that :func:`write_predictions` wrote, of one or several folds.
        output: The folder to write to; it is made when needed.

    Returns:
        The lines of ``metrics.md``, a Markdown table with a row per target.

    Raises:
        UserError: A predicted case is not in the table, or all cases of a target are of one class or number.
    """
    cases, predicted = read_predictions(predictions, table.classes)
    unknown = sorted(set(cases) - set(table.rows))
    if unknown:
        raise UserError(
            f"{table.path} has no row for case {unknown[0]} ({len(unknown)} predicted cases are missing there)"
        )
    numbers = np.array([table.numbers(case) for case in cases])
    results: dict[str, dict[str, Any]] = {}
    pairs = {}
    for number, target in enumerate(table.targets):
        column = numbers[:, number]
        known = np.isfinite(column) if number in table.numeric else column >= 0
        pairs[target] = column[known], predicted[target][known]
        patients = [table.patients[case] for case, there in zip(cases, known, strict=True) if there]
        results[target] = _result(table, target, *pairs[target], patients)
    output.mkdir(parents=True, exist_ok=True)
    lines = _tables(table, results)
    text = json.dumps(plain_json(results), indent=1, allow_nan=False)
    write_text(output / "metrics.json", text)
    write_text(output / "metrics.md", "\n".join(lines) + "\n")
    _write_per_case(output / "per_case.csv", table, cases, predicted)
    for target, result in results.items():
        safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in target)
        if table.classes[target]:
            _plot_confusion(result, target, output / f"confusion_{safe}.png")
        else:
            plot_calibration(target, *pairs[target], result, output / f"calibration_{safe}.png")
    leave_report(output)
    return lines


def _result(
    table: LabelTable, target: str, true: np.ndarray, predicted: np.ndarray, patients: Sequence[str]
) -> dict[str, Any]:
    """Scores of a target with their intervals, and what the pictures show."""
    names = table.classes[target]
    if len(np.unique(true)) < 2:
        which = "none" if not len(true) else f"{names[int(true[0])]}" if names else f"{true[0]:g}"
        raise UserError(
            f"'{target}': all {len(true)} predicted cases are of the {'class' if names else 'number'} {which}, so no score is "
            f"defined: evaluate the predictions of several folds together"
        )
    true = true.astype(np.int64) if names else true
    score = scores if names else regression_scores
    too_few = len(set(patients)) < MIN_PATIENTS
    intervals = {} if too_few else bootstrap(true, predicted, patients, score)
    nothing = (float("nan"), float("nan"))
    result = {
        "num_cases": len(true),
        "num_patients": len(set(patients)),
        "remark": TOO_FEW if too_few else "",
        "scores": {
            key: dict(zip(("value", "low", "high"), (value, *intervals.get(key, nothing)), strict=True))
            for key, value in score(true, predicted).items()
        },
    }
    if not names:
        return result | {"calibration": calibration(true, predicted[:, 0])}
    counts = np.bincount(true, minlength=len(names)).tolist()
    confusion = confusion_matrix(true, predicted.argmax(1), labels=range(len(names))).tolist()
    return result | {"classes": names, "cases_per_class": counts, "confusion": confusion}


def _tables(table: LabelTable, results: dict[str, Any]) -> list[str]:
    """A table of the classes and one of the numbers, where there are any."""
    classes, numbers = (
        {target: result for target, result in results.items() if bool(table.classes[target]) == wanted}
        for wanted in (True, False)
    )
    few = [f"{target} ({r['num_patients']})" for target, r in results.items() if r["remark"]]
    lines = _class_table(classes) if classes else []
    lines += [""] * bool(classes and numbers) + (regression_table(numbers) if numbers else [])
    return lines + (
        [f"{', '.join(few)}: {TOO_FEW}. Evaluate the predictions of several folds together."] if few else []
    )


def _class_table(results: dict[str, Any]) -> list[str]:
    rows = []
    for target, result in results.items():
        cells = [
            f"{s['value']:.3f} " + ("(too few)" if result["remark"] else f"({s['low']:.3f} to {s['high']:.3f})")
            for s in result["scores"].values()
        ]
        rows.append([target, *cells, result["num_cases"], result["num_patients"]])
    scored = [f"{name} (95 %)" for name in ("AUROC", "balanced accuracy", "F1")]
    return markdown_table(["target", *scored, "cases", "patients"], rows)


def _write_per_case(path: Path, table: LabelTable, cases: Sequence[str], predicted: dict[str, np.ndarray]) -> None:
    rows = []
    for number, case in enumerate(cases):
        for target in table.targets:
            names, values = table.classes[target], predicted[target][number]
            true, chosen = table.rows[case][target], names[int(values.argmax())] if names else f"{values[0]:.6g}"
            row = {
                CASE: case,
                "patient": table.patients[case],
                "target": target,
                "true": true or "",
                "predicted": chosen,
            }
            if not names:
                error = "" if true is None else f"{values[0] - float(true):.6g}"
                rows.append(row | {"mean_of_training": f"{values[1]:.6g}", "error": error})
                continue
            row["probability_of_true"] = "" if true is None else f"{values[names.index(true)]:.6g}"
            row["right"] = "" if true is None else str(true == chosen)
            rows.append(row)
    write_csv(path, rows)


@style.context("default")
def _plot_confusion(result: dict[str, Any], target: str, path: Path) -> None:
    """Draw the confusion matrix: counts, coloured by their share of the true class."""
    counts = np.array(result["confusion"])
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = result["classes"]
    size = 2.6 + 0.6 * len(names)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    ax = figure.subplots()
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row in range(len(names)):
        for column in range(len(names)):
            colour = "white" if shares[row, column] > 0.6 else "black"
            ax.text(
                column, row, f"{counts[row, column]}\n{shares[row, column]:.0%}", ha="center", va="center", color=colour
            )
    ax.set_xticks(range(len(names)), names, rotation=30, ha="right")
    ax.set_yticks(range(len(names)), names)
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    few = "\n(too few for scores)" if result["remark"] else ""
    ax.set_title(f"{target}, {result['num_cases']} cases of {result['num_patients']} patients{few}", **TITLE)
    save_figure(figure, path)
