"""The methods beside each other: part ``others``, on a fold of the second hypothesis, with the head that it names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from measure.common import markdown_table

from emim_nnunet.compare.arms import SCRATCH
from real.data import COHORT
from real.plan import BEST_SCRATCH, PARTS, PRIMARY, PRIMARY_ARM
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
    arms, draws = (PRIMARY_ARM, *part.arms), range(part.draws)
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


def _cells(found: dict[str, Any]) -> list[str]:
    p = "n/a" if found["p"] is None else f"{found['p']:.3f}"
    return ["{difference:+.3f} ({low:+.3f} to {high:+.3f})".format(**found), p]
