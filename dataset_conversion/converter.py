"""From a checked source to nnU-Net's raw format, all or nothing."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from emim_nnunet.dataset_conversion.case import MASK, SourceCase
from emim_nnunet.dataset_conversion.checking import check_case
from emim_nnunet.dataset_conversion.family import DatasetFamily
from emim_nnunet.dataset_conversion.finding import find_cases
from emim_nnunet.dataset_conversion.options import DEFAULTS, Options
from emim_nnunet.dataset_conversion.target import dataset_lock, target_folder
from emim_nnunet.dataset_conversion.writing import keep_only_what_was_planned, write_data_set
from emim_nnunet.errors import UserError
from emim_nnunet.storage.files import left_work_folders, new_work_folder, write_json
from emim_nnunet.storage.locks import Lock
from emim_nnunet.storage.versions import versions

STATE = "state.json"
logger = logging.getLogger(__name__)


def convert(
    family: DatasetFamily,
    source: Path,
    dataset_id: int,
    dataset_name: str | None = None,
    *,
    options: Options = DEFAULTS,
    num_processes: int = 4,
    dry_run: bool = False,
) -> tuple[Path | None, list[SourceCase]]:
    """Convert a data set into ``nnUNet_raw``.

    Everything is read and checked first. Labelled cases go to imagesTr and labelsTr, the others to imagesUnlabelled. The
    folder appears under its name only when it is complete; the source is never changed. Until then the work lies in a hidden
    folder beside it, which the same command takes up again. One process at a time writes data sets of an id.

    Args:
        family: The table that describes the data set.
        source: Folder, searched with all folders below.
        dataset_id: 1 to 999, not used yet.
        dataset_name: NAME in DatasetXXX_NAME; None = the name that the family suggests.
        options: What to do where images are not as nnU-Net needs them.
        num_processes: Number of cases that are read at a time.
        dry_run: Check the source only, and write nothing.

    Returns:
        The new folder (None for a dry run), and all cases that were found, checked where they are taken.

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
        case.problems += _missing_files(family, case, options)
    taken = options.taken(cases)
    with ThreadPoolExecutor(num_processes) as pool:
        jobs = pool.map(lambda case: check_case(family, case, options), taken)
        list(tqdm(jobs, total=len(taken), desc="Checking", disable=None))
    return cases


def _missing_files(family: DatasetFamily, case: SourceCase, options: Options) -> list[str]:
    """A line for each kind of file without which a case cannot be converted."""
    problems = []
    if family.masked and MASK not in case.files:
        problems.append(f"case {case.identifier} has no file that --mask names")
    if case.missing and not (options.skip_incomplete or options.allow_missing):
        problems.append(
            f"case {case.identifier}: missing {', '.join(case.missing)} (--skip_incomplete leaves it out, "
            f"--allow_missing takes it without)"
        )
    elif options.resample_to in case.missing:
        problems.append(f"case {case.identifier} lacks {options.resample_to}, onto which to resample")
    return problems


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
    taken = options.taken(cases)
    problems = [problem for case in taken for problem in case.problems]
    if problems:
        more = f" (and {len(problems) - 1} more problems: --dry_run lists all)" if len(problems) > 1 else ""
        raise UserError(problems[0] + more)
    if not taken:
        raise UserError(f"no complete case in {source}: every one lacks a channel, see --dry_run")
    partial = _work_folder(target, _state(family, options, taken))
    write_data_set(family, cases, partial, target.name, options, num_processes)
    keep_only_what_was_planned(partial, family, taken)
    (partial / STATE).unlink()
    lock.check()
    partial.rename(target)


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


def _state(family: DatasetFamily, options: Options, cases: Sequence[SourceCase]) -> dict[str, Any]:
    """What decides the result of a conversion: an interrupted one is taken up again only where this is equal."""
    return {
        "family": repr(replace(family, finder=None)),  # a function has no lasting name
        "options": repr(options),
        "versions": versions(),
        "cases": {case.identifier: dict(sorted(case.sha256.items())) for case in cases},
    }


def _read_state(folder: Path) -> Any:
    """The state of a work folder; None where it has none that can be read."""
    try:
        return json.loads((folder / STATE).read_text())
    except (OSError, ValueError):
        return None
