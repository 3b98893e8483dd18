"""Images as they are: which case and which modality each file is, by its name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import SimpleITK as sitk

from emim_nnunet.dataset_conversion.case import SourceCase, SourceFile
from emim_nnunet.dataset_conversion.checking import check_case
from emim_nnunet.dataset_conversion.family import BACKGROUND_ONLY, ENDING, DatasetFamily
from emim_nnunet.dataset_conversion.finding import find_cases, image_files
from emim_nnunet.dataset_conversion.generic import folders_family
from emim_nnunet.dataset_conversion.options import Options
from emim_nnunet.dataset_conversion.source_image import read_image
from emim_nnunet.datasets.channel_names import standard_name
from emim_nnunet.errors import UserError

SEPARATORS = re.compile(r"[_.\-]")
NUMBER = re.compile(r"(?P<case>.+)_(?P<number>\d{4})")  # nnU-Net's own names


def input_family(channels: Sequence[str], patterns: Sequence[tuple[str, str]]) -> DatasetFamily:
    """The table by which cases of a model are found.

    Args:
        channels: The model's channels.
        patterns: Channels, by any of their names, and patterns as ``emim_convert folders`` takes them. Empty = by the names of
            the files, see :func:`modality_of`.

    Raises:
        UserError: A pattern is of no channel of the model, or not as it must be; or two are of the same channel.
    """
    if not patterns:
        return DatasetFamily(
            name="images as they are",
            title="images as they are",
            default_dataset_name="Images",
            channels=tuple(channels),
            rules=(),
            label_map={},
            labels=BACKGROUND_ONLY,
            finder=partial(_cases_by_name, tuple(channels)),
        )
    known = _by_standard_name(channels)
    named: dict[str, str] = {}
    for name, pattern in patterns:
        channel = name if name in channels else known.get(standard_name(name))
        if channel is None:
            raise UserError(f"--channel {name}: the model's modalities are {', '.join(channels)}")
        if channel in named:
            raise UserError(f"--channel {name}: {channel} has a pattern already")
        named[channel] = pattern
    return replace(folders_family(named, None, {}), channels=tuple(channels))


def checked_cases(family: DatasetFamily, source: Path, options: Options, num_threads: int) -> list[SourceCase]:
    """Find the cases in a folder and read all their images.

    Args:
        family: See :func:`input_family`.
        source: Folder, searched with all folders below.
        options: How other grids are treated.
        num_threads: Number of cases that are read at a time.

    Returns:
        The cases by id, nothing wrong with any of them; each knows which channels it lacks. An image of zeros is none.

    Raises:
        UserError: There is no case, a case has no modality, or something is wrong with an image; the message names the first.
    """
    if options.resample_to is not None and options.resample_to not in family.channels:
        raise UserError(f"--resample_to {options.resample_to}: the modalities are {', '.join(family.channels)}")
    cases = find_cases(family, source, for_training=False)

    def check(case: SourceCase) -> None:
        _leave_out_zeros(case)
        case.missing = [channel for channel in family.channels if channel not in case.files]
        if not case.files:
            case.problems.append(f"case {case.identifier} has no modality: its images are 0 everywhere")
        elif options.resample_to in case.missing:
            case.problems.append(f"case {case.identifier} lacks {options.resample_to}, onto which to resample")
        else:
            check_case(family, case, options)

    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        list(pool.map(check, cases))
    problems = [problem for case in cases for problem in case.problems]
    if problems:
        raise UserError(problems[0] + (f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""))
    return cases


def _leave_out_zeros(case: SourceCase) -> None:
    """Take images of zeros for what they stand for: a modality that the case lacks."""
    for channel, file in list(case.files.items()):
        try:
            image = read_image(file)  # a view does not keep it
        except (RuntimeError, ValueError):
            continue  # check_case says what is wrong
        if not sitk.GetArrayViewFromImage(image).any():
            del case.files[channel]


def _by_standard_name(channels: Sequence[str]) -> dict[str, str]:
    """Standard name -> channel; names that several channels share are left out."""
    names = [standard_name(channel) for channel in channels]
    return {name: channel for name, channel in zip(names, channels, strict=True) if name and names.count(name) == 1}


def modality_of(stem: str, channels: Sequence[str]) -> tuple[str, str] | None:
    """Case id and channel by the name of a file.

    Args:
        stem: Name of the file without its ending.
        channels: The model's channels.

    Returns:
        ``CASE_0001`` is the second channel, as nnU-Net has it; ``CASE_T1ce``, ``CASE-t1c`` or ``CASE_t1_ce`` the one of that
        name, the longest that is one. The id is empty for a file that is named by its channel only. None = no channel is in
        the name.
    """
    number = NUMBER.fullmatch(stem)
    if number is not None:
        place = int(number["number"])
        return (number["case"], channels[place]) if place < len(channels) else None
    known = _by_standard_name(channels)
    for begin in (0, *(place.end() for place in SEPARATORS.finditer(stem))):
        channel = known.get(standard_name(stem[begin:]))
        if channel is not None:
            return stem[: max(0, begin - 1)], channel
    return None


def _cases_by_name(channels: Sequence[str], source: Path) -> list[SourceCase]:
    """A case for every id; of a file that is named by its channel only, the id is the name of its folder."""
    if not source.is_dir():
        raise UserError(f"-i {source} is not a folder")
    cases: dict[str, SourceCase] = {}
    for path, relative in image_files(source):
        ending = re.search(rf"{ENDING}$", path.name, re.IGNORECASE)
        if ending is None:
            continue
        found = modality_of(path.name[: ending.start()], channels)
        if found is None:
            raise UserError(
                f"{relative!r}: its name ends in no modality of the model ({', '.join(channels)}): move it away, or say with "
                f"--channel NAME=PATTERN which files are meant"
            )
        identifier, channel = found[0] or path.resolve().parent.name, found[1]
        case = cases.setdefault(identifier, SourceCase(identifier, identifier))
        if channel in case.files:
            raise UserError(
                f"two files for {channel} of case {identifier}: {case.files[channel].path} and {path}: remove one, or tell "
                f"visits apart with --channel {channel}={{patient}}/{{visit}}/..."
            )
        case.files[channel] = SourceFile(path)
    if not cases:
        raise UserError(
            f"-i {source}: there is no image (.nii.gz, .nii, .mha) with a modality of the model: {', '.join(channels)}"
        )
    return list(cases.values())
