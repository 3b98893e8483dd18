"""The methods beside each other: part ``others``, on a fold of the second hypothesis, with the head that it names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

from measure.common import markdown_table

from emim_nnunet.compare.arms import SCRATCH
from real.arms import arm_of
from real.data import COHORT, PATIENTS
from real.hypotheses import rotated
from real.part import Tuning
from real.plan import BEST_SCRATCH, LOCAL_ARM, LOCAL_FOLDS, PARTS, PRIMARY, PRIMARY_ARM, PRIMARY_LABELLED, TUNED_EMIM
from real.scores import compared, end_dice

PAIRS = (("moco_local", "moco"), (PRIMARY_ARM, "moco_local"), ("emim", "mim"), ("emim", "emim_no_pbt"))


def others_table(rows: Sequence[dict[str, Any]]) -> str:
    """Each method against scratch with the same head, and some against each other, all in the same draws.

    Args:
        rows: Trainings, see :func:`report.read_results`.

    Returns:
        A Markdown table; nothing before the part was run.
    """
    part = PARTS["others"]
    arms, draws = (PRIMARY_ARM, *part.arms), part.draw_numbers
    here = [row for row in rows if row["tests"] == f"all sites, {COHORT[0]}" and row["draw"] in draws]
    lines = []
    for labelled in part.labelled:

        def of(arm: str, evaluation: str, labelled: int = labelled) -> list[dict[str, Any]]:
            tuning = asdict(BEST_SCRATCH[0] if arm == SCRATCH else PRIMARY) if evaluation == "finetune" else {}
            wanted = {"arm": arm, "labelled": labelled, "evaluation": evaluation} | tuning
            return [row for row in here if wanted.items() <= row.items()]

        for arm, other in [*((arm, SCRATCH) for arm in arms), *PAIRS]:
            tuned, frozen = ((of(arm, how), of(other, how)) for how in ("finetune", "linear"))
            if all((*tuned, *frozen)):
                dice = [f"{end_dice(group[0]).mean():.3f}" for group in (frozen, tuned)]
                found = [compared(*group) for group in (frozen, tuned)]
                cells = [cell for difference in found for cell in _cells(difference)]
                number = str(min(difference["draws"] for difference in found))
                lines.append([str(labelled), f"{arm} minus {other}", number, *dice, *cells])
    header = ["labelled", "arms", "draws", "Dice of the first, frozen", "fine-tuned"]
    return markdown_table([*header, "difference, frozen", "p", "fine-tuned", "p"], lines) if lines else ""


def contrast_table(rows: Sequence[dict[str, Any]]) -> str:
    """What changes one thing: the rate of the linear head, the recipe of E-MIM, whitening, the computing of scratch, and
    pretraining of the planned network; in the draws that both have.
    """
    planned, cohort = PARTS["planned"], {PATIENTS[fold][1] for fold in COHORT}
    rows = [row for row in rotated(rows) if row["tests"] in cohort or row["configuration"] == planned.configuration]
    fast, slow = (_fine_tuned(tuning) for tuning in (*PARTS["own_rate"].tunings, PRIMARY))
    first, tuned = {"tests": PATIENTS[COHORT[0]][1]}, arm_of(TUNED_EMIM).name
    named = [arm_of(arm).name for arm in PARTS["own_rate"].arms]
    pairs = [(f"{arm}, 1e-3 minus 3e-4", first | {"arm": arm, "labelled": 2}, fast, {}, slow) for arm in named]
    pairs.append(("emim minus mim, 1e-3", first | {"arm": "emim", "labelled": 2}, fast, {"arm": "mim"}, fast))
    for long in PARTS["equal_compute"].scratch_tunings:
        name = f"emim, 1e-3, minus scratch, {long.head} head, {long.steps} steps"
        pairs.append((name, first | {"arm": "emim", "labelled": 2}, fast, {"arm": SCRATCH}, _fine_tuned(long)))
    for labelled in PARTS["tuned"].labelled:
        for how in ({"evaluation": "linear"}, slow):
            about = first | {"arm": tuned, "labelled": labelled}
            pairs.append((f"{tuned} minus emim, {how['evaluation']}", about, how, {"arm": "emim"}, how))
    for fold in LOCAL_FOLDS:
        about = {"tests": PATIENTS[fold][1], "arm": PRIMARY_ARM, "labelled": PRIMARY_LABELLED}
        pairs.append((f"{PRIMARY_ARM} minus {LOCAL_ARM}", about, slow, {"arm": LOCAL_ARM}, slow))
        pairs.append((f"{PRIMARY_ARM}, 1e-3 minus 3e-4", about, fast, {}, slow))
    for arm, tuning in product(planned.arms, planned.tunings):
        about = {"configuration": planned.configuration, "arm": arm, "labelled": planned.labelled[0]}
        how = _fine_tuned(tuning)
        pairs.append((f"{arm} minus scratch, {tuning.rate:g}", about, how, {"arm": SCRATCH}, how))
    lines = []
    for name, about, how, other, other_how in pairs:
        groups = [
            [row for row in rows if wanted.items() <= row.items()]
            for wanted in (about | how, about | other | other_how)
        ]
        if all(groups):
            found = compared(*groups)
            tests = groups[0][0]["tests"]
            lines.append([tests, str(about["labelled"]), name, str(found["draws"]), *_cells(found)])
    return markdown_table(["tests", "labelled", "contrast", "draws", "difference", "p"], lines) if lines else ""


def _fine_tuned(tuning: Tuning) -> dict[str, Any]:
    return {"evaluation": "finetune"} | asdict(tuning)


def _cells(found: dict[str, Any]) -> list[str]:
    p = "n/a" if found["p"] is None else f"{found['p']:.3f}"
    return ["{difference:+.3f} ({low:+.3f} to {high:+.3f})".format(**found), p]
