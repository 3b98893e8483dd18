"""What a converter must know about a family of data sets."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emim_nnunet.dataset_conversion.source_cases import SourceCase

ENDING = r"\.(?:nii(?:\.gz)?|mha)"
LABEL, STACK = "label", "stack"
MASK = "body mask"  # no name of a channel
BACKGROUND_ONLY = {"background": 0, "foreground": 1}  # nnU-Net wants a foreground class, even where nothing is labelled


@dataclass(frozen=True)
class FileRule:
    """Which files belong to a family.

    Attributes:
        pattern: Regular expression for the whole path below the source, with ``/`` between folders; upper and lower case are
            the same. Its named groups make the case id; the group ``what``, if there is one, is looked up in ``meaning``.
        meaning: Lower-case text of ``what`` -> channel, :data:`LABEL` or :data:`MASK`; or, without that group, the channel
            itself, :data:`LABEL`, :data:`MASK`, or :data:`STACK` for a four-dimensional image of all channels.
    """

    pattern: str
    meaning: dict[str, str] | str

    def match(self, path: str) -> tuple[dict[str, str], str] | None:
        """Named groups and meaning of a path, or None."""
        found = re.fullmatch(self.pattern, path, re.IGNORECASE)
        if found is None:
            return None
        groups = found.groupdict()
        what = groups.pop("what", None)
        if isinstance(self.meaning, str):
            return groups, self.meaning
        return groups, self.meaning[str(what).lower()]


@dataclass(frozen=True, kw_only=True)
class DatasetFamily:
    """The table of a family.

    Attributes:
        name: As typed after ``emim_convert``.
        title: For people.
        default_dataset_name: NAME in DatasetXXX_NAME.
        channels: nnU-Net's channel names, in their order.
        rules: Which file is what; the first that matches decides.
        label_map: Label value on disk -> value in nnU-Net; other values are refused. Empty where nothing is labelled.
        labels: ``labels`` of dataset.json.
        regions_class_order: Of dataset.json, for region-based labels.
        case_format: How the named groups of a rule make a case id.
        patient_pattern: Regular expression whose first group is the patient in a case id; ids that do not match are patients.
        stack: Channel -> place in the fourth axis of a :data:`STACK`.
        masked: Every case needs a :data:`MASK`, outside of which its channels become 0.
        preferred: Regular expression; of two files for the same thing the one whose path matches wins.
        overlaps: Collections that hold some of the same patients, for a warning.
        advice: What a user of this family must know, printed by ``--list`` and after a conversion.
        licence: Of the data.
        citation: Of the data.
        finder: Finds the cases instead of the rules.
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
    patient_pattern: str = r"(.+)"
    stack: dict[str, int] | None = None
    masked: bool = False
    preferred: str | None = None
    overlaps: str = ""
    advice: str = ""
    licence: str = ""
    citation: str = ""
    finder: Callable[[DatasetFamily, Path], list[SourceCase]] | None = None

    def patient(self, case: str) -> str:
        """Whose a case is."""
        match = re.match(self.patient_pattern, case)
        return match[1] if match else case


def suffix_rules(case: str, suffixes: dict[str, Sequence[str]]) -> tuple[FileRule, ...]:
    """One rule for files named CASE-SUFFIX or CASE_SUFFIX, in any folder.

    Args:
        case: Regular expression of a case id, without ``/``.
        suffixes: Channel or :data:`LABEL` -> suffixes that mean it.
    """
    meaning = {suffix.lower(): channel for channel, group in suffixes.items() for suffix in group}
    longest_first = sorted(meaning, key=len, reverse=True)
    alternatives = "|".join(map(re.escape, longest_first))
    return (FileRule(rf"(?:.*/)?(?P<case>{case})[-_](?P<what>{alternatives}){ENDING}", meaning),)
