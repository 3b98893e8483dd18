"""Finding and checking the cases of a source before anything is written."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from emim_nnunet.dataset_conversion.family import DatasetFamily
from emim_nnunet.errors import UserError
from emim_nnunet.imageio import stream_damage

GRID_TOLERANCE = 1e-3
LABEL = "label"
sitk.ProcessObject.SetGlobalWarningDisplay(False)


@dataclass
class SourceCase:
    """Files of a case and what was found in them.

    Attributes:
        identifier: Case id.
        files: Channel name (or ``label``) -> file.
        problems: One line each.
        shape: Voxels (z, y, x).
        spacing: mm (z, y, x).
        sha256: File name -> checksum.
    """

    identifier: str
    files: dict[str, Path] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    sha256: dict[str, str] = field(default_factory=dict)

    @property
    def labelled(self) -> bool:
        """Whether there is a segmentation."""
        return LABEL in self.files


def find_cases(family: DatasetFamily, source: Path) -> list[SourceCase]:
    """Cases by the suffixes of file names, wherever they lie below ``source``.

    Args:
        family: Table of the data set.
        source: Folder.

    Returns:
        Cases by id; missing channels are among their problems.

    Raises:
        UserError: No folder, no case, or two files for the same thing.
    """
    if not source.is_dir():
        raise UserError(f"SOURCE {source} is not a folder")
    pattern = re.compile(rf"(.+)[-_]({'|'.join(family.suffixes())})\.nii(\.gz)?", re.IGNORECASE)
    meaning = {s: channel for channel, group in family.channels.items() for s in group}
    meaning |= dict.fromkeys(family.label_suffixes, LABEL)
    cases: dict[str, SourceCase] = {}
    for file in sorted(source.rglob("*")):
        match = pattern.fullmatch(file.name)
        if match is None or file.name.startswith(".") or not file.is_file():
            continue
        case = cases.setdefault(match[1], SourceCase(match[1]))
        what = meaning[match[2].lower()]
        if what in case.files:
            raise UserError(f"two files for {what} of case {match[1]}: {case.files[what]} and {file}: remove one")
        case.files[what] = file
    if not cases:
        wanted = ", ".join(f"*-{s}.nii.gz" for s in family.suffixes())
        raise UserError(f"no case found in {source}: looked for {wanted} (or _, .nii) in all folders below")
    for case in cases.values():
        missing = [f"{c} (*-{family.channels[c][0]}.nii.gz)" for c in family.channels if c not in case.files]
        if missing:
            case.problems.append(f"case {case.identifier}: missing {', '.join(missing)}")
    return [cases[key] for key in sorted(cases)]


def check_case(family: DatasetFamily, case: SourceCase) -> SourceCase:
    """Read every file of a case and note what is wrong with it.

    Args:
        family: Table of the data set.
        case: Gets shape, spacing, checksums and problems.

    Returns:
        The case.
    """
    reference: tuple[Path, sitk.Image] | None = None
    for what in [*family.channels, LABEL]:
        file = case.files.get(what)
        if file is None:
            continue
        image = _read(file, case)
        if image is None:
            continue
        _check_voxels(file, image, what == LABEL, family, case)
        if reference is None:
            reference = (file, image)
            case.shape, case.spacing = image.GetSize()[::-1], image.GetSpacing()[::-1]
        else:
            difference = grid_difference(reference[1], image)
            if difference:
                case.problems.append(f"{file} is on another grid than {reference[0].name}: {difference}")
    return case


def _read(file: Path, case: SourceCase) -> sitk.Image | None:
    """The image if it is whole and three-dimensional."""
    damage = stream_damage(file)
    if damage:
        case.problems.append(f"{file} {damage}")
        return None
    case.sha256[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    try:
        image = sitk.ReadImage(str(file))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        case.problems.append(f"{file} is not a readable NIfTI ({reason})")
        return None
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        case.problems.append(f"{file} must be a three-dimensional scalar image, it has size {list(image.GetSize())}")
        return None
    return image


def _check_voxels(file: Path, image: sitk.Image, is_label: bool, family: DatasetFamily, case: SourceCase) -> None:
    voxels = sitk.GetArrayViewFromImage(image)
    if not np.isfinite(voxels).all() or not _finite_on_disk(file):
        case.problems.append(f"{file} holds NaN or infinite voxels: replace them")
    elif is_label:
        found = np.unique(voxels)
        unknown = [v.item() for v in found if v.item() not in family.label_map]
        if unknown:
            allowed = ", ".join(map(str, family.label_map))
            case.problems.append(f"{file} holds the unknown label {unknown[0]:g}; {family.name} has {allowed}")
    elif not voxels.any():
        case.problems.append(f"{file} is 0 everywhere")


def _finite_on_disk(file: Path) -> bool:
    """Whether all stored numbers are finite; ITK replaces NaN and Inf by 0 without a word when it reads NIfTI."""
    stored = nib.load(file).dataobj
    return stored.dtype.kind != "f" or bool(np.isfinite(stored.get_unscaled()).all())


def grid_difference(first: sitk.Image, second: sitk.Image) -> str:
    """What differs between two grids, or an empty string.

    Args:
        first: Image.
        second: Another one.

    Returns:
        For example ``spacing [1, 1, 1] and [1, 1, 2] mm``.
    """
    if first.GetSize() != second.GetSize():
        return f"size {list(first.GetSize())} and {list(second.GetSize())}"
    for name, unit in (("Spacing", " mm"), ("Origin", " mm"), ("Direction", "")):
        a, b = (getattr(image, f"Get{name}")() for image in (first, second))
        if not np.allclose(a, b, rtol=GRID_TOLERANCE, atol=GRID_TOLERANCE):
            shown = [", ".join(f"{v:g}" for v in values) for values in (a, b)]
            return f"{name.lower()} [{shown[0]}] and [{shown[1]}]{unit}"
    return ""
