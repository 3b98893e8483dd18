"""Tables and pictures from the results of finished jobs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from measure.common import markdown_table, write_results

from emim_nnunet.compare.arms import SCRATCH
from emim_nnunet.storage.figures import legend_beside, save_figure
from emim_nnunet.storage.files import read_json, write_json
from real.arms import WITHOUT_BODY
from real.curve import curve, curve_table, plot_curve
from real.data import BRATS, DRAWN, FINAL, PATIENTS, TEST_SITE
from real.hypotheses import HYPOTHESES, SEVENTH, control_table, encoder_table, fold_table, over_folds, rotated
from real.missing import subset_table
from real.others import contrast_table, others_table
from real.part import FIRST_ROWS, STEPS, UNET, Tuning
from real.plan import PARTS, PRIMARY, PRIMARY_ARM, PRIMARY_LABELLED
from real.scores import compared, decimal, end_dice

GATE = 0.1  # by which MIM's skill must exceed that of depth, or there is nothing to compare
OTHERS = {DRAWN: "drawn brains", BRATS: "BraTS"}  # beginning of the names -> data
TUNING = ("arm", *Tuning.__dataclass_fields__)  # what trainings of a table have in common
CURVES = ("emim_curve", "curve")
LADDER = ("constant", "sample_constant", "outline", "depth")


def read_results(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What finished jobs left: SSL stages, and a row per training with its draw."""
    stages = [read_json(file) for file in sorted((folder / "pretrain").glob("*.json"))]
    rows = []
    for file in sorted((folder / "draws").glob("*.json")):
        content = read_json(file)
        numbers = re.fullmatch(r"fold(\d+)_labelled\d+_draw(\d+)", file.stem)
        assert numbers is not None
        fold, draw = (int(number) for number in numbers.groups())
        about = {"labelled": len(content["train"]), "draw": draw, "patients": content["test"]}
        for row in content["rows"]:
            whole = about | FIRST_ROWS | {"learnt": _learnt(row["stage"])} | row
            rows.append(whole | {"tests": _tests(fold, whole)})
    return stages, rows


def _tests(fold: int, row: dict[str, Any]) -> str:
    """Who tests in a row: sites, or data that are not these patients, and what else differs: modalities, network."""
    name = next((words for start, words in OTHERS.items() if row["patients"][0].startswith(start)), PATIENTS[fold][1])
    if row["channels"] != FIRST_ROWS["channels"]:
        name = f"{row['channels']} of {name}"
    return name if row["configuration"] == FIRST_ROWS["configuration"] else f"{name}, planned network"


def _learnt(stage: str) -> str:
    """The patients that an SSL stage learnt from; nothing for an encoder that is not pretrained."""
    found = re.search(r"(?:_from_([a-z]+))?_fold(\d+)_", stage)
    if found is None:
        return ""
    return found[1] or PATIENTS[int(found[2])][0]


def skill_over(stage: dict[str, Any], baseline: str) -> float:
    """Skill of a baseline over the constant, on the probe set of a stage."""
    losses = stage["collapse"][0]["baselines"]["all"]
    return 1 - losses[baseline] / losses["constant"]


def gate_table(stages: Iterable[dict[str, Any]]) -> str:
    """The ladder on the probe set: what is there to be learnt, and who learnt it."""
    rows = []
    for stage in stages:
        scores = stage["collapse"][-1]["reconstruction"]
        if scores is None:
            continue
        skills = [skill_over(stage, baseline) for baseline in LADDER[1:]] + [scores["all"]["skill"]]
        rules = ", ".join(finding["rule"] for finding in stage["verdict"]["findings"]) or "none"
        cells = [f"{skill:.3f}" for skill in skills] + [
            decimal(scores["all"]["foreground_skill"]),
            decimal(scores["all"]["within"]),
        ]
        rows.append([_name(stage), str(stage["steps"]), *cells, rules])
    header = [
        "SSL stage",
        "steps",
        "sample constant",
        "outline",
        "depth",
        "network",
        "network in the body",
        "within",
        "findings",
    ]
    return markdown_table(header, rows)


def gate_is_passed(stages: Iterable[dict[str, Any]]) -> bool | None:
    """Whether plain MIM exceeds depth by :data:`GATE`; None where it was not run."""
    skills = [
        s["collapse"][-1]["reconstruction"]["all"]["skill"] - skill_over(s, "depth")
        for s in stages
        if s["arm"] == "mim"
    ]
    return max(skills) >= GATE if skills else None


def rank_table(stages: Sequence[dict[str, Any]]) -> str:
    """Effective rank of each encoder stage, untrained and along the run."""
    if not stages:
        return ""
    first = stages[0]["collapse"][0]["stages"]
    rows = [["untrained", "0", *(f"{s['effective_rank']:.1f} of {s['channels']}" for s in first)]]
    for stage in stages:
        history = stage["collapse"]
        for measurement in (m for m in history[1:] if m["epoch"] in (2, 8) or m is history[-1]):
            ranks = [decimal(s["effective_rank"], 1) for s in measurement["stages"]]
            rows.append([_name(stage), str(measurement["step"]), *ranks])
    return markdown_table(["SSL stage", "steps", *(f"stage {i}" for i in range(len(first)))], rows)


def write_spectra(stages: Sequence[dict[str, Any]], file: Path) -> None:
    """Singular values of the features of cells in the body, of the deepest three encoder stages."""
    numbers = range(len(stages[0]["collapse"][0]["stages"]))[-3:]
    figure = Figure(figsize=(4.2 * len(numbers), 3.6), layout="constrained")
    for place, number in enumerate(numbers):
        axes = figure.add_subplot(1, len(numbers), place + 1)
        curves = {"untrained": stages[0]["collapse"][0]}
        curves |= {f"{_name(stage)}, {stage['steps']:,} steps": stage["collapse"][-1] for stage in stages}
        for name, measurement in curves.items():
            values = np.sqrt(np.array(measurement["stages"][number]["spectrum"], dtype=float))
            style = {"color": "black", "linestyle": "--"} if name == "untrained" else {}
            axes.semilogy(values / values.max(), label=name, linewidth=1.2, **style)
        axes.set_title(f"stage {number}", loc="left", fontsize=10)
        axes.set_xlabel("direction")
        if place == 0:
            axes.set_ylabel("singular value over the largest")
        if place == len(numbers) - 1:
            legend_beside(axes)
    save_figure(figure, file)


def score_table(rows: Sequence[dict[str, Any]]) -> str:
    """Scores of all arms, and their paired difference from scratch at its own best rate."""
    lines = []
    for here in _alike(rows, "tests", "evaluation", "labelled"):
        groups = _alike(here, "learnt", "epoch", *TUNING)
        scratch = reference(groups)
        for group in groups:
            first = group[0]
            peak = "" if first["rate"] is None else f"{first['rate']:g}"
            peak += "" if first["steps"] in (0, STEPS) else f", {first['steps']} steps"
            peak += "" if first["encoder_factor"] == 1 else f", encoder {first['encoder_factor']:g} of it"
            peak += "" if first["head"] == UNET or first["rate"] is None else f", {first['head']} head"
            peak += "" if first["p_drop"] == 0 else f", modalities dropped with {first['p_drop']:g}"
            peak += "" if first["frozen"] == 0 else f", encoder frozen for {first['frozen']:g} of the steps"
            about = [str(first[key]) for key in ("tests", "evaluation", "labelled", "arm", "learnt", "epoch")]
            lines.append([*about, peak, *_scores(group, scratch)])
    header = ["tests", "evaluation", "labelled", "arm", "learnt from", "epochs", "rate", "draws"]
    header += ["Dice at 1/8, 1/4, 1/2, end", "cross-entropy", "average precision", "mm"]
    return markdown_table([*header, "minus scratch", "95 %", "Wilcoxon p", "steps ratio"], lines)


def _alike(rows: Iterable[dict[str, Any]], *keys: str) -> list[list[dict[str, Any]]]:
    """Rows that agree in ``keys``, together."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return list(groups.values())


def reference(groups: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Scratch at its best, head and rate, but for trainings with more than :data:`STEPS`, which have the computing of
    pretraining too.

    Trainings are compared in the draws that they share; one that was tried in less than half of the draws is left out.
    """
    scratch = [group for group in groups if group[0]["arm"] == SCRATCH and group[0]["steps"] <= STEPS]
    most = max(len(group) for group in scratch)
    tried = [group for group in scratch if 2 * len(group) >= most]
    shared = set.intersection(*({row["draw"] for row in group} for group in tried))
    return max(tried, key=lambda group: end_dice([row for row in group if row["draw"] in shared]).mean())


def primary(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The hypothesis of HYPOTHESIS.md, as :func:`compared` tells it; None before its draws."""
    here = [row for row in rows if row["tests"] == TEST_SITE and row["evaluation"] == "finetune"]
    groups = _alike((row for row in here if row["labelled"] == PRIMARY_LABELLED), *TUNING)
    wanted = {"arm": PRIMARY_ARM} | asdict(PRIMARY)
    arms = [group for group in groups if wanted.items() <= group[0].items()]
    if not arms:
        return None
    return {"arm": PRIMARY_ARM, "labelled": PRIMARY_LABELLED} | compared(arms[0], reference(groups))


def _scores(group: Sequence[dict[str, Any]], scratch: Sequence[dict[str, Any]]) -> list[str]:
    course = np.array([[np.mean(dice) for dice in row["dice"].values()] for row in group]).mean(0)
    entropy = np.mean([list(row["cross_entropy"].values())[-1] for row in group])
    apart = [value for row in group for value in row["surface_distance"] if value is not None]
    precision = np.mean([row["average_precision"] for row in group])
    cells = [str(len(group)), " ".join(f"{dice:.3f}" for dice in course), f"{entropy:.4f}", f"{precision:.3f}"]
    cells += [f"{np.mean(apart):.1f}" if apart else "n/a"]
    if group is scratch or not {row["draw"] for row in group} & {row["draw"] for row in scratch}:
        return [*cells, "", "", "", ""]
    found = compared(group, scratch)
    ratio = found["steps_ratio"]
    difference = [f"{found['difference']:+.3f}", f"{found['low']:+.3f} to {found['high']:+.3f}", decimal(found["p"])]
    return [*cells, *difference, "" if ratio is None else f"{ratio:g}"]


def _name(stage: dict[str, Any]) -> str:
    seed = f" (seed {stage['seed']})" if stage["seed"] else ""
    return f"{stage['arm']}{seed}, {PATIENTS[stage['fold']][0]}"


def write_report(folder: Path, out: Path) -> str:
    """Write OUT and, beside it, tables and picture.

    Args:
        folder: The folder of the results of jobs.
        out: The JSON file.

    Returns:
        The tables.
    """
    stages, rows = read_results(folder)
    passed = gate_is_passed(stages)
    parts = []
    if stages:
        gate = "" if passed is None else f"\nMIM is {'' if passed else 'NOT '}at least {GATE} above depth.\n"
        parts += ["## What was learnt (skill over the constant)\n", gate_table(stages) + gate]
        parts += ["## Effective rank\n", rank_table(stages)]
        shown = [s for s in stages if s["fold"] == FINAL and not s["seed"] and not s["arm"].endswith(WITHOUT_BODY)]
        shown = [
            s for s in shown if s["steps"] == max(o["steps"] for o in shown if o["arm"] == s["arm"])
        ]  # the longest
        if shown:
            write_spectra(shown, out.with_name(f"{out.stem}_spectra.png"))
    hypothesis = primary(rows)
    if hypothesis is not None:
        write_json(folder / "primary.json", hypothesis, indent=1)
    for number, names in HYPOTHESES.items():
        found = over_folds(rows, names)
        if found is not None:
            write_json(folder / f"{names[0][:-1]}.json", found, indent=1)
            parts += [f"## The {number} hypothesis (all but the first row explore)\n", control_table(rows, names)]
            parts += ["Its encoders:\n", encoder_table(rows, names)]
    seventh = over_folds(rows, *SEVENTH)
    if seventh is not None:
        write_json(folder / "emim_minus_mim.json", seventh, indent=1)
        parts += ["## The seventh hypothesis (the first row; the rest explores)\n", fold_table(rows, *SEVENTH)]
    if over_folds(rows, ("unseen_site",)) is not None:
        parts += ["## The unseen hospital again (explores)\n", control_table(rows, ("unseen_site",))]
    for name in CURVES:
        efficiency = curve(rows, PARTS[name])
        if efficiency:
            parts += [f"## Labelled patients: {efficiency[0]['arm']} (explores)\n", curve_table(efficiency)]
            plot_curve(efficiency, out.with_name(f"{out.stem}_{name}.png"))
    methods = others_table(rows)
    if methods:
        parts += ["## The methods compared, all at 3e-4 (explores)\n", methods]
    contrasts = contrast_table(rows)
    if contrasts:
        parts += ["## One thing changed (explores)\n", contrasts]
    if rows:
        parts += ["## Segmentation\n", score_table([row for row in rotated(rows) if not row["subsets"]])]
        parts += ["## Missing modalities\n", subset_table([row for row in rows if row["subsets"]])]
    text = "\n".join(parts)
    write_results(
        out, {"stages": len(stages), "trainings": len(rows), "gate_passed": passed}, "Pretraining on real MRI", text
    )
    return text
