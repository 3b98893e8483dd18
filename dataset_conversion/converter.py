"""From a checked source to nnU-Net's raw format, by one process or by shards."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from emim_nnunet.dataset_conversion.case import MASK, SourceCase
from emim_nnunet.dataset_conversion.checking import check_case
from emim_nnunet.dataset_conversion.family import DatasetFamily
from emim_nnunet.dataset_conversion.finding import find_cases
from emim_nnunet.dataset_conversion.options import DEFAULTS, Options
from emim_nnunet.dataset_conversion.target import dataset_lock, target_folder
from emim_nnunet.dataset_conversion.work_folder import NEVER, WorkFolder
from emim_nnunet.dataset_conversion.writing import describe, keep_only_what_was_planned
from emim_nnunet.datasets.shards import Shard
from emim_nnunet.errors import UserError, listed
from emim_nnunet.storage.files import left_work_folders, remove_all_leftovers, write_json
from emim_nnunet.storage.locks import Lock

FAILED = "failed.json"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Part:
    """What of a conversion is done.

    Attributes:
        shard: The part of the cases that is converted; None = all.
        finish: Whether only what shards have converted is put together.
        keep_going: Whether cases with problems are left out; otherwise the first one ends the command.

    Raises:
        UserError: They contradict each other.
    """

    shard: Shard | None = None
    finish: bool = False
    keep_going: bool = False

    def __post_init__(self) -> None:
        if self.shard is not None and self.finish:
            raise UserError("--shard and --finish contradict each other: --finish comes when all shards are done")


ALL = Part()


def convert(
    family: DatasetFamily,
    source: Path,
    dataset_id: int,
    dataset_name: str | None = None,
    *,
    options: Options = DEFAULTS,
    num_processes: int = 4,
    dry_run: bool = False,
    part: Part = ALL,
) -> tuple[Path | None, list[SourceCase]]:
    """Convert a data set into ``nnUNet_raw``.

    Everything is read and checked before the first file is written. Labelled cases go to imagesTr and labelsTr, the others to
    imagesUnlabelled. The folder appears under its name only when it is complete; the source is never changed. Until then the
    work lies in a hidden folder beside it, see :class:`.work_folder.WorkFolder`: what is converted already is neither read nor
    written again. One process at a time writes data sets of an id, or shards do.

    Args:
        family: The table that describes the data set.
        source: Folder, searched with all folders below.
        dataset_id: 1 to 999, not used yet.
        dataset_name: NAME in DatasetXXX_NAME; None = the name that the family suggests.
        options: What to do where images are not as nnU-Net needs them.
        num_processes: Number of cases that are read at a time.
        dry_run: Check the source only, and write nothing.
        part: What of it is done.

    Returns:
        The new folder (None for a dry run and a shard), and all cases that were looked at. Those that are taken are checked; of
        those, the ones that still have problems are left out.

    Raises:
        UserError: Anything is not as it must be, or another process writes this id; there is no new folder then.
    """
    name = dataset_name or family.default_dataset_name
    if dry_run:
        target_folder(dataset_id, name)
        cases = _found_cases(family, source, options)
        _check(family, options.taken(cases), options, num_processes)
        return None, cases
    with dataset_lock(dataset_id, name, part.shard) as lock:
        target = target_folder(dataset_id, name)
        work = WorkFolder(target, family, options)
        cases = _found_cases(family, source, options)
        if part.finish:
            _gather(work, options.taken(cases), keep_going=part.keep_going)
        else:
            cases = cases if part.shard is None else part.shard.part(cases)
            _convert_cases(work, options.taken(cases), num_processes, part)
        if part.shard is not None:
            return None, cases
        if not any(not case.problems for case in options.taken(cases)):
            raise UserError(_nothing(source, options.taken(cases)))
        _finish(work, target, cases, lock)
    logger.info("wrote %s", target)
    return target, cases


def _found_cases(family: DatasetFamily, source: Path, options: Options) -> list[SourceCase]:
    """The cases of a source, by the names of their files; those that lack some have a problem."""
    if options.resample_to is not None and options.resample_to not in family.channels:
        raise UserError(f"--resample-to {options.resample_to}: the channels are {', '.join(family.channels)}")
    if options.strip_header and options.link:
        raise UserError("--strip_header does not go with --link: a link shows the file as it is")
    cases = find_cases(family, source)
    for case in cases:
        case.problems += _missing_files(family, case, options)
    return cases


def _check(family: DatasetFamily, cases: Sequence[SourceCase], options: Options, num_processes: int) -> None:
    """Read the files of cases, and note what is wrong with them."""
    with ThreadPoolExecutor(num_processes) as pool:
        jobs = pool.map(lambda case: check_case(family, case, options), cases)
        list(tqdm(jobs, total=len(cases), desc="Checking", disable=None))


def _convert_cases(work: WorkFolder, cases: Sequence[SourceCase], num_processes: int, part: Part) -> None:
    """Check the cases that are not converted yet, then write those that have no problem."""
    todo: dict[str, list[SourceCase]] = {}
    for case in cases:
        reason = NEVER if case.problems else work.restore(case)
        if reason:
            todo.setdefault(reason, []).append(case)
    waiting = [case for group in todo.values() for case in group]
    if len(waiting) < len(cases) or set(todo) - {NEVER}:
        logger.info("%d of %d cases are converted already", len(cases) - len(waiting), len(cases))
        for reason, group in todo.items():
            logger.info("%s", _to_do(group, reason))
    _check(work.family, waiting, work.options, num_processes)
    problems = [problem for case in waiting for problem in case.problems]
    if problems and not part.keep_going:
        more = f" (and {len(problems) - 1} more problems: --dry_run lists all)" if len(problems) > 1 else ""
        raise UserError(problems[0] + more)
    good = [case for case in waiting if not case.problems]
    if good or (waiting and part.shard is not None):
        work.begin()
        for case in waiting:
            if case.problems:
                work.note_failure(case)
    with ThreadPoolExecutor(num_processes) as pool:
        list(tqdm(pool.map(work.do, good), total=len(good), desc="Writing", disable=None))


def _gather(work: WorkFolder, cases: Sequence[SourceCase], *, keep_going: bool) -> None:
    """Take over what shards have found out; with ``keep_going``, cases that failed there get their problem.

    Raises:
        UserError: Cases are not converted.
    """
    todo: dict[str, list[SourceCase]] = {}
    why = ""
    for case in cases:
        reason = work.restore(case)
        if not reason:
            continue
        failure = work.failure(case)
        if failure and keep_going:
            case.problems = [failure]
        else:
            todo.setdefault(reason, []).append(case)
            why = why or (f"; {failure}" if failure else "")
    if todo:
        missing = sum(map(len, todo.values()))
        lines = "; ".join(_to_do(group, reason) for reason, group in todo.items())
        raise UserError(
            f"the conversion is not complete, {len(cases) - missing} of {len(cases)} cases are converted: {lines}{why}"
        )


def _to_do(cases: Sequence[SourceCase], reason: str) -> str:
    return f"{len(cases)} to do ({listed([case.identifier for case in cases])}): {reason}"


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


def _nothing(source: Path, taken: Sequence[SourceCase]) -> str:
    """Why no case is left."""
    if not taken:
        return f"no complete case in {source}: every one lacks a channel, see --dry_run"
    return taken[0].problems[0]


def _finish(work: WorkFolder, target: Path, cases: Sequence[SourceCase], lock: Lock) -> None:
    """Describe what is converted, and give the folder its name."""
    taken = work.options.taken(cases)
    failed = {case.identifier: case.problems[0] for case in taken if case.problems}
    good = [case for case in cases if case.identifier not in failed]
    describe(work.family, good, work.place, target.name, work.options)
    keep_only_what_was_planned(work.place, work.family, work.options.taken(good))
    if failed:
        write_json(work.place / FAILED, failed)
    lock.check()
    for sub in ("records", "failed"):
        shutil.rmtree(work.place / sub)
    remove_all_leftovers(work.place)
    work.place.rename(target)
    beginning = f".{target.name.split('_')[0]}_"  # the work on other names of this id, and of older versions
    for left in [*target.parent.glob(f"{beginning}*.converting"), *left_work_folders(target.parent, beginning[1:])]:
        shutil.rmtree(left, ignore_errors=True)
