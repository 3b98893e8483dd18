"""Finding the cases of a source by the names of its files."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from emim_nnunet.dataset_conversion.case import LABEL, MASK, SourceCase, SourceFile
from emim_nnunet.dataset_conversion.family import ENDING, STACK, DatasetFamily
from emim_nnunet.datasets.splits import MAX_LISTED, alike
from emim_nnunet.errors import UserError, listed

CASE_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.+-]*[A-Za-z0-9_+-])?")  # Windows takes no dot at the end
WINDOWS_DEVICE = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)
MAX_ID_LENGTH = 180  # file systems take 255 bytes; what is made of a case, and of its copy in a pool, has longer names
NUM_SHOWN, MAX_ID_SHOWN = 3, 40
logger = logging.getLogger(__name__)


def find_cases(family: DatasetFamily, source: Path, *, for_training: bool = True) -> list[SourceCase]:
    """Cases by the rules of the family, wherever they lie below ``source``.

    Args:
        family: The table that describes the data set.
        source: Folder that holds it; of families with a finder of their own it may be a file.
        for_training: Whether ids that look like visits of one patient, or like files of another kind, are told.

    Returns:
        Cases with at least one image, ordered by id; each knows which channels it lacks.

    Raises:
        UserError: No folder, no case, two files for the same thing, a file that several rules match, ids that cannot be names
            of files or mean the same file, or no segmentation where the family needs them.
    """
    found = _cases_by_rules(family, source) if family.finder is None else family.finder(source)
    _check_names([case.identifier for case in found], "case id")
    _check_names(sorted({case.patient for case in found}), "patient")
    cases = {case.identifier: case for case in found}
    for case in found:
        case.missing = [channel for channel in family.channels if channel not in case.files]
    alone = sorted(key for key, case in cases.items() if case.labelled and len(case.missing) == len(family.channels))
    if alone:
        logger.warning("%d segmentations without images are ignored: %s", len(alone), ", ".join(alone[:MAX_LISTED]))
    with_images = {key: case for key, case in cases.items() if len(case.missing) < len(family.channels)}
    if not with_images:
        raise UserError(_no_case(family, source))
    if family.asked_label and not any(case.labelled for case in with_images.values()):
        raise UserError(
            f"--label {family.asked_label}: none of the {len(with_images)} cases in {source} has such a segmentation"
        )
    if for_training:
        _warn_of_odd_ids(family, with_images, every_case_a_patient=all(c.patient == c.identifier for c in found))
    return [with_images[key] for key in sorted(with_images)]


def _warn_of_odd_ids(family: DatasetFamily, names: Collection[str], *, every_case_a_patient: bool) -> None:
    """Say where ids look as if a file were taken for what it is not, or a visit for a patient."""
    longer = _longer_ids(names) if family.name == "folders" else []
    if longer:
        logger.warning(
            "WARNING: ids that are others with something added: %s. If such files are segmentations or other channels, give "
            "their pattern with --label or --channel",
            ", ".join(longer[:MAX_LISTED]),
        )
    group = alike(names) if every_case_a_patient else []
    if group:
        logger.warning(
            "WARNING: %s look like visits of one patient, but each case is taken for a patient: use {patient} and {visit} in "
            "the patterns of `folders`, or emim_plan_and_preprocess --patients",
            ", ".join(group[:MAX_LISTED]),
        )


def _longer_ids(names: Collection[str]) -> list[str]:
    """Ids such as ``p0_mask`` beside ``p0``."""
    return sorted(n for n in names if any(n[: place.start()] in names for place in re.finditer(r"[_.+-]", n)))


def _check_names(names: Sequence[str], what: str) -> None:
    """Whether files can be named so on every system, no two of them alike where upper and lower case are the same."""
    earlier: dict[str, str] = {}
    for name in names:
        if earlier.get(name.lower()) == name:
            raise UserError(f"{what} {name} stands for two cases")
        if len(name) > MAX_ID_LENGTH:
            raise UserError(
                f"{what} {name[:MAX_ID_SHOWN]!r}... is too long for names of files: {len(name)} letters, at most "
                f"{MAX_ID_LENGTH}"
            )
        if not CASE_ID.fullmatch(name) or WINDOWS_DEVICE.fullmatch(name):
            raise UserError(
                f"{what} {name!r} cannot be a file name: use letters, digits, _ . + and -, no dot at the end, no name of a "
                f"device of Windows"
            )
        other = earlier.setdefault(name.lower(), name)
        if other != name:
            raise UserError(
                f"{what} {other} and {name} differ in upper and lower case only: on many disks that is one file"
            )


def _no_case(family: DatasetFamily, source: Path) -> str:
    """What was looked for and what lies there."""
    there = [relative for _, relative in image_files(source)]
    there = [path for path in there if re.search(rf"{ENDING}$", path, re.IGNORECASE)] or there
    shown = f"there are {listed(list(map(repr, there)), NUM_SHOWN)}" if there else "there is no file"
    wanted = ", ".join(rule.example for rule in family.rules if rule.meaning not in (LABEL, MASK))
    advice = "compare the patterns" if family.name == "folders" else "`emim_convert folders` takes other names"
    return f"no case found in {source}: expected files such as {wanted} in any folder, {shown}; {advice}"


def _cases_by_rules(family: DatasetFamily, source: Path) -> list[SourceCase]:
    """A case for every id that a file below the folder names."""
    if not source.is_dir():
        raise UserError(f"SOURCE {source} is not a folder")
    cases: dict[str, SourceCase] = {}
    for path, relative in image_files(source):
        reading = _read_path(family, relative)
        if reading is None:
            continue
        groups, what = reading
        identifier, patient = family.names(groups)
        case = cases.setdefault(identifier, SourceCase(identifier, patient))
        if case.patient != patient:
            raise UserError(
                f"case id {identifier} stands for patient {case.patient} and for patient {patient} ({path})"
            )
        entries = {c: SourceFile(path, i) for c, i in (family.stack or {}).items()} if what == STACK else {}
        for meaning, file in (entries or {what: SourceFile(path)}).items():
            earlier = case.files.get(meaning)
            if earlier is None or _wins(family, file, earlier):
                case.files[meaning] = file
            elif not _wins(family, earlier, file):
                raise UserError(
                    f"two files for {meaning} of case {identifier}: {earlier.path} and {file.path}: remove one, or, if they "
                    f"are of two visits, use `folders` with {{patient}} and {{visit}}"
                )
    return list(cases.values())


def _read_path(family: DatasetFamily, relative: str) -> tuple[dict[str, str], str] | None:
    """Named groups and meaning of a path; of several rules that match, the one that is a special case of all others counts."""
    rules = [rule for rule in family.rules if rule.match(relative)]
    if not rules:
        return None
    best = [rule for rule in rules if all(rule is other or rule.is_special_case_of(other) for other in rules)]
    if not best:
        raise UserError(
            f"{relative!r} matches {' and '.join(rule.title or rule.example for rule in rules)}: make one of the patterns a "
            f"special case of the other, as {{case}}_mask.nii.gz is of {{case}}.nii.gz"
        )
    best[0].check_reading(relative)
    return best[0].match(relative)


def image_files(source: Path) -> Iterator[tuple[Path, str]]:
    """Files below a folder in a fixed order, without those of macOS; links to folders are not followed, so loops do no harm."""
    for folder, folders, names in os.walk(source):
        folders.sort()
        for name in sorted(names):
            path = Path(folder) / name
            if not name.startswith(".") and path.is_file():
                yield path, path.relative_to(source).as_posix()


def _wins(family: DatasetFamily, file: SourceFile, other: SourceFile) -> bool:
    """Whether a file is the one that the family prefers of two."""
    if family.preferred is None:
        return False
    here, there = (re.fullmatch(family.preferred, f.path.as_posix(), re.IGNORECASE) for f in (file, other))
    return here is not None and there is None
