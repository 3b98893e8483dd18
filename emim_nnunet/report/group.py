"""The group page of an SSL stage: its cases, what they lack, and how well each is reconstructed."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from emim_nnunet.datasets.dataset import PreprocessedDataset
from emim_nnunet.datasets.raw import missing_channels
from emim_nnunet.report import figures
from emim_nnunet.report.cases import cards_of, choose, find_data, look_at, raw_folder, remarks_on
from emim_nnunet.report.content import Page, Section
from emim_nnunet.report.files import Names, number
from emim_nnunet.report.stage_files import StageFiles


def add_cases(stage: StageFiles, page: Page, names: Names) -> None:
    """Add the group page of a stage, and what its data tell, where they are on this machine.

    Args:
        stage: What the stage left.
        page: Its page.
        names: How cases are called.

    Raises:
        UserError: The preprocessed cases are not there.
    """
    if not stage.plans or not stage.configuration:
        return
    data = find_data(stage.folder, stage.plans, stage.dataset_json, stage.configuration)
    held_out, learnt = set(stage.held_out), set(stage.learnt)
    looks, unreadable = look_at(data, choose(data, stage.held_out, stage.learnt))
    names.know(data.cases)
    labelled = set(data.labelled_ids)
    roles = {
        case: ("held out" if case in held_out else "learnt from" if case in learnt else "left out")
        + (", with label" if case in labelled else ", without label")
        for case in data.cases
    }
    for place, fact in enumerate(page.facts):
        if fact[0] == "learnt from":
            without = len(learnt - labelled)
            page.facts[place] = ("learnt from", f"{len(learnt)} cases, {without} of them without label")
            page.facts.insert(place + 1, ("data set", f"{len(labelled)} labelled, {len(data.unlabelled)} unlabelled"))
            break
    page.facts.insert(3, ("lacking a channel", _lacking(data, stage.channels)))
    bodies = sum(look.has_body_file for look in looks)
    mask = (
        f"found by preparation in {bodies} of {len(looks)} cases looked at" if bodies else "where the images are not 0"
    )
    page.facts.insert(4, ("body mask", mask))
    page.problems += [f"{names.case(case)}: the preprocessed files cannot be read" for case in unreadable]
    skills = case_skills(stage.case_scores)
    section = Section("Cases")
    section.cards = cards_of(looks, stage.channels, roles, skills, names)
    out = {case for case, (_, lines) in remarks_on(looks, stage.channels, skills).items() if lines}
    section.figures.append(
        figures.ranges(
            [(look.case.identifier, look.percentiles, look.case.identifier in out) for look in looks], stage.channels
        )
    )
    if skills:
        held = [skill for case, skill in skills.items() if case in held_out]
        groups = {"held out": held} if held else {"measured on": list(skills.values())}
        section.figures.append(figures.dots(groups, "skill in the body", "A dot per case; line: median.", None))
    total = len(data.cases)
    section.text.append(
        f"{len(looks)} of {total} cases, those that stand out first. {len(out)} stand out: by more than 3.5 of the modified "
        f"z-score (Iglewicz and Hoaglin 1993) in body, size, intensities or skill. That is a hint to look, not an error."
    )
    page.add(section)


def _lacking(data: PreprocessedDataset, channels: Sequence[str]) -> str:
    raw = raw_folder(data)
    if raw is None:
        return "not known here: the raw data set is not there"
    lacking = missing_channels(raw)
    counts = {name: sum(name in missing for missing in lacking.values()) for name in channels}
    return ", ".join(f"{name}: {count} cases" for name, count in counts.items() if count) or "none"


def case_skills(rows: Sequence[dict[str, str]]) -> dict[str, float]:
    """Case -> skill in the body over all its modalities, of the rows of ``case_scores.csv``."""
    found = {row["case"]: number(row.get("foreground_skill")) for row in rows if row.get("modality") == "all"}
    return {case: skill for case, skill in found.items() if isfinite(skill)}
