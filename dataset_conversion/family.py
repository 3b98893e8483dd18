"""What a converter must know about a family of data sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class DatasetFamily:
    """The table of a family.

    Attributes:
        name: As typed after ``emim_convert``.
        title: For people.
        default_dataset_name: NAME in DatasetXXX_NAME.
        channels: nnU-Net's channel name -> file suffixes that mean it, lower case, in the order of the channels.
        label_suffixes: File suffixes of the segmentation, lower case.
        label_map: Label value on disk -> value in nnU-Net; other values are refused.
        labels: ``labels`` of dataset.json.
        regions_class_order: Of dataset.json, for region-based labels.
        patient_pattern: Regular expression whose first group is the patient in a case id; ids that do not match are patients.
        licence: Of the data.
        citation: Of the data.
    """

    name: str
    title: str
    default_dataset_name: str
    channels: dict[str, tuple[str, ...]]
    label_suffixes: tuple[str, ...]
    label_map: dict[int, int]
    labels: dict[str, Any]
    regions_class_order: tuple[int, ...] | None
    patient_pattern: str
    licence: str
    citation: str

    def suffixes(self) -> tuple[str, ...]:
        """All suffixes of images and labels."""
        return (*(s for group in self.channels.values() for s in group), *self.label_suffixes)
