"""The page of an SSL stage, or of what ``emim_diagnose`` measured, from the files that they leave."""

from __future__ import annotations

from pathlib import Path

from emim_nnunet.errors import counted
from emim_nnunet.report import figures
from emim_nnunet.report.content import Page, Section, Table
from emim_nnunet.report.files import Names, number, part_of, problems_in, shown
from emim_nnunet.report.group import add_cases
from emim_nnunet.report.pictures import flickers_of, reconstruction_files
from emim_nnunet.report.stage_files import StageFiles, read_stage
from emim_nnunet.report.texts import describe_settings, hours, methods_section, said_verdict

UNHEALTHY = ("warning", "error")
MAX_STAGES = 8


def stage_page(folder: Path, names: Names, *, diagnosis: bool = False) -> Page:
    """The page of an SSL stage.

    Args:
        folder: Folder of the stage, or of what ``emim_diagnose`` wrote.
        names: How cases are called.
        diagnosis: Whether it is of ``emim_diagnose``.
    """
    page = Page("Diagnosis" if diagnosis else "Pretraining", folder.name)
    stage = read_stage(folder, page)
    if diagnosis:
        page.absent.clear()  # it leaves a report, and nothing of a training
    names.know([*stage.held_out, *stage.learnt, *stage.left_out, *stage.about.get("probe_cases", [])])
    method = str(stage.checkpoint.get("method") or stage.about.get("method") or stage.about.get("kind") or "encoder")
    dataset = stage.plans.get("dataset_name") or stage.about.get("dataset") or ""
    fold = stage.checkpoint.get("fold", stage.about.get("fold", ""))
    where = [str(dataset), stage.configuration, f"fold {fold}" if fold != "" else "", stage.about.get("checkpoint", "")]
    page.name = " · ".join(part for part in [method, *map(names.text, where)] if part)
    if stage.report:
        page.level, page.verdict, page.reasons = said_verdict(stage.report, names)
    else:
        page.absent.append("no verdict: the collapse monitor left no report")
    with part_of(page, "summary"):
        page.facts = _facts(stage)
    for what, add in (
        ("curves", _curves),
        ("reconstructions", _reconstructions),
        ("error per modality", _errors),
        ("spectra", _spectra),
        ("cases", add_cases),
        ("methods text", _methods),
        ("settings", _settings),
    ):
        with part_of(page, what):
            add(stage, page, names)
    page.problems += _problems(stage, names)  # when the ids of all cases are known
    return page


def _facts(stage: StageFiles) -> list[tuple[str, str]]:
    learnt, held_out = len(stage.learnt), len(stage.held_out)
    facts = []
    if learnt:
        unlabelled = max(0, learnt + held_out - int(stage.dataset_json.get("numTraining", learnt + held_out)))
        facts.append(("learnt from", f"{counted(learnt, 'case')}, {unlabelled} of them without label"))
    probe = held_out or len(stage.about.get("probe_cases", []))
    if probe:
        which = counted(probe, "held-out case") if held_out else f"{counted(probe, 'case')} learnt from too"
        facts.append(("measured on", which))
    facts.append(("channels", ", ".join(stage.channels)))
    if stage.log:
        planned = (stage.checkpoint.get("emim") or {}).get("num_epochs")
        state = "" if stage.checkpoint.get("finished", True) else ", not finished"
        facts.append(("epochs", f"{len(stage.log)}{f' of {planned}' if planned else ''}{state}"))
        facts.append(("time", hours(sum(number(row.get("seconds")) for row in stage.log))))
    scores = ((stage.report.get("now") or {}).get("reconstruction") or {}).get("all")
    if scores:
        facts.append(("skill in the body", shown(scores.get("foreground_skill"))))
    versions = stage.checkpoint.get("versions") or stage.about.get("versions") or {}
    if versions:
        facts.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return facts


def _problems(stage: StageFiles, names: Names) -> list[str]:
    problems = []
    skipped = sum(number(row.get("skipped_steps")) for row in stage.log)
    if skipped > 0:
        problems.append(f"{skipped:.0f} steps were skipped, because loss or gradient was not finite")
    kept = len(list((stage.folder / "non_finite").glob("*")))
    if kept:
        problems.append(f"{kept} such steps are kept in the folder non_finite")
    damaged = [file.name for file in stage.folder.glob("*.damaged")]
    problems += [f"{name} is a checkpoint that could not be read" for name in damaged]
    return problems + problems_in(stage.lines, names)


def _curves(stage: StageFiles, page: Page, names: Names) -> None:
    section = Section("Training")
    pooled = stage.measured("all", "loss")
    ladder = {
        row["kind"]: number(row["loss"])
        for row in stage.collapse
        if row.get("name") == "all" and row.get("kind") in figures.LADDER
    }
    warned = sorted({number(row["epoch"]) for row in stage.collapse if row.get("verdict") in UNHEALTHY})
    if len(pooled) > 1:
        epochs, losses = (list(column) for column in zip(*pooled, strict=True))
        section.figures.append(figures.reconstruction_loss(epochs, losses, ladder, warned))
        curves = {}
        for name in [*stage.channels, "all"]:
            values = [value for _, value in stage.measured(name, "foreground_skill")]
            if len(values) == len(epochs):
                curves[name] = values
        section.figures.append(figures.skill(epochs, curves, warned))
    if stage.log:
        epochs = [number(row["epoch"]) + 1 for row in stage.log]
        shown_terms = [
            key.removeprefix("train/")
            for key in stage.log[-1]
            if key.startswith("train/") and not key.endswith("fraction") and "stage" not in key
        ]
        curves = {}
        for term in shown_terms:
            curves[term] = [number(row.get(f"train/{term}")) for row in stage.log]
            curves[f"{term}, probe"] = [number(row.get(f"val/{term}")) for row in stage.log]
        section.figures.append(figures.terms(epochs, curves, "loss terms", "Dashed: on the probe set."))
    page.add(section)


def _reconstructions(stage: StageFiles, page: Page, names: Names) -> None:
    files = reconstruction_files(stage.folder)
    if not files:
        if page.kind == "Pretraining":
            page.absent.append("reconstructions: this method draws none, or the folder is not there")
        return
    last = max(files)
    section = Section("Reconstructions")
    names.know(files[last])
    section.flickers = flickers_of(files[last], stage.channels, {case: names.case(case) for case in files[last]})
    held = " of held-out cases" if stage.held_out else ""
    section.text.append(
        f"Crops{held} after epoch {last}. Blue is hidden from the network. Each picture flickers between input, masked input "
        f"and reconstruction; choose a state to hold it still. Grey windows are those of the input, per modality."
    )
    if not section.flickers:
        section.text = ["The pictures of this run are of another version and cannot be cut into their parts."]
    page.add(section)


def _errors(stage: StageFiles, page: Page, names: Names) -> None:
    scores = (stage.report.get("now") or {}).get("reconstruction")
    if not scores:
        return
    keys = ("loss", "collapsed_loss", "skill", "foreground_skill", "outline_skill", "std_ratio", "within")
    header = ["modality", "error", "best constant", "skill", "skill in the body", "skill over the outline"]
    header += ["spread of output", "differs between cells"]
    rows = [[name, *(shown(values.get(key)) for key in keys)] for name, values in scores.items()]
    own = {name: {key: number(values.get(key)) for key in keys} for name, values in scores.items() if name != "all"}
    held = "held-out crops" if stage.held_out else "crops"
    section = Section("Error per modality", [f"On the masked voxels of the same {held} in every epoch."])
    section.figures.append(figures.modality_errors(own or {"all": scores["all"]}))
    section.tables.append(Table(header, rows, "Error of the reconstruction now"))
    page.add(section)


def _spectra(stage: StageFiles, page: Page, names: Names) -> None:
    now, untrained = (stage.report.get(key) or {} for key in ("now", "untrained"))
    stages = now.get("stages") or []
    before = untrained.get("stages") or [None] * len(stages)
    section = Section("Spectra of the features")
    rows = []
    for place, (own, twin) in enumerate(zip(stages, before, strict=True)):
        if place < MAX_STAGES:
            section.figures.append(figures.spectrum(place, own, twin))
        twin = twin or {}
        row = [own.get("channels"), shown(own.get("effective_rank"), ".1f"), shown(twin.get("effective_rank"), ".1f")]
        row += [shown(own.get("top_share"), ".0%"), own.get("dead_channels"), own.get("status")]
        rows.append([str(place), *map(str, row)])
    header = ["stage", "channels", "effective rank", "untrained", "share of the first direction", "dead", "rows"]
    if rows:
        section.text.append(
            "A rank by itself is no quality: an untrained network has a high one. A stage far below its untrained twin has "
            "lost directions."
        )
        section.tables.append(Table(header, rows, "Directions that the features of each stage use"))
    page.add(section)


def _methods(stage: StageFiles, page: Page, names: Names) -> None:
    if stage.checkpoint.get("format", "").startswith("emim_nnunet.ssl"):
        page.add(methods_section(stage.checkpoint, stage.report, stage.log))


def _settings(stage: StageFiles, page: Page, names: Names) -> None:
    if stage.checkpoint:
        page.add(describe_settings(stage.checkpoint, stage.plans, stage.configuration))
