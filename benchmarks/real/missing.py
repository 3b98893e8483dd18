"""What a segmentation is worth where modalities are missing, with and without dropping them in training: part ``missing``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from measure.common import markdown_table

from emim_nnunet.compare.arms import SCRATCH
from emim_nnunet.compare.power import detectable
from emim_nnunet.compare.scores import interval


def subset_table(rows: Sequence[dict[str, Any]]) -> str:
    """Mean Dice of every subset of the modalities, and the differences that the part was run for.

    Args:
        rows: Trainings whose ``dice_of_subsets`` is known, of one number of labelled patients; may be empty.
    """
    if not rows:
        return "Not run yet.\n"
    keys = list(dict.fromkeys((row["arm"], row["p_drop"]) for row in rows))
    subsets = list(rows[0]["dice_of_subsets"])
    dice = {key: _dice([row for row in rows if (row["arm"], row["p_drop"]) == key]) for key in keys}
    lines = [
        [
            arm,
            f"{p:g}",
            str(len(found)),
            *(f"{np.mean([d[name] for d in found.values()]):.3f}" for name in [*subsets, "all"]),
        ]
        for (arm, p), found in dice.items()
    ]
    text = markdown_table(["arm", "dropped with", "draws", *subsets, "all"], lines)
    pairs = [((arm, p), (arm, 0.0)) for arm, p in keys if p > 0]
    pairs += [((arm, p), (SCRATCH, p)) for arm, p in keys if arm != SCRATCH]
    differences = [
        [f"{_name(first)} minus {_name(second)}", where, *_difference(dice[first], dice[second], kept)]
        for first, second in pairs
        if second in dice
        for where, kept in (("incomplete, mean of the subsets", subsets), ("complete", ["all"]))
    ]
    header = ["difference", "patients", "draws", "Dice", "95 %", "smallest that could be seen"]
    return text + "\n" + markdown_table(header, differences)


def _name(key: tuple[str, float]) -> str:
    return f"{key[0]} ({key[1]:g})"


def _dice(rows: Sequence[dict[str, Any]]) -> dict[int, dict[str, list[float]]]:
    """Draw -> subset, or ``all`` -> Dice of each patient."""
    return {row["draw"]: row["dice_of_subsets"] | {"all": list(row["dice"].values())[-1]} for row in rows}


def _difference(
    first: dict[int, dict[str, list[float]]], second: dict[int, dict[str, list[float]]], subsets: Sequence[str]
) -> list[str]:
    """Number of draws, mean difference, interval, and the smallest difference that so many draws could have seen."""
    draws = sorted(first.keys() & second.keys())
    values = np.array(
        [np.mean([first[d][s] for s in subsets], 0) - np.mean([second[d][s] for s in subsets], 0) for d in draws]
    )
    mean, low, high = interval(values)
    seen = f"{detectable(len(draws)) * values.mean(1).std(ddof=1):.3f}" if len(draws) > 1 else "n/a"
    return [str(len(draws)), f"{mean:+.3f}", f"{low:+.3f} to {high:+.3f}", seen]
