"""What a converter must know about a family of data sets."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emim_nnunet.dataset_conversion.case import SourceCase
from emim_nnunet.errors import UserError

ENDING = r"\.(?:nii(?:\.gz)?|mha)"
STACK = "stack"
BACKGROUND_ONLY = {"background": 0, "foreground": 1}  # nnU-Net wants a foreground class, even where nothing is labelled


@dataclass(frozen=True)
class FileRule:
    """Which files belong to a family.

    Attributes:
        pattern: Regular expression for the whole path below the source, with ``/`` between folders; upper and lower case are
            the same. Its named groups make the case id and name the patient; the group ``what``, if there is one, is looked
            up in ``meaning``.
        meaning: Lower-case text of ``what`` -> channel, :data:`LABEL` or :data:`MASK`; or, without that group, the channel
            itself, :data:`LABEL`, :data:`MASK`, or :data:`STACK` for a four-dimensional image of all channels.
        example: A path that the pattern matches, for messages.
        title: The pattern as the user wrote it, for messages.
        other_reading: The pattern with groups as long as possible where ``pattern`` has them as short as possible. A path that
            it reads in another way is refused: nobody knows where its patient ends and its visit begins.
    """

    pattern: str
    meaning: dict[str, str] | str
    example: str = ""
    title: str = ""
    other_reading: str | None = None

    def match(self, path: str) -> tuple[dict[str, str], str] | None:
        """Named groups of a path below the source, and its meaning; None where the rule does not match."""
        found = re.fullmatch(self.pattern, path, re.IGNORECASE)
        if found is None:
            return None
        groups = found.groupdict()
        what = groups.pop("what", None)
        if isinstance(self.meaning, str):
            return groups, self.meaning
        return groups, self.meaning[str(what).lower()]

    def check_reading(self, path: str) -> None:
        """Whether a path can be read in one way only.

        Args:
            path: A path below the source that the rule matches.

        Raises:
            UserError: It can be read in two ways; the message names both.
        """
        ways = [re.fullmatch(p, path, re.IGNORECASE) for p in (self.pattern, self.other_reading) if p is not None]
        read = [" and ".join(f"{name} {text}" for name, text in way.groupdict().items()) for way in ways if way]
        if len(set(read)) > 1:
            raise UserError(
                f"{path!r} can be read in two ways by {self.title}: {read[0]}, or {read[1]}; put more of what the names have "
                f"in common into the pattern"
            )

    def is_special_case_of(self, other: FileRule) -> bool:
        """Whether the other rule matches all that this one does, and more."""
        return other.match(self.example) is not None and self.match(other.example) is None


@dataclass(frozen=True, kw_only=True)
class DatasetFamily:
    """The table of a family.

    Attributes:
        name: The name that is typed after ``emim_convert``.
        title: What ``--list`` and dataset.json call it.
        default_dataset_name: NAME in DatasetXXX_NAME where the user gives none.
        channels: nnU-Net's channel names, in their order.
        rules: Which file is what; of several that match, the one that is a special case of all others.
        label_map: Label value on disk -> value in nnU-Net; other values are refused. Empty where nothing is labelled.
        labels: The entry ``labels`` of dataset.json.
        regions_class_order: The entry of dataset.json of that name, for region-based labels; None where there are no regions.
        case_format: How the named groups of a rule make a case id.
        patient_format: How they make the patient; where a rule lacks the groups, the case id is the patient.
        stack: Channel -> place in the fourth axis of a :data:`STACK`.
        masked: Every case needs a :data:`MASK`, outside of which its channels become 0.
        preferred: Regular expression; of two files for the same thing the one whose path matches wins.
        overlaps: Collections that hold some of the same patients, for a warning.
        advice: What a user of this family must know, printed by ``--list`` and after a conversion.
        licence: Under which the data may be used.
        citation: What to cite for the data, as DOI, arXiv number or address.
        finder: Finds the cases of a source instead of the rules, where names of files do not say enough.
        asked_label: What the user named as segmentations; a source without any is a mistake then.
    """

    name: str
    title: str
    default_dataset_name: str
    channels: tuple[str, ...]
    rules: tuple[FileRule, ...]
    label_map: dict[int, int]
    labels: dict[str, Any]
    regions_class_order: tuple[int, ...] | None = None
    case_format: str = "{case}"
    patient_format: str = "{patient}"
    stack: dict[str, int] | None = None
    masked: bool = False
    preferred: str | None = None
    overlaps: str = ""
    advice: str = ""
    licence: str = ""
    citation: str = ""
    finder: Callable[[Path], list[SourceCase]] | None = None
    asked_label: str = ""

    def names(self, groups: dict[str, str]) -> tuple[str, str]:
        """Case id and patient by the named groups of a rule."""
        case = self.case_format.format(**groups)
        try:
            return case, self.patient_format.format(**groups)
        except KeyError:
            return case, case


def suffix_rules(case: str, suffixes: Mapping[str, Sequence[str]], example: str) -> tuple[FileRule, ...]:
    """One rule for files named CASE-SUFFIX or CASE_SUFFIX, in any folder.

    Args:
        case: Regular expression of a case id, without ``/``; a group ``patient`` in it says whose it is.
        suffixes: Channel or :data:`LABEL` -> suffixes that mean it.
        example: Name of a file that the rule matches, for messages.
    """
    meaning = {suffix.lower(): channel for channel, group in suffixes.items() for suffix in group}
    longest_first = sorted(meaning, key=len, reverse=True)
    alternatives = "|".join(map(re.escape, longest_first))
    return (FileRule(rf"(?:.*/)?(?P<case>{case})[-_](?P<what>{alternatives}){ENDING}", meaning, example),)
