"""The pages of what ``emim_compare`` and ``emim_classify`` leave: their own tables and pictures, in one place."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emim_nnunet.errors import counted
from emim_nnunet.report import figures
from emim_nnunet.report.citations import cited_for
from emim_nnunet.report.content import Page, Section, Table
from emim_nnunet.report.files import Names, part_of, read_rows, shown, without_weights
from emim_nnunet.report.find import CLASS_SCORES, CLASSIFIER, COMPARISON, COMPARISON_PAGE
from emim_nnunet.storage.files import read_json

COMPARISON_PICTURES = {
    "scores.png": (
        "Dice of every test case, and mean and interval of each arm",
        "Points: test cases; diamonds: mean, 95 %.",
    ),
    "efficiency.png": ("Label efficiency: Dice against the number of labelled cases, a line per arm", "Bands: 95 %."),
    "spectra.png": ("Spectra of the features of each arm and stage", "Singular values, relative to the largest."),
}
SHORT = "In short"
MAX_CASES = 60


def comparison_page(folder: Path, names: Names) -> Page:
    """The page of a comparison.

    Args:
        folder: What ``emim_compare`` wrote.
        names: How cases are called.
    """
    page = Page("Comparison", folder.name)
    results: dict[str, Any] = {}
    with part_of(page, COMPARISON):
        results = read_json(folder / COMPARISON)
        names.know(results.get("test_cases", []))
        names.know(row["case"] for row in results.get("scores", []))
        page.name = f"{results['dataset']} · {results['configuration']}"
        page.facts = _facts(results)
    sections: list[Section] = []
    with part_of(page, COMPARISON_PAGE):
        sections = markdown_sections(names.text((folder / COMPARISON_PAGE).read_text("utf-8")))
    short = next((section for section in sections if section.title == SHORT), None)
    if short is not None:
        sections.remove(short)
        page.verdict, page.reasons = "What was found:", short.points
    pictures = Section("Scores and label efficiency")
    for name, (alt, caption) in COMPARISON_PICTURES.items():
        if (folder / name).is_file():
            pictures.figures.append(figures.png_of(folder / name, alt, caption))
        else:
            page.absent.append(f"{name} is not there")
    page.add(pictures)
    for section in sections:
        page.add(section)
    with part_of(page, "references"):
        methods = dict.fromkeys(cost["method"] for cost in results.get("compute", {}).values())
        entries = dict(entry for method in methods for entry in cited_for(method)) or dict(cited_for("scratch"))
        page.add(Section("References", code=[("BibTeX", "\n\n".join(entries.values()))]))
    return page


def _facts(results: dict[str, Any]) -> list[tuple[str, str]]:
    cases = results["cases"]
    arms = dict.fromkeys(row["arm"] for row in results["summary"])
    pretrained = (
        f"{counted(cases['unlabelled'] + cases['labelled_pool'], 'case')}, {cases['unlabelled']} of them without label"
    )
    facts = [("arms", ", ".join(arms)), ("pretraining on", pretrained), ("test on", counted(cases["test"], "case"))]
    facts.append(("labelled cases", ", ".join(map(str, results["labelled"]))))
    seeds = results["seeds"]  # earlier versions made one draw per seed
    facts.append(
        ("draws and seeds", f"{counted(len(results.get('draws', seeds)), 'draw')}, {counted(len(seeds), 'seed')}")
    )
    versions = results.get("versions") or {}
    if versions:
        facts.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return facts


def classification_page(folder: Path, names: Names) -> Page:
    """The page of a classification.

    Args:
        folder: What ``emim_classify train`` or ``evaluate`` wrote.
        names: How cases are called.
    """
    page = Page("Classification", folder.name)
    about: dict[str, Any] = {}
    with part_of(page, CLASSIFIER):
        if (folder / CLASSIFIER).is_file():
            content = without_weights(folder / CLASSIFIER)
            about = content.get("about") or content
    if about:
        names.know(about.get("training_cases", []))
        page.facts = _about_classifier(about)
    rows: list[dict[str, str]] = []
    with part_of(page, "per_case.csv"):
        if (folder / "per_case.csv").is_file():
            rows = read_rows(folder / "per_case.csv")
            names.know(row["case"] for row in rows)
    with part_of(page, "scores"):
        if (folder / CLASS_SCORES).is_file():
            page.add(_class_scores(read_json(folder / CLASS_SCORES), folder))
        else:
            page.absent.append("scores: the predictions were not evaluated (emim_classify evaluate does it)")
    with part_of(page, "cases"):
        page.add(_class_cases(rows, names))
    adapted = [names.text(str(line)) for line in about.get("adapted") or []]
    page.add(Section("Which filter went where", points=adapted))
    settings = about.get("settings") or {}
    if settings:
        table = Table(["key", "value"], [[key, str(value)] for key, value in sorted(settings.items())], "Settings")
        page.add(Section("Settings", tables=[table], folded=True))
    return page


def _about_classifier(about: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [("learnt from", f"{len(about.get('training_cases', []))} cases")]
    facts.append(("encoder", str(about.get("encoder_from") or "from scratch")))
    facts.append(("targets", ", ".join(about.get("targets", []))))
    versions = about.get("versions") or {}
    if versions:
        facts.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return facts


def _class_scores(results: dict[str, Any], folder: Path) -> Section:
    section = Section("Scores")
    rows = []
    for target, result in results.items():
        for key, score in (result.get("scores") or {}).items():
            low, high = (shown(score.get(end)) for end in ("low", "high"))
            interval = result.get("remark") or f"{low} to {high}"
            counted = [str(result.get("num_cases", "")), str(result.get("num_patients", ""))]
            rows.append([target, key.replace("_", " "), shown(score.get("value")), interval, *counted])
    section.tables.append(Table(["target", "score", "value", "95 % interval", "cases", "patients"], rows, "Scores"))
    for picture in sorted(folder.glob("confusion_*.png")):
        target = picture.stem.removeprefix("confusion_")
        section.figures.append(figures.png_of(picture, f"Confusion matrix of {target}", target, wide=False))
    return section


def _class_cases(rows: Sequence[dict[str, str]], names: Names) -> Section:
    """Wrong cases first, the surest of them first of all."""
    ordered = sorted(rows, key=lambda row: (row.get("right") != "False", float(row.get("probability_of_true") or 1)))
    cells = [
        [
            names.case(row["case"]),
            *(row.get(key) or "unknown" for key in ("target", "true", "predicted", "probability_of_true")),
        ]
        for row in ordered[:MAX_CASES]
    ]
    wrong = frozenset(place for place, row in enumerate(ordered[:MAX_CASES]) if row.get("right") == "False")
    if not cells:
        return Section("Cases")
    text = f"{len(cells)} of {len(rows)} rows, wrong ones first; these are marked."
    header = ["case", "target", "true", "predicted", "probability of the true class"]
    return Section("Cases", [text], tables=[Table(header, cells, "Predictions per case", wrong)])


def markdown_sections(text: str) -> list[Section]:
    """The sections of a page of Markdown that our commands write: headings, paragraphs, lists, tables; no nesting."""
    sections = [Section("Protocol")]
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = block.strip().splitlines()
        if lines[0].startswith("## "):
            sections.append(Section(lines[0][3:]))
        elif lines[0].startswith("|"):
            header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
            sections[-1].tables.append(Table(header, rows))
        elif lines[0].startswith("- "):
            sections[-1].points += [_plain(line[2:]) for line in lines]
        elif not lines[0].startswith("# "):
            sections[-1].text.append(_plain(" ".join(lines)))
    return sections


def _plain(line: str) -> str:
    return line.replace("**", "").replace("`", "")
