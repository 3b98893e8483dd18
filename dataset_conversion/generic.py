"""Data sets of one's own: BIDS, and folders with a pattern per channel. Made from options of the command."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emim_nnunet.dataset_conversion.case import LABEL, MASK
from emim_nnunet.dataset_conversion.dicom import DEFAULT_DICOM, dicom_family
from emim_nnunet.dataset_conversion.family import (
    BACKGROUND_ONLY,
    ENDING,
    DatasetFamily,
    FileRule,
)
from emim_nnunet.dataset_conversion.unlabelled import DEFAULT_FOMO, DEFAULT_NNSSL, fomo_family, nnssl_family
from emim_nnunet.errors import UserError

BIDS_CASE = r"(?P<patient>sub-[A-Za-z0-9]+)(?:_ses-[A-Za-z0-9]+)?"
BIDS_ENTITIES = r"(?:_[a-z]+-[A-Za-z0-9]+)*?"
PLACE = re.compile(r"(\{(?:case|patient|visit)\}|\*)")
EXAMPLES = {"{case}": "case01", "{patient}": "patient01", "{visit}": "visit1", "*": "any"}
CASE_FORMATS = {  # placeholders of a pattern -> case id
    frozenset({"{case}"}): "{case}",
    frozenset({"{patient}"}): "{patient}",
    frozenset({"{patient}", "{visit}"}): "{patient}_{visit}",
    frozenset({"{patient}", "{case}"}): "{case}",
}


def bids_family(
    channels: dict[str, str], label: str | None, classes: dict[str, int], mask: str | None = None
) -> DatasetFamily:
    """A BIDS data set; a session (or a subject without sessions) is a case.

    Args:
        channels: Channel -> BIDS suffix, for example ``{"T1": "T1w", "Flair": "FLAIR"}``.
        label: Suffix of the segmentations, wherever they lie (derivatives too); None = there are none.
        classes: Name of a class -> its value in the segmentations, 1 to 255.
        mask: Suffix of the masks of brain or body, wherever they lie; None = there are none.

    Raises:
        UserError: A suffix is given twice, or the classes are not as they must be.
    """
    wanted = channels | ({LABEL: label} if label else {}) | ({MASK: mask} if mask else {})
    meaning: dict[str, str] = {}
    for what, suffix in wanted.items():
        if meaning.setdefault(suffix.lower(), what) != what:
            raise UserError(f"the suffix {suffix!r} is given twice: which file is what must be clear from its name")
    what = "|".join(map(re.escape, meaning))
    return _own(
        "bids",
        (
            FileRule(
                rf"(?:.*/)?(?P<case>{BIDS_CASE}){BIDS_ENTITIES}_(?P<what>{what}){ENDING}",
                meaning,
                f"sub-01/anat/sub-01_{next(iter(channels.values()))}.nii.gz",
            ),
        ),
        channels,
        label,
        classes,
        masked=mask is not None,
    )


def folders_family(
    channels: dict[str, str], label: str | None, classes: dict[str, int], mask: str | None = None
) -> DatasetFamily:
    """Files by a pattern per channel.

    Args:
        channels: Channel -> path below the source in which ``{case}`` is the case id and ``*`` any text without ``/``, for
            example ``{case}/T1.nii.gz`` or ``images/{case}_t1.nii.gz``; or ``{patient}`` and ``{visit}``, for example
            ``{patient}/{visit}_t1.nii.gz``, which make the case id ``patient_visit``. A patient of ``{patient}/{case}`` has
            several cases with ids of their own.
        label: Such a path of the segmentations; None = there are none.
        classes: Name of a class -> its value in the segmentations, 1 to 255.
        mask: Such a path of the masks of brain or body; None = there are none.

    Raises:
        UserError: A pattern does not say what the case is, or the classes are not as they must be.
    """
    wanted = channels | ({LABEL: label} if label else {}) | ({MASK: mask} if mask else {})
    names = {pattern: frozenset(PLACE.findall(pattern)) - {"*"} for pattern in wanted.values()}
    for pattern, found in names.items():
        if found not in CASE_FORMATS or re.search("[{}]", PLACE.sub("", pattern)):
            raise UserError(
                f"the pattern {pattern!r} must contain {{case}}, the place of the case id, or {{patient}}, alone or with "
                f"{{visit}} or {{case}}, and no other word in braces"
            )
    if len(set(names.values())) > 1:
        raise UserError(
            f"the patterns {', '.join(map(repr, names))} must contain the same of {{case}}, {{patient}} and {{visit}}"
        )
    rules = tuple(_folders_rule(pattern, what) for what, pattern in wanted.items())
    case_format = CASE_FORMATS[next(iter(names.values()))]
    return _own("folders", rules, channels, label, classes, masked=mask is not None, case_format=case_format)


def _folders_rule(pattern: str, what: str) -> FileRule:
    """The rule of a pattern in which a placeholder that occurs twice stands for the same text."""
    example = PLACE.sub(lambda place: EXAMPLES[place[0]], pattern.strip("/"))
    longest = _path_pattern(pattern, "+") if "{patient}" in pattern else None
    return FileRule(_path_pattern(pattern, "+?"), what, example, pattern, longest)


def _path_pattern(pattern: str, repetition: str) -> str:
    """The regular expression of a pattern; ``repetition`` makes its groups as short or as long as possible."""
    seen: set[str] = set()
    result = ""
    for part in PLACE.split(pattern.strip("/")):
        if part == "*" or not PLACE.fullmatch(part):
            result += r"[^/]*" if part == "*" else re.escape(part)
        else:
            name = part.strip("{}")
            result += f"(?P={name})" if part in seen else f"(?P<{name}>[^/]{repetition})"
            seen.add(part)
    return rf"(?:.*/)?{result}"


def _own(
    name: str,
    rules: tuple[FileRule, ...],
    channels: dict[str, str],
    label: str | None,
    classes: dict[str, int],
    **more: Any,
) -> DatasetFamily:
    """The table of a data set of the user's own; label values become consecutive."""
    if label and not classes:
        raise UserError("--label needs --classes NAME=VALUE ...: what the values of the segmentation mean")
    values = sorted(set(classes.values()))
    if 0 in values or len(values) < len(classes):
        raise UserError("--classes: values must be different and not 0, which is the background")
    consecutive = {value: number for number, value in enumerate(values, 1)}  # nnU-Net allows no gaps
    return DatasetFamily(
        name=name,
        title=f"{name} with {', '.join(channels)}",
        default_dataset_name="Own",
        channels=tuple(channels),
        rules=rules,
        label_map={0: 0} | consecutive if label else {},
        asked_label=label or "",
        labels={"background": 0} | {k: consecutive[v] for k, v in classes.items()} if label else BACKGROUND_ONLY,
        licence="not stated",
        citation="not stated",
        **more,
    )


def made_of_options(
    name: str,
    channels: dict[str, str],
    label: str | None,
    classes: dict[str, int],
    mask: str | None = None,
    series_table: Path | None = None,
) -> DatasetFamily | None:
    """The family that options describe.

    Args:
        name: ``bids``, ``folders``, ``dicom``, ``fomo60k`` or ``nnssl``.
        channels: What ``--channel`` says; empty where it was not given.
        label: What ``--label`` says: a suffix or a pattern.
        classes: What ``--classes`` says: name of a class -> its value in the segmentations.
        mask: What ``--mask`` says: a suffix or a pattern.
        series_table: What ``--series_table`` says.

    Returns:
        None for other names.

    Raises:
        UserError: Options are missing, or not as the family needs them.
    """
    if series_table is not None and name != "dicom":
        raise UserError("--series_table goes with dicom only")
    own: dict[str, Callable[..., DatasetFamily]] = {"bids": bids_family, "folders": folders_family}
    if name in own:
        if not channels:
            raise UserError(f"{name} needs --channel NAME=..., one for each channel")
        return own[name](channels, label, classes, mask)
    if name == "dicom":
        if label or classes:
            raise UserError("dicom takes no segmentations: --label and --classes do not go with it")
        return dicom_family(channels or DEFAULT_DICOM, series_table)
    if name == "fomo60k":
        return fomo_family(channels or DEFAULT_FOMO)
    if name == "nnssl":
        return nnssl_family(channels or DEFAULT_NNSSL)
    return None
