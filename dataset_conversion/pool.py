"""Several raw data sets as one without labels, for a common SSL stage: channels by name, balanced over the data sets."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk

from emim_nnunet.dataset_conversion.family import BACKGROUND_ONLY
from emim_nnunet.dataset_conversion.source_image import zeros_like
from emim_nnunet.dataset_conversion.target import dataset_lock, target_folder
from emim_nnunet.datasets.channel_names import channel_names, standard_name
from emim_nnunet.datasets.folders import read_dataset_json
from emim_nnunet.datasets.images import read_image_file, save_image
from emim_nnunet.datasets.raw import (
    FOLDERS,
    MISSING,
    PROVENANCE,
    UNLABELLED,
    cases_without_orientation,
    dataset_name,
    images_of_cases,
    missing_channels,
)
from emim_nnunet.datasets.splits import ORIGINS, PATIENTS, read_patients
from emim_nnunet.errors import UserError
from emim_nnunet.nnunet.descriptions import generate_dataset_json
from emim_nnunet.nnunet.paths import nnUNet_preprocessed, nnUNet_raw
from emim_nnunet.storage.files import left_work_folders, new_work_folder, read_json, write_json
from emim_nnunet.storage.locks import Lock
from emim_nnunet.storage.versions import versions

RARE = 0.25  # of the cases: a channel that fewer have is mostly zeros
EXTENT_CASES = 5  # read per data set to learn how large what they show is
SHORT_SIDES, LONG_SIDES = 1.6, 2.0  # factors; prostates are slabs, trunks are long


class _PooledCase(NamedTuple):
    """A case of a data set, as it stands in the pool: id and patient, the file of each channel, names of those it lacks."""

    identifier: str
    patient: str
    files: list[str | None]
    lacks: list[str]


def pool(
    dataset_ids: Sequence[int], target_id: int, name: str, channels: Sequence[str] | None = None
) -> tuple[Path, list[str]]:
    """Write a data set whose unlabelled cases are links to the images of others.

    Args:
        dataset_ids: Ids of raw data sets, at least two.
        target_id: Id of the new one, 1 to 999, not used yet.
        name: NAME in DatasetXXX_NAME of the new one.
        channels: Names of the channels of the new one; None = all that occur, in the order of the first data set that has them.
            A case that lacks one gets zeros in its place; a case that has none of them is left out.

    Returns:
        The new folder; and lines for the user: a table of what is in it, and warnings.

    Raises:
        UserError: Data sets are missing, have different file endings, or none of the channels, or hold several channels in one
            file, or another process writes the new id; nothing is written then.
    """
    if len(set(dataset_ids)) < max(2, len(dataset_ids)):
        raise UserError("pooling needs at least two different data sets")
    with dataset_lock(target_id, name) as lock:
        return _pool(dataset_ids, target_folder(target_id, name), channels, lock)


def _pool(
    dataset_ids: Sequence[int], target: Path, channels: Sequence[str] | None, lock: Lock
) -> tuple[Path, list[str]]:
    """As :func:`pool`, while the lock is held: a work folder is filled, and renamed when it is complete."""
    folders = [Path(nnUNet_raw) / dataset_name(i) for i in dataset_ids]
    descriptions = [read_dataset_json(folder) for folder in folders]
    endings = sorted({d["file_ending"] for d in descriptions})
    if len(endings) > 1:
        raise UserError(f"data sets of different file endings cannot be pooled: {', '.join(endings)}")
    present = {standard_name(n): n for d in reversed(descriptions) for n in reversed(channel_names(d))}
    wanted = list(channels or dict.fromkeys(present[standard_name(n)] for d in descriptions for n in channel_names(d)))
    unknown = [n for n in wanted if standard_name(n) not in present]
    if unknown:
        raise UserError(f"--channels {', '.join(unknown)}: the data sets have {', '.join(present.values())}")
    for left in left_work_folders(target.parent, target.name.split("_")[0] + "_"):
        shutil.rmtree(left, ignore_errors=True)
    partial = new_work_folder(target)
    try:
        _write(partial, target.name, folders, descriptions, wanted, endings[0])
        lines = [*_table(partial, wanted), *_extent_warnings(partial, wanted, endings[0])]
        lock.check()
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return target, lines


def _table(folder: Path, wanted: Sequence[str]) -> list[str]:
    """Cases per data set, and how many of them have each channel; a warning of channels that few have."""
    origins, missing = read_json(folder / ORIGINS), read_json(folder / MISSING)
    rows = {}
    for source in dict.fromkeys(origins.values()):
        cases = [case for case, origin in origins.items() if origin == source]
        rows[source] = [len(cases), *(sum(n not in missing.get(case, []) for case in cases) for n in wanted)]
    totals = [sum(column) for column in zip(*rows.values(), strict=True)]
    first = max(map(len, [*rows, "all"]))
    widths = [max(len(head), len(str(total))) for head, total in zip(["cases", *wanted], totals, strict=True)]
    table: dict[str, list[Any]] = {"": ["cases", *wanted], **rows, "all": totals}
    lines = [
        "  ".join([name.ljust(first), *(str(cell).rjust(width) for cell, width in zip(row, widths, strict=True))])
        for name, row in table.items()
    ]
    rare = [n for n, number in zip(wanted, totals[1:], strict=True) if number < RARE * totals[0]]
    if rare:
        rest = " ".join(n for n in wanted if n not in rare)
        lines.append(
            f"WARNING: few cases have {', '.join(rare)}; in the others zeros stand for it. To leave it out: --channels {rest}"
        )
    return lines


def _extent_warnings(folder: Path, wanted: Sequence[str], ending: str) -> list[str]:
    """A warning where the images of two data sets are so different in size that they hardly show the same part of the body.

    What counts is the median over some cases of the three sides, in mm, of the box around the non-zero voxels, sorted, so that
    the orientation of the slices does not matter. Heads with and without skull stay below the limits.
    """
    origins, missing = read_json(folder / ORIGINS), read_json(folder / MISSING)
    extents = {}
    for source in dict.fromkeys(origins.values()):
        cases = [case for case, origin in origins.items() if origin == source]
        some = cases[:: max(1, len(cases) // EXTENT_CASES)][:EXTENT_CASES]
        channels = [next(c for c, n in enumerate(wanted) if n not in missing.get(case, [])) for case in some]
        files = [folder / UNLABELLED / f"{case}_{c:04d}{ending}" for case, c in zip(some, channels, strict=True)]
        sides = [extent for extent in map(_extent, files) if extent is not None]
        if sides:
            extents[source] = np.median(sides, axis=0)
    for limit, axis, which in ((SHORT_SIDES, 0, "shortest"), (LONG_SIDES, 2, "longest")):
        ordered = sorted(extents, key=lambda source: extents[source][axis])
        if extents and extents[ordered[-1]][axis] > limit * extents[ordered[0]][axis]:
            small, large = (f"{s} {' x '.join(f'{mm:.0f}' for mm in extents[s])} mm" for s in (ordered[0], ordered[-1]))
            return [
                f"WARNING: do these data sets show the same part of the body? What is not 0 in their images measures: {small}, "
                f"{large} (median of up to {EXTENT_CASES} cases; the {which} sides differ by more than a factor of {limit:g})"
            ]
    return []


def _extent(file: Path) -> np.ndarray | None:
    """Sides (3,) in mm of the box around the non-zero voxels, ascending; None for a picture, which has no mm, or only zeros."""
    image = _read(file)
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        return None
    occupied = sitk.GetArrayViewFromImage(image) != 0
    if not occupied.any():
        return None
    voxels = [np.ptp(np.flatnonzero(occupied.any(axis=tuple({0, 1, 2} - {axis})))) + 1 for axis in range(3)]
    return np.sort(np.array(voxels) * image.GetSpacing()[::-1])


def _read(file: str | Path) -> sitk.Image:
    """An image; a file that cannot be read is a mistake of the user's."""
    try:
        return read_image_file(file)
    except RuntimeError as error:
        raise UserError(
            f"{Path(file).resolve()} cannot be read ({str(error).strip().splitlines()[-1].strip()})"
        ) from error


def _write(
    folder: Path,
    name: str,
    sources: Sequence[Path],
    descriptions: Sequence[dict[str, Any]],
    wanted: list[str],
    ending: str,
) -> None:
    """Link the images of all cases, and write what is known about them."""
    for sub in FOLDERS:
        (folder / sub).mkdir(parents=True)
    counts: dict[str, int] = {}
    origins, patients, missing, unsaid = {}, {}, {}, set()
    for source, description in zip(sources, descriptions, strict=True):
        cases = [case for case in _cases(source, description, wanted) if len(case.lacks) < len(wanted)]
        for case in cases:
            _link(folder / UNLABELLED / case.identifier, case.files, ending)
            origins[case.identifier] = source.name
            patients[case.identifier] = case.patient
            if case.lacks:
                missing[case.identifier] = case.lacks
        counts[source.name] = len(cases)
        unsaid |= {f"{_number(source)}_{case}" for case in cases_without_orientation(source)}
    empty = [name for name, count in counts.items() if not count]
    if empty:
        raise UserError(f"{', '.join(empty)} has no case with one of the channels {', '.join(wanted)}")
    generate_dataset_json(
        str(folder),
        channel_names=dict(enumerate(wanted)),
        labels=BACKGROUND_ONLY,
        num_training_cases=0,
        file_ending=ending,
        dataset_name=name,
        reference="; ".join(dict.fromkeys(str(d.get("citation") or d.get("reference")) for d in descriptions)),
        license="; ".join(dict.fromkeys(str(d.get("licence") or d.get("license")) for d in descriptions)),
        description=f"Pool of {', '.join(counts)}",
        converted_by=f"emim_nnunet {versions()['emim_nnunet']}",
    )
    facts: dict[str, Any] = {ORIGINS: origins, PATIENTS: patients, MISSING: missing}
    facts[PROVENANCE] = {"pool_of": counts, "channels": wanted, "versions": versions()}
    facts[PROVENANCE]["cases"] = {case: {"orientation_known": False} for case in sorted(unsaid)}
    for file, content in facts.items():
        write_json(folder / file, content)


def _number(source: Path) -> str:
    """``004`` of ``Dataset004_NAME``."""
    return source.name.split("_")[0].removeprefix("Dataset")


def _cases(source: Path, description: dict[str, Any], wanted: Sequence[str]) -> Iterator[_PooledCase]:
    """The cases of a data set, labelled or not, in the order of their ids."""
    number = _number(source)
    places = {standard_name(n): place for place, n in enumerate(channel_names(description))}
    whose = read_patients(source) or read_patients(Path(nnUNet_preprocessed) / source.name)
    zeros = missing_channels(source)
    folders = [images_of_cases(source / sub, description) for sub in ("imagesTr", UNLABELLED)]
    for case, images in sorted((folders[0] | folders[1]).items()):
        if len(images) < len(places):
            raise UserError(f"{images[0]} holds several channels: such pictures cannot be pooled, split them first")
        files = [images[places[key]] if (key := standard_name(n)) in places else None for n in wanted]
        filled = {standard_name(n) for n in zeros.get(case, [])}
        lacks = [n for n, file in zip(wanted, files, strict=True) if file is None or standard_name(n) in filled]
        yield _PooledCase(f"{number}_{case}", f"{number}_{whose.get(case, case)}", files, lacks)


def _link(stem: Path, files: Sequence[str | None], ending: str) -> None:
    """Link the images of a case; zeros where there is none."""
    reference = next(file for file in files if file is not None)
    for channel, file in enumerate(files):
        image = stem.with_name(f"{stem.name}_{channel:04d}{ending}")
        if file is None:
            save_image(zeros_like(_read(reference)), image)
        else:
            os.symlink(Path(file).resolve(), image)
