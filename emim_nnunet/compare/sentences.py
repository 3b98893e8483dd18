"""What a comparison found, in plain sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from emim_nnunet.compare.arms import SCRATCH
from emim_nnunet.compare.protocol import LINEAR_FIRST, decisive
from emim_nnunet.errors import counted
from emim_nnunet.storage.figures import rounded


def conclusions(results: dict[str, Any]) -> list[str]:
    """Say for each pretrained arm what it is worth, and the smallest effect that the run could have seen.

    Args:
        results: The results, with ``summary``, ``worth``, ``power`` and ``files``, the arms that are given encoders.

    Returns:
        Some sentences per arm, of the evaluation that is :func:`.decisive` with the smallest number of labelled cases; none
        where scratch was not run, or nothing was fine-tuned.
    """
    smallest = min(results["labelled"])
    evaluation = decisive({row["evaluation"] for row in results["summary"]})
    sentences = []
    for row in results["summary"]:
        if (row["evaluation"], row["labelled"]) != (evaluation, smallest) or "difference" not in row:
            continue
        worth = next((w for w in results["worth"] if (w["arm"], w["labelled"]) == (row["arm"], smallest)), None)
        said = _gain(row) if worth is None else _equivalent(worth, results["labelled"])
        power = next(
            (
                p
                for p in results["power"]
                if (p["evaluation"], p["labelled"], p["arm"]) == (evaluation, smallest, row["arm"])
            ),
            None,
        )
        head = "Both have a fitted linear head. " if evaluation == LINEAR_FIRST else ""
        encoders = "" if power is None or row["arm"] in results["files"] else _encoders(power["by_seed"])
        sentences.append(f"{said} {head}{_smallest(power)}{encoders}")
    return sentences


def stopping(until: dict[str, Any], most: int) -> str:
    """Say why the draws ended.

    Args:
        until: The decision: ``arm``, ``labelled``, ``draws``, ``mean``, ``low``, ``high``, ``reason``, ``difference``.
        most: The largest number of draws.
    """
    low, high = (f"{end:+.3f}" if abs(end) < float("inf") else "unbounded" for end in (until["low"], until["high"]))
    pair = f"{until['arm']} minus {SCRATCH} with {_cases(until['labelled'])}"
    interval = f"{pair}: {until['mean']:+.3f}, 95 % interval that holds after every draw {low} to {high}"
    if until["reason"] is None:
        return f"All {most} draws were run without a decision (--until {until['difference']:g}). {interval}."
    return (
        f"Ended after {until['draws']} of at most {most} draws, because {until['reason']} (--until {until['difference']:g}). "
        f"{interval}. The other intervals of this page do not account for ending early."
    )


def number_text(value: float, counts: Sequence[int]) -> str:
    """A number of labelled cases; one outside those that were tried is only known to lie there."""
    if value != value:
        return "n/a"
    if value < counts[0]:
        return f"fewer than {counts[0]}"
    return f"more than {counts[-1]}" if value > counts[-1] else f"{value:.1f}"


def _equivalent(worth: dict[str, Any], counts: Sequence[int]) -> str:
    number, low, high = (number_text(worth[key], counts) for key in ("worth", "low", "high"))
    arm, own = worth["arm"], worth["labelled"]
    cases = _cases(own)
    if worth["low"] <= own <= worth["high"]:
        return (
            f"On these data no difference was seen between pretraining with {arm} and training from scratch: with {arm}, "
            f"{cases} {'are' if own > 1 else 'is'} worth {number} from scratch (95 % interval {low} to {high}, which contains "
            f"{own})."
        )
    return (
        f"On these data, pretraining with {arm} and {cases} is worth about as much as training from scratch with {number} "
        f"labelled cases (95 % interval {low} to {high})."
    )


def _cases(number: int) -> str:
    return counted(number, "labelled case")


def _gain(row: dict[str, Any]) -> str:
    span = f"95 % interval {row['difference_low']:+.3f} to {row['difference_high']:+.3f}"
    return (
        f"On these data, pretraining with {row['arm']} changes the Dice with {_cases(row['labelled'])} by "
        f"{row['difference']:+.3f} ({span}); several numbers after --labelled say how many labelled cases that is worth."
    )


def _encoders(by_seed: dict[int, float]) -> str:
    """What the intervals do not know: encoders of one method differ. Nothing where all seeds have the same sign."""
    found = [value for value in by_seed.values() if value == value]
    if len(found) == 1:
        return " One encoder was pretrained, and the interval knows of no other: give several with --seeds."
    if min(found) < 0 < max(found):
        return f" By seed of the encoder: {', '.join(f'{value:+.3f}' for value in found)}."
    return ""


def _smallest(power: dict[str, Any] | None) -> str:
    if power is None:
        return "One draw cannot tell a difference from chance: give more with --draws."
    return (
        f"The smallest difference of Dice that this run could have seen is {rounded(power['detectable'])} (power 80 %, "
        f"level 5 %, paired t-test over {counted(power['draws'], 'draw')})."
    )
