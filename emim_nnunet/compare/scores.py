"""The measurements of a comparison: scores of all cases, their intervals and differences, and spectra of the encoders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emim_nnunet.bootstrap import bootstrap_interval
from emim_nnunet.compare.arms import SCRATCH
from emim_nnunet.diagnosis.collapse_report import REPORT_NAME

RESAMPLES = 4000


def read_scores(files: Sequence[tuple[dict[str, Any], Path]]) -> list[dict[str, Any]]:
    """Read the Dice of each test case from nnU-Net's summaries.

    Args:
        files: For each summary a dict of what it belongs to, and its file, see :meth:`Commands.score_files`.

    Returns:
        A row per summary and case: the keys of the dict, ``case``, ``dice`` for each label or region, and their ``mean``,
        without undefined ones (where neither prediction nor reference has the label).
    """
    rows = []
    for about, file in files:
        for entry in json.loads(file.read_text())["metric_per_case"]:
            dice = {label: metrics["Dice"] for label, metrics in entry["metrics"].items()}
            defined = [value for value in dice.values() if value == value]
            case = Path(entry["reference_file"]).name.split(".")[0]
            rows.append(
                about | {"case": case, "dice": dice, "mean": float(np.mean(defined)) if defined else float("nan")}
            )
    return rows


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Compute a mean and its 95 % bootstrap interval; draws and cases are drawn independently, with replacement.

    Scores of one case in several draws, and of several cases in one draw, depend on each other; drawing both accounts for
    that.

    Args:
        values: (draws, cases) float; NaN is left out: no label there, or the case is no test case of that draw.
        seed: Seed of the bootstrap.

    Returns:
        The mean, and the lower and upper end of the interval.
    """
    draws, cases = values.shape

    def mean(rng: np.random.Generator) -> np.ndarray:
        drawn = values[rng.integers(draws, size=draws)][:, rng.integers(cases, size=cases)]
        return np.array([np.nanmean(drawn) if np.isfinite(drawn).any() else np.nan])

    (low,), (high,) = bootstrap_interval(mean, RESAMPLES, seed)
    return float(np.nanmean(values)), float(low), float(high)


def summarise(scores: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compute mean and interval of each arm, and its paired difference from training from scratch.

    Args:
        scores: The rows of :func:`read_scores`.

    Returns:
        A row per evaluation, number of labelled cases and arm: ``mean``, ``low``, ``high``, ``num_cases``, ``num_draws`` and,
        where scratch was run and the arm is another one, ``difference``, ``difference_low``, ``difference_high`` and
        ``better_in`` (cases, averaged over draws, in which the arm is better).
    """
    groups = dict.fromkeys((row["evaluation"], row["labelled"], row["arm"]) for row in scores)
    tables = {key: mean_dice(scores, *key) for key in groups}
    rows = []
    for (evaluation, labelled, arm), values in tables.items():
        mean, low, high = interval(values)
        row = {"evaluation": evaluation, "labelled": labelled, "arm": arm, "mean": mean, "low": low, "high": high}
        row |= {"num_draws": values.shape[0], "num_cases": values.shape[1]}
        reference = tables.get((evaluation, labelled, SCRATCH))
        if reference is not None and arm != SCRATCH:
            difference = values - reference
            mean, low, high = interval(difference)
            better = int((np.nanmean(difference, 0) > 0).sum())
            row |= {"difference": mean, "difference_low": low, "difference_high": high, "better_in": better}
        rows.append(row)
    return rows


def mean_dice(scores: Sequence[dict[str, Any]], evaluation: str, labelled: int, arm: str) -> np.ndarray:
    """Collect the Dice of one arm, averaged over the labels; NaN where a case is no test case of a draw.

    Args:
        scores: The rows of :func:`read_scores`.
        evaluation: The evaluation, a key of :data:`.protocol.EVALUATIONS`.
        labelled: The number of labelled training cases.
        arm: The name of the arm.

    Returns:
        (draws, cases) float64, NaN where undefined; draws by their number.
    """
    chosen = [r for r in scores if (r["evaluation"], r["labelled"], r["arm"]) == (evaluation, labelled, arm)]
    draws, cases = (sorted({row[key] for row in chosen}) for key in ("draw", "case"))
    table = np.full((len(draws), len(cases)), np.nan)
    for row in chosen:
        table[draws.index(row["draw"]), cases.index(row["case"])] = row["mean"]
    return table


def collect_spectra(folders: Sequence[tuple[str, int, Path]]) -> list[dict[str, Any]]:
    """Collect the spectra of all encoder stages at the end of each SSL stage, and of the untrained network.

    Args:
        folders: Name of the arm, seed and output folder of each SSL stage.

    Returns:
        A row per arm, seed and stage: ``share`` of the variance per direction (squared singular values of the centred features
        of cells over their sum), ``effective_rank``, ``untrained_share``, ``untrained_effective_rank``, ``verdict``.
    """
    rows = []
    for arm, seed, folder in folders:
        content = json.loads((folder / REPORT_NAME).read_text())
        for number, (now, before) in enumerate(
            zip(content["now"]["stages"], content["untrained"]["stages"], strict=True)
        ):
            rows.append(
                {
                    "arm": arm,
                    "seed": seed,
                    "stage": number,
                    "share": now["spectrum"],
                    "effective_rank": now["effective_rank"],
                    "untrained_share": before["spectrum"],
                    "untrained_effective_rank": before["effective_rank"],
                    "verdict": content["verdict"],
                }
            )
    return rows
