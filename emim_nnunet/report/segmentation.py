"""The pages of a segmentation training (nnU-Net's, from whatever encoder) and of scores of predictions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np

from emim_nnunet.bootstrap import bootstrap_interval
from emim_nnunet.datasets.splits import read_splits
from emim_nnunet.errors import counted
from emim_nnunet.report import figures
from emim_nnunet.report.cases import cards_of, choose, find_data, look_at
from emim_nnunet.report.content import Page, Section, Table
from emim_nnunet.report.files import (
    Names,
    lines_with,
    log_lines,
    number,
    part_of,
    problems_in,
    read_log_of,
    shown,
)
from emim_nnunet.report.find import SUMMARY
from emim_nnunet.report.results import markdown_sections
from emim_nnunet.report.texts import describe_settings, hours
from emim_nnunet.storage.files import read_json

RESAMPLES = 2000
SUBSETS = "modality_subsets.md"
MIN_CASES = 10  # with fewer, a bootstrap over cases says little
FOLDER = re.compile(r"(?P<trainer>[^_].*?)__(?P<plans>.+?)__(?P<configuration>.+)")
STEM = re.compile(r"channel \d+ '|stem|filter of|mean filter")
BEGINNINGS = ("Encoder: ", "It was pretrained on", "Peak learning rate", "Modality dropout", "finetune_")


def segmentation_page(folder: Path, names: Names) -> Page:
    """The page of a segmentation training.

    Args:
        folder: The folder of its fold.
        names: How cases are called.
    """
    match = FOLDER.fullmatch(folder.parent.name)
    about = match.groupdict() if match else {"trainer": folder.parent.name, "plans": "", "configuration": ""}
    page = Page(
        "Segmentation training", f"{about['trainer']} · {about['configuration']} · {folder.name.replace('_', ' ')}"
    )
    checkpoint: dict[str, Any] = {}
    lines: list[str] = []
    plans: dict[str, Any] = {}
    dataset_json: dict[str, Any] = {}
    with part_of(page, "checkpoint"):
        checkpoint = read_log_of(folder)
    with part_of(page, "log"):
        lines = log_lines(folder)
    with part_of(page, "plans"):
        plans = read_json(folder.parent / "plans.json")
        dataset_json = read_json(folder.parent / "dataset.json")
        page.name = f"{plans['dataset_name']} · {page.name}"
    _know_cases(folder, plans, names, page)
    with part_of(page, "Dice per case"):
        file = folder / "validation" / SUMMARY
        if file.is_file():
            page.add(dice_section(read_json(file), dataset_json, names, "validation case", page))
        else:
            page.absent.append(
                "Dice per case: the validation cases were not predicted (nnUNetv2_train ... --val does it)"
            )
    with part_of(page, "modalities"):
        _modalities(folder.parent / SUBSETS, page)
    with part_of(page, "curves"):
        _curves(checkpoint.get("logging") or {}, page)
    with part_of(page, "encoder"):
        _encoder(lines, page, names)
    with part_of(page, "cases"):
        _cases(folder, plans, dataset_json, about["configuration"], page, names)
    with part_of(page, "settings"):
        page.add(describe_settings({}, plans, about["configuration"]))
    page.problems = problems_in(lines, names)
    return page


def _know_cases(folder: Path, plans: dict[str, Any], names: Names, page: Page) -> None:
    """The cases of the data set and of the predictions, before anything names one."""
    files = (folder / "validation").glob("*") if (folder / "validation").is_dir() else []
    names.know({file.name.split(".")[0] for file in files} - {"summary"})


def _modalities(file: Path, page: Page) -> None:
    """What ``emim_evaluate_modalities`` has measured of the model, if it has."""
    if not file.is_file():
        return
    section = markdown_sections(file.read_text("utf-8"))[0]
    section.title = "Dice by modalities"
    picture = file.with_suffix(".png")
    if picture.is_file():
        caption = "Bars: mean; points: cases; below, what the network saw. Grey: the training dropped no modalities so."
        section.figures.append(figures.png_of(picture, "Dice of each subset of the modalities", caption))
    page.add(section)


def _curves(log: dict[str, Any], page: Page) -> None:
    if not log.get("train_losses"):
        return
    epochs = list(range(1, len(log["train_losses"]) + 1))
    losses = {"loss": log["train_losses"], "loss, validation": log.get("val_losses", [])}
    losses = {name: list(map(number, values)) for name, values in losses.items() if len(values) == len(epochs)}
    section = Section("Training")
    section.figures.append(figures.terms(epochs, losses, "loss", "Dashed: on patches of the validation cases."))
    dice = {"moving average": log.get("ema_fg_dice", []), "Dice, validation": log.get("mean_fg_dice", [])}
    dice = {name: list(map(number, values)) for name, values in dice.items() if len(values) == len(epochs)}
    if dice:
        caption = "nnU-Net's pseudo Dice on patches of the validation cases, and its moving average."
        section.figures.append(figures.terms(epochs, dice, "pseudo Dice", caption))
    page.add(section)
    page.facts.append(("epochs", str(len(epochs))))
    begun, ended = log.get("epoch_start_timestamps") or [], log.get("epoch_end_timestamps") or []
    seconds = sum(number(end) - number(start) for start, end in zip(begun, ended, strict=False))
    if seconds > 0:
        page.facts.append(("time", hours(seconds)))


def _encoder(lines: Sequence[str], page: Page, names: Names) -> None:
    """Where the encoder comes from, and which filter of the stem went to which channel."""
    said = [names.text(line) for line in lines_with(lines, lambda line: line.startswith(BEGINNINGS))]
    stem = [names.text(line) for line in lines_with(lines, lambda line: bool(STEM.match(line)))]
    section = Section("Where the encoder comes from", points=[*said, *stem])
    if said and not stem and not any("scratch" in line for line in said):
        section.text.append("Every filter of the stem went to the channel of the same name: nothing had to be adapted.")
    elif not said:
        section.text.append(
            "The log says nothing of an encoder: this is a training by nnU-Net alone, or its log is gone."
        )
    page.add(section)


def _cases(
    folder: Path, plans: dict[str, Any], dataset_json: dict[str, Any], configuration: str, page: Page, names: Names
) -> None:
    if not plans:
        return
    data = find_data(folder, plans, dataset_json, configuration)
    names.know(data.cases)
    fold = folder.name.removeprefix("fold_")
    splits = read_splits(data.folder)
    split = (
        splits[int(fold)] if fold.isdecimal() and int(fold) < len(splits) else {"train": data.labelled_ids, "val": []}
    )
    page.facts.insert(0, ("learnt from", counted(len(split["train"]), "labelled case")))
    page.facts.insert(1, ("validated on", counted(len(split["val"]), "held-out case")))
    looks, _ = look_at(data, choose(data, split["val"], split["train"]))
    roles = dict.fromkeys(split["val"], "held out") | dict.fromkeys(split["train"], "learnt from")
    section = Section("Cases", [f"{len(looks)} of {len(data.cases)} cases, those that stand out first."])
    section.cards = cards_of(looks, data.channel_names, roles, {}, names)
    page.add(section)


def dice_section(
    summary: dict[str, Any], dataset_json: dict[str, Any], names: Names, which: str, page: Page
) -> Section:
    """Dice per case and label, lowest first, and their means with intervals.

    Args:
        summary: What nnU-Net's evaluation wrote.
        dataset_json: Of the data set, which names the labels.
        names: How cases are called.
        which: What each of them is.
        page: Its facts get the mean.
    """
    labels = _label_names(dataset_json, list(summary["metric_per_case"][0]["metrics"]))
    cases = {}
    for row in summary["metric_per_case"]:
        path = row.get("prediction_file") or row["reference_file"]
        case = re.split(r"[/\\]", path)[-1].split(".")[0]
        cases[case] = [number(row["metrics"][key].get("Dice", nan)) for key in labels]
    names.know(cases)
    values = np.array(list(cases.values()), dtype=float)
    rows = []
    for place, name in enumerate(labels.values()):
        rows.append([name, *_mean_cells(values[:, place])])
    with np.errstate(all="ignore"):
        means = np.array([np.nanmean(row) if np.isfinite(row).any() else nan for row in values])
    rows.append(["mean of the labels", *_mean_cells(means)])
    page.facts.append(
        (
            "mean Dice",
            f"{shown(np.nanmean(means) if np.isfinite(means).any() else nan)} on {counted(len(cases), 'case')}",
        )
    )
    order = sorted(range(len(cases)), key=lambda place: means[place] if isfinite(means[place]) else 2.0)
    ids = list(cases)
    per_case = [[names.case(ids[p]), *(shown(v) for v in values[p]), shown(means[p])] for p in order]
    section = Section(
        "Dice per case",
        [f"{counted(len(cases), which)}, lowest first. n/a: neither the reference nor the prediction has the label."],
    )
    groups = {name: values[:, place].tolist() for place, name in enumerate(labels.values())}
    section.figures.append(figures.dots(groups, "Dice", "A dot per case; line: median."))
    section.tables.append(Table(["label", "mean Dice", "95 % interval", "lowest", "cases"], rows, "Mean over cases"))
    section.tables.append(Table(["case", *labels.values(), "mean"], per_case, "Dice per case"))
    return section


def _mean_cells(values: np.ndarray) -> list[str]:
    known = values[np.isfinite(values)]
    if not len(known):
        return ["n/a", "n/a", "n/a", "0"]
    interval = f"too few cases (fewer than {MIN_CASES})"
    if len(known) >= MIN_CASES:
        low, high = bootstrap_interval(lambda rng: rng.choice(known, len(known)).mean(keepdims=True), RESAMPLES)
        interval = f"{low[0]:.3f} to {high[0]:.3f}"
    return [f"{known.mean():.3f}", interval, f"{known.min():.3f}", str(len(known))]


def _label_names(dataset_json: dict[str, Any], keys: list[str]) -> dict[str, str]:
    """Key in nnU-Net's summary -> name of the label or region."""
    named = {}
    for name, value in (dataset_json.get("labels") or {}).items():
        if isinstance(value, list) and len(value) > 1:
            named[str(tuple(value))] = name
        else:
            single = value[0] if isinstance(value, list) else value
            named |= {str(single): name, f"({single},)": name}
    return {key: named.get(key, f"label {key}") for key in keys}


def scores_page(file: Path, names: Names) -> Page:
    """The page of scores that nnU-Net's evaluation wrote.

    Args:
        file: The JSON file, or the folder that holds it as ``summary.json``.
        names: How cases are called.
    """
    file = file / SUMMARY if file.is_dir() else file
    name = file.parent.name if file.name == SUMMARY else file.stem.removeprefix("metrics_")
    page = Page("Scores of predictions", name)
    with part_of(page, "scores"):
        described = [file.with_name("dataset.json"), file.parent.parent / "dataset.json"]
        dataset_json: dict[str, Any] = next((read_json(path) for path in described if path.is_file()), {})
        page.add(dice_section(read_json(file), dataset_json, names, "case", page))
    return page
