"""The second to the eighth hypothesis of HYPOTHESIS.md: an arm against scratch, or MIM, over folds, and by encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np
from measure.common import markdown_table
from scipy.stats import wilcoxon

from emim_nnunet.compare.arms import SCRATCH
from emim_nnunet.compare.scores import interval
from real.data import COHORT, FINAL, PATIENTS
from real.part import Part, Tuning
from real.plan import BEST_SCRATCH, LOCAL_FOLDS, PARTS
from real.scores import compared, decimal, end_dice, steps_ratio

Rows = Sequence[dict[str, Any]]
HYPOTHESES = {  # the parts that test them, one per fold
    "second": tuple(f"cohort{fold}" for fold in COHORT),
    "third": tuple(f"local{fold}" for fold in LOCAL_FOLDS),
    "fourth": tuple(f"same_rate{fold}" for fold in LOCAL_FOLDS),
    "fifth": tuple(f"mask_in_mask{fold}" for fold in COHORT),
    "sixth": tuple(f"emim{fold}" for fold in COHORT),
    "eighth": (f"unseen{FINAL}",),
}
SEVENTH = HYPOTHESES["sixth"], "mim"  # its parts, and the arm that takes the place of scratch


def over_folds(
    rows: Rows, names: Sequence[str], against: Tuning | str = BEST_SCRATCH[0], arm: str = ""
) -> dict[str, Any] | None:
    """A hypothesis over its folds together; None before its draws.

    Args:
        rows: All trainings, see :func:`report.read_results`.
        names: The parts that test it; they differ in their folds alone.
        against: The control: the one that the hypothesis names, another way to train from scratch, or another arm.
        arm: Another arm of the parts than their first, which is the one that the hypothesis names.

    Returns:
        As :func:`report.primary`, but against that control; a patient tests in the draws of one fold.
    """
    pairs = []
    for part in (PARTS[name] for name in names):
        encoders = _encoders(rows, part, arm or part.arms[0])
        if isinstance(against, str):
            controls = _encoders(rows, part, against)
        else:
            controls = [_by_draw(rows, part, "", against)] * part.seeds
        for draw in part.draw_numbers:
            ours, theirs = (of_seed[draw % part.seeds] for of_seed in (encoders, controls))
            pairs += [(ours[draw], theirs[draw])] if draw in ours and draw in theirs else []
    if not pairs:
        return None
    patients = sorted({patient for trained, _ in pairs for patient in trained["patients"]})
    difference = np.full((len(pairs), len(patients)), np.nan)
    for line, (trained, control) in zip(difference, pairs, strict=True):
        line[[patients.index(name) for name in trained["patients"]]] = (end_dice([trained]) - end_dice([control]))[0]
    mean, low, high = interval(difference)
    p = float(wilcoxon(np.nanmean(difference, 1)).pvalue) if len(pairs) > 1 else None
    group, control_group = zip(*pairs, strict=True)
    about = {"arm": group[0]["arm"], "labelled": group[0]["labelled"], "difference": mean, "low": low, "high": high}
    about |= {"draws": len(pairs), "patients": len(patients), "encoders": len({row["stage"] for row in group}), "p": p}
    return about | {"steps_ratio": steps_ratio(group, control_group)}


def _encoders(rows: Rows, part: Part, arm: str) -> list[dict[int, dict[str, Any]]]:
    """For each pretraining seed draw -> the training."""
    return [_by_draw(rows, part, part.stage(arm, seed), part.tunings[0]) for seed in range(part.seeds)]


def _by_draw(rows: Rows, part: Part, stage: str, tuning: Tuning) -> dict[int, dict[str, Any]]:
    """Draw -> the training of an encoder on the patients of a part; the stage of scratch is empty."""
    wanted = {"evaluation": "finetune", "labelled": part.labelled[0], "tests": PATIENTS[part.label_fold][1]}
    wanted |= {"stage": stage} | asdict(tuning)
    return {row["draw"]: row for row in rows if wanted.items() <= row.items()}


def rotated(rows: Rows) -> list[dict[str, Any]]:
    """The trainings without those that part ``encoders`` adds: one encoder of an arm per draw, so that draws count alike."""
    crossed = [part for part in PARTS.values() if part.crossed]
    added = {
        (part.stage(arm, seed), draw)
        for part in crossed
        for arm in part.arms
        for draw in part.draw_numbers
        for seed in range(part.seeds)
        if draw % part.seeds != seed
    }
    return [row for row in rows if (row["stage"], row["draw"]) not in added]


def control_table(rows: Rows, names: Sequence[str]) -> str:
    """A hypothesis against its control and other ways to train from scratch, other arms in its draws, arms against arms."""
    counts, values = ("draws", "patients", "encoders"), ("difference", "low", "high", "p", "steps_ratio")
    first, *others = PARTS[names[0]].arms
    controls = (*BEST_SCRATCH, *PARTS["equal_compute"].scratch_tunings)
    pairs: list[tuple[str, Tuning | str]] = [(first, control) for control in controls]
    pairs += [*((arm, BEST_SCRATCH[0]) for arm in others), *combinations((first, *others), 2)]
    lines = []
    for arm, control in pairs:
        found = over_folds(rows, names, control, arm)
        if found:
            name = control if isinstance(control, str) else f"{SCRATCH}, {control.head} head, {control.steps} steps"
            numbers = [str(found[key]) for key in counts] + [decimal(found[key]) for key in values]
            lines.append([found["arm"], name, *numbers])
    return markdown_table(["arm", "minus", *counts, *values], lines)


def fold_table(rows: Rows, names: Sequence[str], against: str) -> str:
    """The arm of a hypothesis against another one, over its folds and fold by fold; nothing before its draws."""
    lines = []
    for parts in (tuple(names), *((name,) for name in names)):
        found = over_folds(rows, parts, against)
        if found:
            tests = ", ".join(str(PARTS[name].label_fold) for name in parts)
            difference = "{difference:+.3f} ({low:+.3f} to {high:+.3f})".format(**found)
            lines.append(
                [tests, str(found["draws"]), f"{found['arm']} minus {against}", difference, decimal(found["p"], 4)]
            )
    return markdown_table(["folds", "draws", "arms", "difference", "p"], lines) if lines else ""


def encoder_table(rows: Rows, names: Sequence[str]) -> str:
    """Each encoder of a hypothesis against scratch: in the draws that it has for itself, and in those that its fold shares."""
    lines = []
    for part in (PARTS[name] for name in names):
        scratch = _by_draw(rows, part, "", BEST_SCRATCH[0])
        arms = _encoders(rows, part, part.arms[0])
        shared = set.intersection(*(set(arm) for arm in arms)) if part.seeds > 1 else set()
        for seed, arm in enumerate(arms):
            own = {draw for draw in arm if draw % part.seeds == seed and draw in part.draw_numbers}
            cells = [cell for draws in (own, shared) for cell in _cells(arm, scratch, draws & scratch.keys())]
            lines += [[PATIENTS[part.fold][0], str(seed), *cells]] if arm else []
    return markdown_table(["patients", "seed", "own draws", "difference", "shared draws", "difference"], lines)


def _cells(arm: dict[int, dict[str, Any]], scratch: dict[int, dict[str, Any]], draws: set[int]) -> list[str]:
    if not draws:
        return ["0", ""]
    found = compared([arm[draw] for draw in draws], [scratch[draw] for draw in draws])
    return [str(len(draws)), "{difference:+.3f} ({low:+.3f} to {high:+.3f})".format(**found)]
