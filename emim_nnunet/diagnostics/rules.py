"""The rules that turn measurements into a verdict.

The thresholds were calibrated on real data and on fresh phantom seeds; documentation/explanation/collapse.md says how, and
``benchmarks/collapse/calibrate.py`` repeats it. A verdict depends only on the history of a run, so it can be repeated from a
report. A finding disappears when its reason does, because plateaus can end by themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite, isnan, nan
from typing import Any

LEVELS = ("ok", "note", "warning", "error")
REMEDY = "Convert again with --background_to_zero or --mask of emim_convert"
RANK_IS_NOT_QUALITY = "rank is a diagnostic, not a quality: an untrained network has a high one"


@dataclass(frozen=True)
class Thresholds:
    """The thresholds of the rules.

    Attributes:
        no_skill: Foreground skill below which a reconstruction counts as no better than a constant.
        patience: Number of evaluations in a row with ``no_skill`` after which the rule fires.
        patience_steps: Number of training steps that ``no_skill`` must last too, and that must have passed since the warm-up
            before a dropping rank is reported: three epochs of nnU-Net's 250 steps. Epochs of a few steps tell nothing yet.
        constant_output: Ratio of standard deviations, prediction over target, below which an output without skill is called
            constant.
        low_skill: Foreground skill below which there is a note.
        low_modality_skill: Foreground skill of a single modality below which there is a note.
        within: Variance of the prediction between fully masked cells of a sample, over that of the targets, below which the
            cells count as alike.
        outline_skill: Skill over a constant above which a network that is no better than the outline counts as having learnt
            only the outline.
        rank_drop: Share of the stage's best effective rank after the warm-up below which its rank counts as dropping.
        dead_share: Share of dead channels in a stage above which there is an error.
        variation: Variance over mean squared norm below which features count as constant.
        top_share: Share of the variance in the first direction above which there is a note.
        participation_ratio: Participation ratio below which there is a note, in stages of at least ``wide`` channels.
        wide: Least number of channels of a stage to which ``participation_ratio`` applies.
    """

    no_skill: float = 0.02
    patience: int = 3
    patience_steps: int = 750
    constant_output: float = 0.15
    low_skill: float = 0.05
    low_modality_skill: float = 0.02
    within: float = 0.005
    outline_skill: float = 0.3
    rank_drop: float = 0.5
    dead_share: float = 0.5
    variation: float = 1e-8
    top_share: float = 0.95
    participation_ratio: float = 1.5
    wide: int = 32


@dataclass(frozen=True)
class Finding:
    """A rule that fired, and what it found.

    Attributes:
        rule: The name of the rule, which stays the same over versions.
        level: ``note``, ``warning`` or ``error``.
        scope: What the finding is about: ``reconstruction``, the name of a modality, or ``stage N``.
        message: A text for people: what was measured and what to do.
    """

    rule: str
    level: str
    scope: str
    message: str


@dataclass(frozen=True)
class Verdict:
    """The result of all rules together.

    Attributes:
        level: The highest level of the findings; ``ok`` without any; ``insufficient`` when there was too little data for every
            rule.
        findings: What the rules found, highest level first.
    """

    level: str
    findings: tuple[Finding, ...]

    @property
    def line(self) -> str:
        """One line for the log: the level and the messages of its findings."""
        worst = [finding for finding in self.findings if finding.level == self.level]
        return self.level if not worst else f"{self.level.upper()}: " + "; ".join(finding.message for finding in worst)

    def to_dict(self) -> dict[str, Any]:
        """The verdict as plain values, for JSON and checkpoints."""
        return {"level": self.level, "findings": [asdict(finding) for finding in self.findings]}


def judge(
    history: Sequence[Mapping[str, Any]],
    *,
    warmup_epochs: int = 0,
    norm_pix: bool = False,
    thresholds: Thresholds | None = None,
) -> Verdict:
    """Apply all rules to a run.

    Args:
        history: Measurements of :meth:`CollapseProbe.measure` in order, each with ``epoch`` = number of epochs done (0 =
            untrained) and ``step`` = number of training steps done; without ``step`` the rules count evaluations alone. The
            last one is judged; earlier ones matter for rules about several evaluations.
        warmup_epochs: Evaluations up to this epoch do not count for these rules.
        norm_pix: Whether targets were normalised per cell, which is a known cause of collapse.
        thresholds: The thresholds of the rules; None = the calibrated ones.

    Returns:
        The verdict.

    Raises:
        ValueError: The history is empty.
    """
    if not history:
        raise ValueError("a verdict needs at least one measurement")
    numbers = thresholds or Thresholds()
    now = history[-1]
    settled = [m for m in history if m["epoch"] > warmup_epochs]
    findings = [
        *_broken(now, numbers),
        *_empty(now),
        *_reconstruction(history, settled, numbers, norm_pix),
        *_ranks(history, settled, numbers),
    ]
    findings.sort(key=lambda finding: -LEVELS.index(finding.level))
    if findings:
        return Verdict(findings[0].level, tuple(findings))
    judged = now["reconstruction"] is not None or any(stage["status"] == "ok" for stage in now["stages"])
    return Verdict("ok" if judged else "insufficient", ())


def _broken(now: Mapping[str, Any], numbers: Thresholds) -> Iterator[Finding]:
    """Findings about NaN, constant features and dead channels."""
    scores = now["reconstruction"]
    if scores is not None and scores["all"]["count"] > 0 and not isfinite(scores["all"]["loss"]):
        yield Finding("non_finite", "error", "reconstruction", "the reconstruction holds NaN or Inf")
    for number, stage in enumerate(now["stages"]):
        scope = f"stage {number}"
        if stage["count"] < 2:
            continue
        if not isfinite(stage["trace"]):
            yield Finding("non_finite", "error", scope, f"the features of {scope} hold NaN or Inf")
        elif stage["variation"] < numbers.variation:
            yield Finding("constant_features", "error", scope, f"the features of {scope} are the same everywhere")
        elif stage["dead_channels"] > numbers.dead_share * stage["channels"]:
            dead = f"{stage['dead_channels']} of {stage['channels']} channels of {scope} are dead"
            yield Finding("dead_channels", "error", scope, dead)


def _empty(now: Mapping[str, Any]) -> Iterator[Finding]:
    """Findings about probe crops that hold nothing to predict, so that no skill is defined."""
    scores = now["reconstruction"] or {}
    empty = [
        name
        for name, values in scores.items()
        if values["count"] > 0 and isfinite(values["loss"]) and isnan(values["foreground_skill"])
    ]
    why = "they hardly vary, so there is no skill to measure. A background that is not 0? " + REMEDY
    if "all" in empty:
        yield Finding("empty_probe", "warning", "reconstruction", f"the probe crops are empty: {why}")
        return
    for name in empty:
        yield Finding("empty_probe", "warning", name, f"the probe crops are empty in modality {name}: {why}")


def _steps(history: Sequence[Mapping[str, Any]], last: Sequence[Mapping[str, Any]], numbers: Thresholds) -> int:
    """Training steps over which the ``last`` measurements were taken; ``patience_steps``, which suffices, where unknown."""
    before = history[-len(last) - 1] if len(last) < len(history) else {"step": 0}
    first, final = (measurement.get("step") for measurement in (before, history[-1]))
    return numbers.patience_steps if first is None or final is None else final - first


def _lasting(
    history: Sequence[Mapping[str, Any]],
    settled: Sequence[Mapping[str, Any]],
    numbers: Thresholds,
    key: str,
    threshold: float,
) -> Sequence[Mapping[str, Any]]:
    """The last evaluations in a row in which a score was below a threshold; none where they are not enough to be said.

    A score that an earlier version did not measure is not below it.
    """
    well = [not m["reconstruction"]["all"].get(key, nan) < threshold for m in settled]
    lasting = settled[max((i + 1 for i, good in enumerate(well) if good), default=0) :]
    enough = len(lasting) >= numbers.patience and _steps(history, lasting, numbers) >= numbers.patience_steps
    return lasting if enough else []


def _reconstruction(
    history: Sequence[Mapping[str, Any]], settled: Sequence[Mapping[str, Any]], numbers: Thresholds, norm_pix: bool
) -> Iterator[Finding]:
    """Findings about complete collapse, and about states that look like it."""
    now = history[-1]
    if now["reconstruction"] is None:
        return
    scores = now["reconstruction"]["all"]
    skill, std_ratio = scores["foreground_skill"], scores["std_ratio"]
    if scores["skill"] > numbers.outline_skill and scores["outline_skill"] <= 0:
        yield Finding(
            "outline_only",
            "warning",
            "reconstruction",
            f"learned the outline only (skill {scores['skill']:.2f} over a constant, {scores['outline_skill']:.2f} over a "
            f"prediction that knows where the body ends): set foreground_only, normalise inside the body, and "
            f"preprocess without --no_body",
        )
    lasting = _lasting(history, settled, numbers, "foreground_skill", numbers.no_skill)
    if lasting:
        constant = ", constant output" if std_ratio < numbers.constant_output else ""
        yield Finding(
            "no_skill",
            "warning",
            "reconstruction",
            f"no skill over a constant (plateau or collapse{constant}): {skill:.3f}, below {numbers.no_skill} for "
            f"{len(lasting)} epochs",
        )
    elif settled and skill < numbers.low_skill:
        yield Finding("low_skill", "note", "reconstruction", f"little skill over a constant so far: {skill:.3f}")
    alike = _lasting(history, settled, numbers, "within", numbers.within)
    if alike and not isnan(skill):
        yield Finding(
            "cells_alike",
            "warning",
            "reconstruction",
            f"fully masked cells of a sample get nearly the same content (their variance is {scores['within']:.4f} of that of "
            f"the targets, below {numbers.within} for {len(alike)} epochs): the output does not depend on the place",
        )
    if settled:
        for name, values in now["reconstruction"].items():
            if name != "all" and values["foreground_skill"] < numbers.low_modality_skill <= skill:
                message = f"no skill in modality {name}: {values['foreground_skill']:.3f}"
                yield Finding("modality_without_skill", "note", name, message)
        if norm_pix and skill < numbers.low_skill:
            yield Finding("norm_pix", "note", "reconstruction", "targets are normalised per cell: try norm_pix false")


def _ranks(
    history: Sequence[Mapping[str, Any]], settled: Sequence[Mapping[str, Any]], numbers: Thresholds
) -> Iterator[Finding]:
    """Findings about dimensional collapse, only in stages with enough rows."""
    now = history[-1]
    trained = _steps(history, settled, numbers) >= numbers.patience_steps
    for number, stage in enumerate(now["stages"]):
        scope = f"stage {number}"
        if stage["status"] != "ok" or isnan(stage["effective_rank"]):
            continue
        best = max((m["stages"][number]["effective_rank"] for m in settled), default=0.0)
        rank = stage["effective_rank"]
        if trained and rank < numbers.rank_drop * best:
            message = (
                f"rank of {scope} dropping: {rank:.1f} of {stage['channels']}, was {best:.1f} ({RANK_IS_NOT_QUALITY})"
            )
            yield Finding("rank_dropping", "warning", scope, message)
        narrow = stage["channels"] >= numbers.wide and stage["participation_ratio"] < numbers.participation_ratio
        if stage["top_share"] > numbers.top_share or narrow:
            message = (
                f"{stage['top_share']:.0%} of the variance of {scope} lies in one direction ({RANK_IS_NOT_QUALITY})"
            )
            yield Finding("one_direction", "note", scope, message)
