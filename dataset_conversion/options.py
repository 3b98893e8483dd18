"""What the user of a conversion may choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from emim_nnunet.dataset_conversion.case import SourceCase


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

    def taken(self, cases: Sequence[SourceCase]) -> list[SourceCase]:
        """The cases that are converted: all, or with ``skip_incomplete`` those that lack no channel."""
        return [case for case in cases if not (case.missing and self.skip_incomplete)]


DEFAULTS = Options()
