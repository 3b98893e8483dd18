"""Finding and checking the cases of a source before anything is written."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from emim_nnunet.dataset_conversion.family import ENDING, LABEL, MASK, STACK, DatasetFamily
from emim_nnunet.dataset_conversion.remedies import Remedied, body, on_grid, remedied
from emim_nnunet.datasets.background import Background, wrong_background
from emim_nnunet.datasets.images import header_problem, header_text, stream_damage
from emim_nnunet.datasets.splits import alike
from emim_nnunet.errors import UserError
from emim_nnunet.storage.files import sha256_of

GRID_TOLERANCE = 1e-3
UNREADABLE = (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError, ValueError, OverflowError)
MAX_INTENSITY = 1e12  # squares of larger ones leave the range of float32 sums
SPACING_RANGE = (0.01, 100.0)  # mm
TARGET_ENDING = ".nii.gz"  # of the files of a data set; others are written anew
TEXT_KEYS = ("ITK_FileNotes", "descrip", "aux_file", "intent_name")  # under which ITK hands on the text of a header
CASE_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.+-]*[A-Za-z0-9_+-])?")  # Windows takes no dot at the end
WINDOWS_DEVICE = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)
MAX_ID_LENGTH = 180  # file systems take 255 bytes; what is made of a case, and of its copy in a pool, has longer names
MAX_LISTED = 5
NUM_SHOWN, MAX_ID_SHOWN = 3, 40
logger = logging.getLogger(__name__)
sitk.ProcessObject.SetGlobalWarningDisplay(False)


class SourceFile(NamedTuple):
    """Where an image is.

    Attributes:
        path: File.
        component: Place in the fourth axis of a four-dimensional image; None for a three-dimensional one.
    """

    path: Path
    component: int | None = None


@dataclass
class SourceCase:
    """Files of a case and what was found in them.

    Attributes:
        identifier: Case id.
        patient: Whose it is.
        files: Channel name (or :data:`LABEL`, :data:`MASK`) -> file.
        missing: Channels that it lacks.
        problems: One line each.
        on_other_grid: What must be resampled.
        shape: Voxels (z, y, x).
        spacing: mm (z, y, x).
        sha256: Channel name (or :data:`LABEL`, :data:`MASK`) -> checksum of its file. Names of files may say who a patient is.
        background: Channel -> background other than 0 that stays.
        set_to_zero: Channel -> value of its background, which becomes 0.
        filled_with: Channel -> value where its new grid goes beyond it.
        header_text: Channel -> places in its file that hold text and are copied with it.
        lost_labels: Values on disk of which resampling leaves no voxel.
        label_outside_mask: Share of the labelled voxels.
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
        """Whether the file of a channel goes into the data set as it is; known after :func:`check_case`."""
        file = self.files[channel]
        changed = MASK in self.files or channel in self.on_other_grid or channel in self.set_to_zero
        return not changed and file.component is None and file.path.name.lower().endswith(TARGET_ENDING)


def find_cases(family: DatasetFamily, source: Path) -> list[SourceCase]:
    """Cases by the rules of the family, wherever they lie below ``source``.

    Args:
        family: Table of the data set.
        source: Folder.

    Returns:
        Cases by id, with what they lack.

    Raises:
        UserError: No folder, no case, two files for the same thing, a file that several rules match, ids that cannot be names
            of files or mean the same file, or no segmentation where the family needs them.
    """
    if family.finder is not None:
        found = family.finder(family, source)
    else:
        if not source.is_dir():
            raise UserError(f"SOURCE {source} is not a folder")
        found = _cases_by_rules(family, source)
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
    longer = _longer_ids(with_images) if family.name == "folders" else []
    if longer:
        logger.warning(
            "WARNING: ids that are others with something added: %s. If such files are segmentations or other channels, give "
            "their pattern with --label or --channel",
            ", ".join(longer[:MAX_LISTED]),
        )
    group = alike(with_images) if all(case.patient == case.identifier for case in found) else []
    if group:
        logger.warning(
            "WARNING: %s look like visits of one patient, but each case is taken for a patient: use {patient} and {visit} in "
            "the patterns of `folders`, or emim_plan_and_preprocess --patients",
            ", ".join(group[:MAX_LISTED]),
        )
    return [with_images[key] for key in sorted(with_images)]


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
    there = [relative for _, relative in _files(source)]
    there = [path for path in there if re.search(rf"{ENDING}$", path, re.IGNORECASE)] or there
    more = f" and {len(there) - NUM_SHOWN} more" if len(there) > NUM_SHOWN else ""
    shown = f"there are {', '.join(map(repr, there[:NUM_SHOWN]))}{more}" if there else "there is no file"
    wanted = ", ".join(rule.example for rule in family.rules if rule.meaning not in (LABEL, MASK))
    advice = "compare the patterns" if family.name == "folders" else "`emim_convert folders` takes other names"
    return f"no case found in {source}: expected files such as {wanted} in any folder, {shown}; {advice}"


def _cases_by_rules(family: DatasetFamily, source: Path) -> list[SourceCase]:
    cases: dict[str, SourceCase] = {}
    for path, relative in _files(source):
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


def _files(source: Path) -> Iterator[tuple[Path, str]]:
    """Files below a folder in a fixed order, without those of macOS; links to folders are not followed, so loops do no harm."""
    for folder, folders, names in os.walk(source):
        folders.sort()
        for name in sorted(names):
            path = Path(folder) / name
            if not name.startswith(".") and path.is_file():
                yield path, path.relative_to(source).as_posix()


def _wins(family: DatasetFamily, file: SourceFile, other: SourceFile) -> bool:
    if family.preferred is None:
        return False
    here, there = (re.fullmatch(family.preferred, f.path.as_posix(), re.IGNORECASE) for f in (file, other))
    return here is not None and there is None


def check_case(
    family: DatasetFamily,
    case: SourceCase,
    resample_to: str | None,
    *,
    background_to_zero: bool = False,
    allow_lost_labels: bool = False,
) -> SourceCase:
    """Read every file of a case and note what is wrong with it.

    Args:
        family: Table of the data set.
        case: Gets shape, spacing, checksums, problems, and what will be changed.
        resample_to: Channel whose grid all others get; None = all must have the same.
        background_to_zero: See :func:`remedied`.
        allow_lost_labels: Take labels that lose all voxels of a value by resampling.

    Returns:
        The case.
    """
    order = [w for w in dict.fromkeys((resample_to, *family.channels, LABEL)) if w in case.files]
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
        _check_grid(what, case, reference, image, resample_to)
        if case.problems:
            continue
        grid = reference[1] if what in case.on_other_grid else None
        if what == MASK:
            mask = image
            if grid is not None and not body(image, grid).any():
                case.problems.append(f"{file.path} is 0 everywhere on the grid of {resample_to}")
        elif what == LABEL:
            _check_label(family, case, image, grid, mask, allow_lost_labels)
        else:
            _look_at(what, case, remedied(image, grid, mask, background_to_zero=background_to_zero))
    if reference is not None and not case.problems:
        _look_at(reference[0], case, remedied(reference[1], None, mask, background_to_zero=background_to_zero))
    if not case.problems:
        copied = [channel for channel in family.channels if channel in case.files and case.copied(channel)]
        texts = {channel: header_text(case.files[channel].path) for channel in copied}
        case.header_text = {channel: places for channel, places in texts.items() if places}
    return case


def _check_grid(
    what: str, case: SourceCase, reference: tuple[str, sitk.Image], image: sitk.Image, resample_to: str | None
) -> None:
    difference = grid_difference(reference[1], image)
    if not difference:
        return
    path, other = case.files[what].path, case.files[reference[0]].path.name
    if resample_to is None:
        case.problems.append(
            f"{path} is on another grid than {other}: {difference} (--resample-to CHANNEL puts all on one)"
        )
    elif not _overlap(reference[1], image):
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
    allow_lost: bool,
) -> None:
    """What resampling and the mask take away from a label."""
    voxels = sitk.GetArrayViewFromImage(label)
    if grid is not None:
        left = sitk.GetArrayFromImage(on_grid(label, grid))  # a view would outlive its image
        case.lost_labels = [v.item() for v in np.setdiff1d(voxels, left) if family.label_map[v.item()]]
    if case.lost_labels and not allow_lost:
        values = ", ".join(map(repr, case.lost_labels))
        case.problems.append(
            f"{case.files[LABEL].path} loses all voxels of the label {values} by resampling: choose a finer grid "
            f"(--allow_lost_labels takes the case without them)"
        )
    labelled = voxels != 0
    if mask is not None and labelled.any():
        case.label_outside_mask = float(np.mean(~body(mask, label)[labelled]))


def read_image(file: SourceFile) -> sitk.Image:
    """The three-dimensional image that a source file stands for.

    Args:
        file: Three- or four-dimensional.

    Raises:
        RuntimeError: Of SimpleITK.
        ValueError: Not of the dimension that it should have.
    """
    image = sitk.ReadImage(str(file.path))
    if file.component is not None:
        if image.GetDimension() != 4 or image.GetSize()[3] <= file.component:
            raise ValueError(f"must be a four-dimensional image of at least {file.component + 1} channels")
        image = image[:, :, :, file.component]
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ValueError("must be a three-dimensional scalar image")
    for key in TEXT_KEYS:
        image.EraseMetaData(key)
    return image


def _read(what: str, case: SourceCase) -> sitk.Image | None:
    """The image if it is whole and as it should be."""
    file = case.files[what]
    path = file.path
    known = [case.sha256[other] for other in case.sha256 if case.files[other].path == path]  # channels of one file
    if known:
        case.sha256[what] = known[0]
    else:
        if not path.is_file():
            damage = "is missing"
        elif not re.search(rf"{ENDING}$", path.name, re.IGNORECASE):
            damage = "is not of a format that is taken: .nii.gz, .nii or .mha"
        else:
            damage = stream_damage(path) or header_problem(path)
        if damage:
            case.problems.append(f"{path} {damage}")
            return None
        case.sha256[what] = sha256_of(path)
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
        case.problems.append(f"{path} {error}, it has size {list(sitk.ReadImage(str(path)).GetSize())}")
    return None


def _check_voxels(file: SourceFile, image: sitk.Image, is_label: bool, family: DatasetFamily, case: SourceCase) -> None:
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


def _overlap(first: sitk.Image, second: sitk.Image) -> bool:
    """Whether the boxes around two images, in millimetres, share anything."""
    boxes = []
    for image in (first, second):
        far = [n - 1 for n in image.GetSize()]
        corners = np.array(
            [
                image.TransformIndexToPhysicalPoint([f if bits >> a & 1 else 0 for a, f in enumerate(far)])
                for bits in range(8)
            ]
        )
        boxes.append((corners.min(0), corners.max(0)))
    return bool((np.maximum(boxes[0][0], boxes[1][0]) < np.minimum(boxes[0][1], boxes[1][1])).all())
