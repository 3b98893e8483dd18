"""From a checked source to nnU-Net's raw format, all or nothing."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from emim_nnunet.dataset_conversion.family import LABEL, MASK, DatasetFamily
from emim_nnunet.dataset_conversion.remedies import on_grid, remedied
from emim_nnunet.dataset_conversion.source_cases import (
    TARGET_ENDING,
    SourceCase,
    SourceFile,
    check_case,
    find_cases,
    read_image,
)
from emim_nnunet.datasets.images import copy_without_text, save_image, says_orientation
from emim_nnunet.datasets.raw import UNLABELLED
from emim_nnunet.datasets.splits import PATIENTS, ensure_splits
from emim_nnunet.errors import UserError
from emim_nnunet.nnunet.descriptions import generate_dataset_json
from emim_nnunet.nnunet.paths import nnUNet_raw
from emim_nnunet.storage.files import copy_file, left_work_folders, new_work_folder, write_json
from emim_nnunet.storage.locks import Lock, acquire
from emim_nnunet.storage.versions import versions

STATE = "state.json"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """How a data set is converted.

    Attributes:
        resample_to: Channel whose grid all others and the label get (linear, nearest for the label); None = refuse other grids.
        skip_incomplete: Leave out cases that lack a channel.
        allow_missing: Take cases that lack a channel, with an image of zeros in its place, which SSL methods treat as masked.
        link: Link to images that are right as they are instead of copying them.
        background_to_zero: Where a value other than 0 dominates an image (more than a third of it), its voxels become 0.
        allow_lost_labels: Take labels that lose all voxels of a value by resampling.
        strip_header: Copy images without the text in their headers.
    """

    resample_to: str | None = None
    skip_incomplete: bool = False
    allow_missing: bool = False
    link: bool = False
    background_to_zero: bool = False
    allow_lost_labels: bool = False
    strip_header: bool = False


def convert(
    family: DatasetFamily,
    source: Path,
    dataset_id: int,
    dataset_name: str | None = None,
    *,
    options: Options = Options(),
    num_processes: int = 4,
    dry_run: bool = False,
) -> tuple[Path | None, list[SourceCase]]:
    """Convert a data set into ``nnUNet_raw``.

    Everything is read and checked first. Labelled cases go to imagesTr and labelsTr, the others to imagesUnlabelled. The
    folder appears under its name only when it is complete; the source is never changed. Until then the work lies in a hidden
    folder beside it, which the same command takes up again. One process at a time writes data sets of an id.

    Args:
        family: Table of the data set.
        source: Folder, searched with all folders below.
        dataset_id: 1 to 999, not used yet.
        dataset_name: NAME in DatasetXXX_NAME; None = the family's.
        options: How.
        num_processes: Files that are read at a time.
        dry_run: Only check.

    Returns:
        The new folder (None for a dry run) and the cases.

    Raises:
        UserError: Anything is not as it must be, or another process writes this id; nothing has been written then.
    """
    name = dataset_name or family.default_dataset_name
    if dry_run:
        target_folder(dataset_id, name)
        return None, _checked_cases(family, source, options, num_processes)
    with dataset_lock(dataset_id, name) as lock:
        target = target_folder(dataset_id, name)
        cases = _checked_cases(family, source, options, num_processes)
        _write_all(family, source, cases, target, options, num_processes, lock)
    logger.info("wrote %s", target)
    return target, cases


def _checked_cases(family: DatasetFamily, source: Path, options: Options, num_processes: int) -> list[SourceCase]:
    """The cases of a source, with what is wrong with them."""
    if options.resample_to is not None and options.resample_to not in family.channels:
        raise UserError(f"--resample-to {options.resample_to}: the channels are {', '.join(family.channels)}")
    if options.strip_header and options.link:
        raise UserError("--strip_header does not go with --link: a link shows the file as it is")
    cases = find_cases(family, source)
    for case in cases:
        if family.masked and MASK not in case.files:
            case.problems.append(f"case {case.identifier} has no file that --mask names")
        if case.missing and not (options.skip_incomplete or options.allow_missing):
            case.problems.append(
                f"case {case.identifier}: missing {', '.join(case.missing)} (--skip_incomplete leaves it out, "
                f"--allow_missing takes it without)"
            )
        elif options.resample_to in case.missing:
            case.problems.append(f"case {case.identifier} lacks {options.resample_to}, onto which to resample")
    remedies = {"background_to_zero": options.background_to_zero, "allow_lost_labels": options.allow_lost_labels}
    with ThreadPoolExecutor(num_processes) as pool:
        jobs = pool.map(lambda case: check_case(family, case, options.resample_to, **remedies), _taken(cases, options))
        list(tqdm(jobs, total=len(_taken(cases, options)), desc="Checking", disable=None))
    return cases


def _write_all(
    family: DatasetFamily,
    source: Path,
    cases: list[SourceCase],
    target: Path,
    options: Options,
    num_processes: int,
    lock: Lock,
) -> None:
    """Write the data set if nothing is wrong with any case."""
    problems = [problem for case in _taken(cases, options) for problem in case.problems]
    if problems:
        more = f" (and {len(problems) - 1} more problems: --dry_run lists all)" if len(problems) > 1 else ""
        raise UserError(problems[0] + more)
    if not _taken(cases, options):
        raise UserError(f"no complete case in {source}: every one lacks a channel, see --dry_run")
    partial = _work_folder(target, _state(family, options, _taken(cases, options)))
    _write(family, cases, partial, target.name, options, num_processes)
    _keep_only_what_was_planned(partial, family, _taken(cases, options))
    (partial / STATE).unlink()
    lock.check()
    partial.rename(target)


def dataset_lock(dataset_id: int, name: str) -> Lock:
    """The lock of a new raw data set, whatever its name: an id may be used once.

    Raises:
        UserError: See :func:`target_folder`; or another process writes this id.
    """
    return acquire(
        target_folder(dataset_id, name).with_name(f"Dataset{dataset_id:03d}"), f"data set {dataset_id} in nnUNet_raw"
    )


def _work_folder(target: Path, state: dict[str, Any]) -> Path:
    """A work folder of this run's own, with what an interrupted run of the same conversion has written."""
    own = new_work_folder(target)
    for left in left_work_folders(target.parent, target.name.split("_")[0] + "_"):
        if own.exists() or _read_state(left) != state:
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.rename(own)
    if not own.exists():
        own.mkdir()
        write_json(own / STATE, state)
    return own


def _keep_only_what_was_planned(folder: Path, family: DatasetFamily, cases: Sequence[SourceCase]) -> None:
    """Compare images and labels with the plan; remove what a killed run left beside them.

    Raises:
        UserError: Something that was written is gone.
    """
    channels = range(len(family.channels))
    planned = {
        f"{'imagesTr' if case.labelled else UNLABELLED}/{case.identifier}_{c:04d}{TARGET_ENDING}"
        for case in cases
        for c in channels
    }
    planned |= {f"labelsTr/{case.identifier}{TARGET_ENDING}" for case in cases if case.labelled}
    found = {f"{sub}/{name}" for sub in ("imagesTr", "labelsTr", UNLABELLED) for name in os.listdir(folder / sub)}
    if planned - found:
        raise UserError(f"{folder / min(planned - found)} was written and is gone again: repeat the command")
    for name in found - planned:
        (folder / name).unlink()


def _taken(cases: Sequence[SourceCase], options: Options) -> list[SourceCase]:
    return [case for case in cases if not (case.missing and options.skip_incomplete)]


def _state(family: DatasetFamily, options: Options, cases: Sequence[SourceCase]) -> dict[str, Any]:
    """What decides the result of a conversion: an interrupted one is taken up again only where this is equal."""
    return {
        "family": repr(replace(family, finder=None)),  # a function has no lasting name
        "options": repr(options),
        "versions": versions(),
        "cases": {case.identifier: dict(sorted(case.sha256.items())) for case in cases},
    }


def _read_state(folder: Path) -> Any:
    try:
        return json.loads((folder / STATE).read_text())
    except (OSError, ValueError):
        return None


def target_folder(dataset_id: int, name: str) -> Path:
    if not nnUNet_raw.is_set():
        raise UserError("the environment variable nnUNet_raw is not set: it must name the folder of raw data sets")
    raw = Path(nnUNet_raw)
    if not raw.is_dir():
        raise UserError(f"nnUNet_raw={raw} is not a folder: create it first")
    if not 1 <= dataset_id <= 999:
        raise UserError(f"-d {dataset_id}: a data set id is a number from 1 to 999")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise UserError(f"--name {name!r}: use letters, digits, _ and - only")
    used = sorted(p.name for p in raw.glob(f"Dataset{dataset_id:03d}_*"))
    if used:
        raise UserError(f"-d {dataset_id}: this data set id is used already by {raw / used[0]}")
    return raw / f"Dataset{dataset_id:03d}_{name}"


def _write(
    family: DatasetFamily,
    all_cases: Sequence[SourceCase],
    folder: Path,
    name: str,
    options: Options,
    num_processes: int,
) -> None:
    cases = _taken(all_cases, options)
    for sub in ("imagesTr", "labelsTr", UNLABELLED):
        (folder / sub).mkdir(exist_ok=True)
    with ThreadPoolExecutor(num_processes) as pool:
        jobs = pool.map(lambda case: _write_case(family, case, folder, options), cases)
        list(tqdm(jobs, total=len(cases), desc="Writing", disable=None))
    labelled = [case.identifier for case in cases if case.labelled]
    generate_dataset_json(
        str(folder),
        channel_names=dict(enumerate(family.channels)),
        labels=family.labels,
        num_training_cases=len(labelled),
        file_ending=TARGET_ENDING,
        regions_class_order=family.regions_class_order,
        dataset_name=name,
        reference=family.citation,
        license=family.licence,
        description=family.title,
        converted_by=f"emim_nnunet {versions()['emim_nnunet']}",
    )
    dataset_json = json.loads((folder / "dataset.json").read_text())
    write_json(folder / "dataset.json", dataset_json | {"citation": family.citation})
    patients = {case.identifier: case.patient for case in cases}
    if len(set(patients.values())) < len(patients):
        write_json(folder / PATIENTS, patients)
    if len({patients[case] for case in labelled}) < len(labelled):
        ensure_splits(folder, labelled)
    missing = {case.identifier: case.missing for case in cases if case.missing}
    if missing:
        write_json(folder / "missing_channels.json", missing)
    write_json(folder / "provenance.json", _provenance(family, all_cases, options))


def _write_case(family: DatasetFamily, case: SourceCase, folder: Path, options: Options) -> None:
    images = folder / ("imagesTr" if case.labelled else UNLABELLED)
    reference = read_image(case.files[options.resample_to]) if options.resample_to and case.on_other_grid else None
    mask = read_image(case.files[MASK]) if MASK in case.files else None
    for number, channel in enumerate(family.channels):
        target = images / f"{case.identifier}_{number:04d}{TARGET_ENDING}"
        grid = reference if channel in case.on_other_grid else None
        if os.path.lexists(target):
            continue
        if channel in case.missing:
            save_image(zeros_like(read_image(case.files[_grid_channel(family, case, options)])), target)
        else:
            _write_image(case, channel, target, grid, mask, options)
    target = folder / "labelsTr" / f"{case.identifier}{TARGET_ENDING}"
    if case.labelled and not target.exists():
        _write_label(family, case.files[LABEL], target, reference if LABEL in case.on_other_grid else None)


def _grid_channel(family: DatasetFamily, case: SourceCase, options: Options) -> str:
    """The channel whose grid the case has."""
    return options.resample_to or next(channel for channel in family.channels if channel in case.files)


def zeros_like(image: sitk.Image) -> sitk.Image:
    zeros = sitk.Image(image.GetSize(), sitk.sitkInt16)
    zeros.CopyInformation(image)
    return zeros


def _write_image(
    case: SourceCase,
    channel: str,
    target: Path,
    grid: sitk.Image | None,
    mask: sitk.Image | None,
    options: Options,
) -> None:
    """The same bytes, or a link to them, where the image is right already."""
    file = case.files[channel]
    if not case.copied(channel):
        image = remedied(read_image(file), grid, mask, background_to_zero=options.background_to_zero).image
        save_image(image, target)
    elif options.link:
        target.symlink_to(file.path.resolve())
    elif options.strip_header:
        copy_without_text(file.path, target)
    else:
        copy_file(file.path, target)


def _write_label(family: DatasetFamily, file: SourceFile, target: Path, grid: sitk.Image | None) -> None:
    image = read_image(file)
    voxels = sitk.GetArrayFromImage(image)
    mapped = np.zeros(voxels.shape, dtype=np.uint8)
    for old, new in family.label_map.items():
        mapped[voxels == old] = new
    result = sitk.GetImageFromArray(mapped)
    result.CopyInformation(image)
    save_image(result if grid is None else on_grid(result, grid), target)


def _provenance(family: DatasetFamily, all_cases: Sequence[SourceCase], options: Options) -> dict[str, Any]:
    """What every file was made of, and how. Names of files and folders may say who a patient is: there are none."""
    cases = _taken(all_cases, options)
    left_out = {case.identifier: case.missing for case in all_cases if case not in cases}
    return {
        "family": family.name,
        "licence": family.licence,
        "citation": family.citation,
        "overlaps_with": family.overlaps,
        "resampled_to": options.resample_to,
        "masked": family.masked,
        "header_text_left_out": options.strip_header,
        "num_labelled": sum(case.labelled for case in cases),
        "num_unlabelled": sum(not case.labelled for case in cases),
        "left_out_for_missing_channels": left_out,
        "cases": {
            case.identifier: {
                "labelled": case.labelled,
                "patient": case.patient,
                "orientation_known": all(
                    says_orientation(case.files[c].path) for c in family.channels if c in case.files
                ),
                "resampled": case.on_other_grid,
                "filled_with": case.filled_with,
                "set_to_zero": case.set_to_zero,
                "background_not_zero": {c: found._asdict() for c, found in case.background.items()},
                "lost_labels": case.lost_labels,
                "missing": case.missing,
                "sha256": dict(sorted(case.sha256.items())),
            }
            for case in cases
        },
        "versions": versions(),
    }
