"""A case of a source: its files, and what a look at them has found."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from emim_nnunet.datasets.background import Background

LABEL = "label"
MASK = "body mask"  # no name of a channel
TARGET_ENDING = ".nii.gz"  # of the files of a data set; others are written anew


class SourceFile(NamedTuple):
    """Where the image of a channel is.

    Attributes:
        path: The file that holds it; of a DICOM series the first one.
        component: Place (from 0) in the fourth axis of a four-dimensional image; None for a three-dimensional one.
        slices: The files of a DICOM series, from one end to the other; empty for an image in one file.
    """

    path: Path
    component: int | None = None
    slices: tuple[Path, ...] = ()


@dataclass
class SourceCase:
    """Files of a case and what was found in them.

    Attributes:
        identifier: Case id.
        patient: Id of the patient whose case it is; the case id where nothing says it.
        files: Channel name (or :data:`LABEL`, :data:`MASK`) -> where its image is.
        missing: Channels of the family that the case lacks.
        problems: What is wrong with the case, one line for each fault; empty where it can be converted.
        on_other_grid: Channels (or :data:`LABEL`, :data:`MASK`) that must be resampled onto the grid of the case.
        shape: Voxels of the grid of the case (z, y, x).
        spacing: Voxel size of that grid in mm (z, y, x).
        sha256: Channel name (or :data:`LABEL`, :data:`MASK`) -> checksum of its file. Names of files may say who a patient is.
        background: Channel -> background other than 0 that stays.
        set_to_zero: Channel -> value of its background, which becomes 0.
        filled_with: Channel -> value that its image gets where the new grid goes beyond the old one.
        header_text: Channel -> places in its file that hold text and are copied with it.
        lost_labels: Label values on disk of which resampling leaves no voxel.
        label_outside_mask: Share of the labelled voxels that lie outside of the mask, 0 to 1.
    """

    identifier: str
    patient: str
    files: dict[str, SourceFile] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    on_other_grid: list[str] = field(default_factory=list)
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    sha256: dict[str, str] = field(default_factory=dict)
    background: dict[str, Background] = field(default_factory=dict)
    set_to_zero: dict[str, float] = field(default_factory=dict)
    filled_with: dict[str, float] = field(default_factory=dict)
    header_text: dict[str, list[str]] = field(default_factory=dict)
    lost_labels: list[float] = field(default_factory=list)
    label_outside_mask: float = 0.0

    @property
    def labelled(self) -> bool:
        """Whether there is a segmentation."""
        return LABEL in self.files

    def copied(self, channel: str) -> bool:
        """Whether the file of a channel goes into the data set as it is; known after :func:`.checking.check_case`."""
        file = self.files[channel]
        changed = MASK in self.files or channel in self.on_other_grid or channel in self.set_to_zero
        return not changed and file.component is None and file.path.name.lower().endswith(TARGET_ENDING)
