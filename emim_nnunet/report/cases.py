"""The group page: a few slices and the intensities of each case, those that stand out first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np
from skimage.transform import resize

from emim_nnunet.datasets.dataset import PreprocessedDataset
from emim_nnunet.datasets.preprocessed import (
    OUTSIDE,
    UNREADABLE,
    Case,
    body_file,
    open_body,
    open_case,
    read_orientations,
)
from emim_nnunet.errors import UserError
from emim_nnunet.nnunet.paths import nnUNet_preprocessed, nnUNet_raw
from emim_nnunet.report.content import CaseCard
from emim_nnunet.report.figures import jpeg_of
from emim_nnunet.report.files import Names

MAX_CASES = 40  # cases that are looked at; all that are held out come first
SLICES = 9  # per case, spread evenly
THUMBNAIL = 112  # pixels of the longer side
STANDS_OUT = 3.5  # modified z-score of Iglewicz and Hoaglin (1993), who recommend this limit
FEW = 5  # cases; with fewer none can stand out
NORMAL = 0.6745  # third quartile of the normal distribution


@dataclass
class Look:
    """What was seen of a case.

    Attributes:
        case: The case.
        pictures: A slice per modality, (h, w) in [0, 1]; None where the case lacks it.
        aspect: Width over height of a picture in mm.
        percentiles: Percentiles 5, 50 and 95 per modality in the body; NaN where the case lacks it.
        body: Share of the volume that is body.
        shape: Voxels per axis.
        has_body_file: Whether preparation has found the body, because the background is not 0.
    """

    case: Case
    pictures: list[np.ndarray | None]
    aspect: float
    percentiles: list[tuple[float, float, float]]
    body: float
    shape: tuple[int, ...]
    has_body_file: bool


def find_data(
    run: Path, plans: dict[str, Any], dataset_json: dict[str, Any], configuration: str
) -> PreprocessedDataset:
    """The preprocessed data of a run: beside its results, or where nnU-Net's variable says.

    Args:
        run: Folder of the run.
        plans: Its plans.
        dataset_json: Its ``dataset.json``.
        configuration: Name of the configuration.

    Raises:
        UserError: They are not there.
    """
    name = plans["dataset_name"]
    results = next((folder for folder in run.parents if folder.name == "nnUNet_results"), None)
    places = [] if results is None else [results.with_name("nnUNet_preprocessed") / name]
    if nnUNet_preprocessed.is_set():
        places.append(Path(str(nnUNet_preprocessed)) / name)
    for place in places:
        data = PreprocessedDataset(place, plans, dataset_json, configuration)
        if place.is_dir() and data.cases:
            return data
    raise UserError("the preprocessed cases are not on this machine, or nnUNet_preprocessed does not name their folder")


def raw_folder(data: PreprocessedDataset) -> Path | None:
    """The raw data set of preprocessed data; None where it is not there."""
    places = [data.folder.parent.with_name("nnUNet_raw") / data.name]
    if nnUNet_raw.is_set():
        places.append(Path(str(nnUNet_raw)) / data.name)
    return next((place for place in places if place.is_dir()), None)


def choose(data: PreprocessedDataset, held_out: Sequence[str], learnt: Sequence[str]) -> list[Case]:
    """The cases to look at: those that are held out, then some of the others, evenly spread over the sorted ids."""
    first = [data.cases[name] for name in held_out if name in data.cases][:MAX_CASES]
    others = [data.cases[name] for name in sorted(learnt) if name in data.cases and name not in held_out]
    room = MAX_CASES - len(first)
    if len(others) > room:
        others = [others[int(place)] for place in np.linspace(0, len(others) - 1, max(room, 0)).round()]
    return first + others


def look_at(data: PreprocessedDataset, cases: Sequence[Case]) -> tuple[list[Look], list[str]]:
    """Look at cases.

    Args:
        data: The preprocessed data.
        cases: Of it.

    Returns:
        What was seen, and the ids of cases that cannot be read.
    """
    orientations: dict[str, str] = {}
    for folder in {case.folder for case in cases}:
        orientations |= read_orientations(folder, data.plans["transpose_forward"])
    spacing = list(data.manager.spacing)
    looks, unreadable = [], []
    for case in cases:
        try:
            looks.append(_look(case, spacing, orientations.get(case.identifier, "")))
        except UNREADABLE:
            unreadable.append(case.identifier)
    return looks, unreadable


def _look(case: Case, spacing: Sequence[float], orientation: str) -> Look:
    image, seg = open_case(case.folder, case.identifier)
    body_of = open_body(case.folder, case.identifier, seg.shape[1:])
    at = np.unique(np.linspace(0, seg.shape[1] - 1, SLICES).round().astype(int))
    inside = np.stack([np.asarray(seg[0, z]) != OUTSIDE for z in at])
    if body_of is not None:
        inside &= np.stack([np.asarray(body_of[0, z]) for z in at])
    pictures: list[np.ndarray | None] = []
    percentiles = []
    middle = int(inside.sum((1, 2)).argmax())
    for channel in range(image.shape[0]):
        values = np.stack([np.asarray(image[channel, z], dtype=np.float32) for z in at])
        known = values[inside] if inside.any() else values.ravel()
        if known.min() == known.max():
            pictures.append(None)
            percentiles.append((nan, nan, nan))
            continue
        low, five, half, most, high = (float(v) for v in np.percentile(known, (1, 5, 50, 95, 99)))
        percentiles.append((five, half, most))
        grey = np.clip((values[middle] - low) / max(high - low, 1e-6), 0, 1) * inside[middle]
        pictures.append(_thumbnail(_upright(grey, orientation[-2:])))
    height, width = inside.shape[1] * spacing[-2], inside.shape[2] * spacing[-1]
    found = body_file(case.folder, case.identifier).is_file()
    return Look(case, pictures, width / height, percentiles, float(inside.mean()), tuple(seg.shape[1:]), found)


def _upright(picture: np.ndarray, sides: str) -> np.ndarray:
    """Turn a slice as radiologists look at it: front or top of the patient above, the left side on the right."""
    rows, columns = (sides[0], sides[1]) if len(sides) == 2 else ("", "")
    picture = picture[::-1] if rows in ("A", "S") else picture
    return picture[:, ::-1] if columns in ("R", "A") else picture


def _thumbnail(picture: np.ndarray) -> np.ndarray:
    scale = THUMBNAIL / max(picture.shape)
    if scale >= 1:
        return picture
    return resize(picture, [max(1, round(n * scale)) for n in picture.shape], anti_aliasing=True)


def remarks_on(
    looks: Sequence[Look], channels: Sequence[str], skills: Mapping[str, float]
) -> dict[str, tuple[float, list[str]]]:
    """How far each case stands out of the others, and in what.

    Args:
        looks: What was seen of the cases.
        channels: Names of the modalities.
        skills: Case -> skill in the body, of cases that were measured.

    Returns:
        Case -> its largest modified z-score, and a line for each measure that is beyond the limit.
    """
    measures: dict[str, tuple[list[float], float]] = {"share of the body": ([look.body for look in looks], 0.02)}
    measures["voxels"] = [float(np.log(np.prod(look.shape))) for look in looks], 0.1
    for place, name in enumerate(channels):
        for number, what in enumerate(("percentile 5", "median", "percentile 95")):
            measures[f"{name} {what}"] = [look.percentiles[place][number] for look in looks], 0.05
    measures["skill"] = [skills.get(look.case.identifier, nan) for look in looks], 0.02
    found: dict[str, tuple[float, list[str]]] = {look.case.identifier: (0.0, []) for look in looks}
    for what, (values, least) in measures.items():
        for look, value, (score, usual) in zip(looks, values, modified_scores(values, least), strict=True):
            most, lines = found[look.case.identifier]
            if isfinite(score):
                if score > STANDS_OUT:
                    there, here = np.exp([usual, value]) if what == "voxels" else (usual, value)
                    form = ",.0f" if what == "voxels" else ".2f"
                    lines.append(f"{what} {here:{form}} (median of the cases {there:{form}})")
                found[look.case.identifier] = (max(most, score), lines)
    return found


def modified_scores(values: Sequence[float], least: float = 0.0) -> list[tuple[float, float]]:
    """Modified z-score of each value, 0.6745 |x - median| / MAD (Iglewicz and Hoaglin 1993), and the median.

    Args:
        values: Of the cases; NaN where unknown.
        least: The smallest spread that counts as such: among cases that are nearly equal, a small difference is no outlier.

    Returns:
        Score and median per value; NaN where there is nothing to compare.
    """
    known = np.array([value for value in values if isfinite(value)])
    if len(known) < FEW:
        return [(nan, nan)] * len(values)
    middle = float(np.median(known))
    spread = max(float(np.median(np.abs(known - middle))), least, 1e-9)
    return [(NORMAL * abs(value - middle) / spread, middle) for value in values]


def cards_of(
    looks: Sequence[Look],
    channels: Sequence[str],
    roles: Mapping[str, str],
    skills: Mapping[str, float],
    names: Names,
) -> list[CaseCard]:
    """The cards of the group page, those that stand out most first.

    Args:
        looks: What was seen of the cases.
        channels: Names of the modalities.
        roles: Case -> what it was for.
        skills: Case -> skill in the body, of cases that were measured.
        names: How cases are called.
    """
    remarks = remarks_on(looks, channels, skills)
    cards = []
    for look in sorted(looks, key=lambda look: -remarks[look.case.identifier][0]):
        case = look.case.identifier
        pictures = [
            (name, "" if picture is None else jpeg_of(picture))
            for name, picture in zip(channels, look.pictures, strict=True)
        ]
        facts = [("voxels", " x ".join(map(str, look.shape))), ("body", f"{look.body:.0%} of the volume")]
        if case in skills:
            facts.insert(0, ("skill in the body", f"{skills[case]:.3f}" if isfinite(skills[case]) else "n/a"))
        lacking = [name for name, picture in pictures if not picture]
        if lacking:
            facts.append(("lacks", ", ".join(lacking)))
        role = roles.get(case, "")
        cards.append(CaseCard(names.case(case), role, pictures, look.aspect, facts, remarks[case][1]))
    return cards
