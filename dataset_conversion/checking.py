"""Reading every file of a case before anything is written, to say what is wrong with it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from emim_nnunet.dataset_conversion.case import LABEL, MASK, SourceCase, SourceFile
from emim_nnunet.dataset_conversion.family import ENDING, DatasetFamily
from emim_nnunet.dataset_conversion.options import Options
from emim_nnunet.dataset_conversion.remedies import Remedied, remedied
from emim_nnunet.dataset_conversion.source_image import body, grid_difference, on_grid, overlap, read_image
from emim_nnunet.datasets.background import wrong_background
from emim_nnunet.datasets.headers import header_problem, header_text
from emim_nnunet.datasets.images import read_image_file, stream_damage
from emim_nnunet.storage.files import sha256_of

UNREADABLE = (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError, ValueError, OverflowError)
PICTURES = (".png", ".bmp", ".tif", ".tiff")  # nnU-Net takes them as they are
MAX_INTENSITY = 1e12  # squares of larger ones leave the range of float32 sums
SPACING_RANGE = (0.01, 100.0)  # mm


def check_case(family: DatasetFamily, case: SourceCase, options: Options) -> SourceCase:
    """Read every file of a case and note what is wrong with it.

    Args:
        family: The table that describes the data set.
        case: Gets shape, spacing, checksums, problems, and what will be changed.
        options: How the case will be converted.

    Returns:
        The same object ``case``, which can be converted where ``problems`` is empty then.
    """
    order = [w for w in dict.fromkeys((options.resample_to, *family.channels, LABEL)) if w in case.files]
    order[1:1] = [MASK] if MASK in case.files else []  # after the image whose grid all must have
    reference: tuple[str, sitk.Image] | None = None
    mask = None
    for what in order:
        file = case.files[what]
        image = _read(what, case)
        if image is None:
            continue
        _check_voxels(file, image, what == LABEL, family, case)
        if reference is None:
            reference = (what, image)
            case.shape, case.spacing = image.GetSize()[::-1], image.GetSpacing()[::-1]
            continue  # its background is looked at when the mask is known
        _check_grid(what, case, reference, image, options)
        if case.problems:
            continue
        grid = reference[1] if what in case.on_other_grid else None
        if what == MASK:
            mask = image
            if grid is not None and not body(image, grid).any():
                case.problems.append(f"{file.path} is 0 everywhere on the grid of {options.resample_to}")
        elif what == LABEL:
            _check_label(family, case, image, grid, mask, options)
        else:
            _look_at(what, case, remedied(image, grid, mask, background_to_zero=options.background_to_zero))
    if reference is not None and not case.problems:
        _look_at(reference[0], case, remedied(reference[1], None, mask, background_to_zero=options.background_to_zero))
    if not case.problems:
        case.header_text = _copied_texts(family, case)
    return case


def _copied_texts(family: DatasetFamily, case: SourceCase) -> dict[str, list[str]]:
    """Channel -> places that hold text, of the files that are copied as they are."""
    copied = [channel for channel in family.channels if channel in case.files and case.copied(channel)]
    texts = {channel: header_text(case.files[channel].path) for channel in copied}
    return {channel: places for channel, places in texts.items() if places}


def _check_grid(
    what: str, case: SourceCase, reference: tuple[str, sitk.Image], image: sitk.Image, options: Options
) -> None:
    """Whether an image is on the grid of its case, or can be brought there."""
    difference = grid_difference(reference[1], image)
    if not difference:
        return
    path, other = case.files[what].path, case.files[reference[0]].path.name
    if options.resample_to is None:
        case.problems.append(
            f"{path} is on another grid than {other}: {difference} (--resample-to CHANNEL puts all on one)"
        )
    elif not overlap(reference[1], image):
        case.problems.append(f"{path} does not overlap with {other}: are they of the same case?")
    else:
        case.on_other_grid.append(what)


def _look_at(channel: str, case: SourceCase, result: Remedied) -> None:
    """Note what was done to an image, and what its background is then."""
    voxels = sitk.GetArrayViewFromImage(result.image)
    if not voxels.any():
        case.problems.append(f"{case.files[channel].path} would be 0 everywhere after masking or resampling")
    notes: list[tuple[dict[str, Any], Any]] = [
        (case.background, wrong_background(voxels)),
        (case.set_to_zero, result.set_to_zero),
        (case.filled_with, result.filled_with),
    ]
    for noted, value in notes:
        if value is not None:
            noted[channel] = value


def _check_label(
    family: DatasetFamily,
    case: SourceCase,
    label: sitk.Image,
    grid: sitk.Image | None,
    mask: sitk.Image | None,
    options: Options,
) -> None:
    """Note what resampling and the mask take away from a label."""
    voxels = sitk.GetArrayViewFromImage(label)
    if grid is not None:
        left = sitk.GetArrayFromImage(on_grid(label, grid))  # a view would outlive its image
        case.lost_labels = [v.item() for v in np.setdiff1d(voxels, left) if family.label_map[v.item()]]
    if case.lost_labels and not options.allow_lost_labels:
        values = ", ".join(map(repr, case.lost_labels))
        case.problems.append(
            f"{case.files[LABEL].path} loses all voxels of the label {values} by resampling: choose a finer grid "
            f"(--allow_lost_labels takes the case without them)"
        )
    labelled = voxels != 0
    if mask is not None and labelled.any():
        case.label_outside_mask = float(np.mean(~body(mask, label)[labelled]))


def _read(what: str, case: SourceCase) -> sitk.Image | None:
    """The image if it is whole and as it should be; otherwise the case gets a problem."""
    file = case.files[what]
    path = file.path
    known = [case.sha256[other] for other in case.sha256 if case.files[other].path == path]  # channels of one file
    damage = "" if known or file.slices else _damage(path)
    if damage:
        case.problems.append(f"{path} {damage}")
        return None
    case.sha256[what] = known[0] if known else _checksum(file)
    try:
        image = read_image(file)
        low, high = SPACING_RANGE
        if all(low <= round(s, 6) <= high for s in image.GetSpacing()):
            return image
        size = ", ".join(f"{s:g}" for s in image.GetSpacing())
        case.problems.append(f"{path} has the voxel size {size} mm, expected {low:g} to {high:g}: mend its header")
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        kind = "NIfTI" if ".nii" in path.name else "image"
        case.problems.append(f"{path} is not a readable {kind} ({reason})")
    except ValueError as error:
        case.problems.append(f"{path} {error}, it has size {list(read_image_file(path).GetSize())}")
    return None


def _checksum(file: SourceFile) -> str:
    """The checksum of a file; of a series that of the checksums of its slices."""
    if not file.slices:
        return sha256_of(file.path)
    return hashlib.sha256("".join(map(sha256_of, file.slices)).encode()).hexdigest()


def _damage(path: Path) -> str:
    """What is wrong with a file before its voxels are read, or an empty string."""
    if not path.is_file():
        return "is missing"
    if not re.search(rf"{ENDING}$", path.name, re.IGNORECASE):
        if path.suffix.lower() in PICTURES:
            return "is a picture: put it as CASE_0000 into imagesTr of nnU-Net's raw format, which needs no conversion"
        return "is not of a format that is taken: .nii.gz, .nii or .mha"
    return stream_damage(path) or header_problem(path)


def _check_voxels(file: SourceFile, image: sitk.Image, is_label: bool, family: DatasetFamily, case: SourceCase) -> None:
    """Whether the voxels are numbers, and such as an image or a label of the family has."""
    path, voxels = file.path, sitk.GetArrayViewFromImage(image)
    try:
        finite = bool(np.isfinite(voxels).all()) and _finite_on_disk(path)
    except UNREADABLE as error:
        case.problems.append(f"{path} is not a readable NIfTI ({' '.join(str(error).split())})")
        return
    if not finite:
        case.problems.append(f"{path} holds NaN or infinite voxels: replace them")
    elif is_label:
        unknown = [v.item() for v in np.unique(voxels) if v.item() not in family.label_map]
        if unknown:
            allowed = ", ".join(map(str, family.label_map))
            case.problems.append(f"{path} holds the unknown label {unknown[0]!r}; {family.name} has {allowed}")
    else:
        low, high = float(voxels.min()), float(voxels.max())
        place = "" if file.component is None else f", channel {file.component},"
        if low == high:
            what = "is 0 everywhere" if high == 0 else f"holds one value everywhere ({high:g})"
            case.problems.append(f"{path}{place} {what}: it shows nothing")
        elif max(-low, high) > MAX_INTENSITY:
            case.problems.append(f"{path}{place} holds values up to {max(-low, high):.3g}, which no scanner gives")


def _finite_on_disk(path: Path) -> bool:
    """Whether all stored numbers are finite; ITK replaces NaN and Inf by 0 without a word when it reads NIfTI."""
    if ".nii" not in path.name.lower():
        return True
    image: Any = nib.load(path)  # nibabel does not say of which kind
    stored = image.dataobj
    return stored.dtype.kind != "f" or bool(np.isfinite(stored.get_unscaled()).all())
