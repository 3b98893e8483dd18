"""What the headers of DICOM files say: which files are a series, which modality it is, and why it cannot be taken."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from emim_nnunet.dataset_conversion.finding import image_files

TAGS = {
    "patient_id": "0010|0020",
    "date": "0008|0020",
    "study_uid": "0020|000d",
    "series_uid": "0020|000e",
    "instance_uid": "0008|0018",
    "class_uid": "0008|0016",
    "kind": "0008|0060",
    "image_type": "0008|0008",
    "series": "0020|0011",
    "description": "0008|103e",
    "protocol": "0018|1030",
    "sequence": "0018|0024",
    "contrast": "0018|0010",
    "tr": "0018|0080",
    "te": "0018|0081",
    "ti": "0018|0082",
    "frames": "0028|0008",
    "rows": "0028|0010",
    "columns": "0028|0011",
    "spacing": "0028|0030",
    "position": "0020|0032",
    "orientation": "0020|0037",
}
ENHANCED = "1.2.840.10008.5.1.4.1.1.4.1"  # MR images with all slices in one file; what follows it is of the same kind
MIN_SLICES = 5  # with fewer it is a localiser or a look at one place
GAP_TOLERANCE = 0.02  # share of the distance of two slices by which another one may differ
LOCALISER = r"\b(loc|localizer|localiser|scout|survey|3 ?plane|planloc)\b"
WORDS = (  # the first that matches counts; of descriptions with blanks in place of all signs but + and *
    (r"\badc\b", "ADC"),
    (r"flair|dark ?fluid", "Flair"),
    (r"\b(dwi|diff|diffusion|trace|tracew|dti|b ?1000)\b|ep2d diff", "DWI"),
    (r"\b(swi|swan|venobold)\b", "SWI"),
    (r"t2 ?\*|t2 ?star|\bhemo\b", "T2star"),
    (r"t1|mprage|mp2rage|bravo|spgr|\bvibe\b", "T1"),
    (r"t2", "T2"),
    (r"\b(pd|pdw)\b|proton", "PD"),
)
AGENT = r"\b(gd|gad|gado\w*|contrast|post|ce|km|\+ ?c|c ?\+|kontrast\w*)(\b|(?<=\+))|\+ ?(c|gd|km)\b|t1(c|ce|gd)\b"
NO_AGENT = r"\b(no|pre|without|w o|wo|ohne|nativ|native|non) ?(\+ ?)?(gd|gad|gado\w*|contrast|km|kontrast\w*|c)\b"


@dataclass(frozen=True)
class Series:
    """Files of a series, in the order of its slices.

    Attributes:
        files: The files, from one end to the other.
        tags: Name in :data:`TAGS` -> text of the first file, empty where it has none.
        fault: Why they are no volume; empty where they are one.
        copies: Number of files that hold an image again that is there already.
    """

    files: tuple[Path, ...]
    tags: Mapping[str, str]
    fault: str
    copies: int

    @property
    def reason(self) -> str:
        """Why the series is not proposed although it may be a volume; empty where it is."""
        types = self.tags["image_type"].upper().split("\\")
        text = _plain(self.tags["description"])
        if self.tags["kind"] != "MR":
            return f"modality {self.tags['kind'] or 'unknown'}, not MR"
        if "LOCALIZER" in types or re.search(LOCALISER, text):
            return "localiser"
        if types[0] == "DERIVED" and modality(self.tags) != "ADC":
            return f"derived ({self.tags['image_type']})"
        return self.fault or (f"{len(self.files)} slices" if len(self.files) < MIN_SLICES else "")


def read_series(source: Path) -> tuple[list[Series], int]:
    """The series below a folder, by the headers of all files.

    Args:
        source: Folder, searched with all folders below; files without an ending are looked at too.

    Returns:
        Series, ordered by patient, date and number; and the number of files that are no DICOM images.
    """
    found: dict[str, dict[str, tuple[Path, dict[str, str]]]] = {}
    copies: Counter[str] = Counter()
    others = 0
    for path, _ in tqdm(list(image_files(source)), desc="Reading headers", disable=None):
        tags = _tags(path)
        if tags is None:
            others += 1
            continue
        images = found.setdefault(tags["series_uid"], {})
        image = tags["instance_uid"] or str(path)
        copies[tags["series_uid"]] += image in images
        images.setdefault(image, (path, tags))
    series = [_series(images.values(), copies[uid]) for uid, images in found.items()]
    return sorted(series, key=_order), others


def modality(tags: Mapping[str, str]) -> str:
    """The modality that a series most probably is, empty where the header does not say.

    Words in description, protocol and name of the sequence come first, then the times (TR, TE, TI). T1 becomes T1ce where an
    agent is named.

    Args:
        tags: Texts of a header by the names in :data:`TAGS`.
    """
    if "ADC" in tags["image_type"].upper().split("\\"):
        return "ADC"
    text = " ".join(_plain(tags[name]) for name in ("description", "protocol", "sequence"))
    found = next((name for pattern, name in WORDS if re.search(pattern, text)), "") or _by_times(tags)
    return "T1ce" if found == "T1" and _has_agent(tags, text) else found


def by_times_only(tags: Mapping[str, str]) -> bool:
    """Whether nothing but the times of the sequence says which modality it is."""
    text = " ".join(_plain(tags[name]) for name in ("description", "protocol", "sequence"))
    return not any(re.search(pattern, text) for pattern, _ in WORDS) and bool(_by_times(tags))


def _has_agent(tags: Mapping[str, str], text: str) -> bool:
    if re.search(NO_AGENT, text):
        return False
    agent = _plain(tags["contrast"]).strip()
    return bool(re.search(AGENT, text)) or agent not in ("", "no", "none", "n")


def _by_times(tags: Mapping[str, str]) -> str:
    tr, te, ti = (_number(tags[name]) for name in ("tr", "te", "ti"))
    if not te or not tr:
        return ""
    if ti > 1500 and te > 70:
        return "Flair"
    if te <= 30 and tr <= 1200:
        return "T1"
    if tr >= 2000 and not ti:
        return "T2" if te >= 70 else "PD" if te <= 30 else ""
    return ""


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9+*]+", " ", text.lower())


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _tags(path: Path) -> dict[str, str] | None:
    """Texts of the header of an image; None where the file is none."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    keys = set(reader.GetMetaDataKeys())
    texts = {name: reader.GetMetaData(tag) if tag in keys else "" for name, tag in TAGS.items()}
    return {name: text.encode("utf-8", "replace").decode().strip(" \0") for name, text in texts.items()}


def _series(images: Iterable[tuple[Path, dict[str, str]]], copies: int) -> Series:
    """The images of a series in the order of their places, and what is wrong with them."""
    files = sorted(images)
    tags = [about for _, about in files]
    fault = _fault_of_files(tags)
    if not fault:
        positions, normal = _places(tags)
        along = positions @ normal
        order = np.argsort(along, kind="stable")
        files = [files[i] for i in order]
        fault = _fault_of_places(along[order])
    return Series(tuple(path for path, _ in files), files[0][1], fault, copies)


def _fault_of_files(tags: list[dict[str, str]]) -> str:
    """Why images cannot be slices of one volume, whatever their places."""
    first = tags[0]
    types = first["image_type"].upper().split("\\")
    if first["class_uid"].startswith(ENHANCED) or any(_number(about["frames"]) > 1 for about in tags):
        return "enhanced or multi-frame: convert it with dcm2niix, then take it with `emim_convert folders`"
    if "MOSAIC" in types:
        return "mosaic: several slices in one picture"
    if any(len(_floats(about["position"])) != 3 or len(_floats(about["orientation"])) != 6 for about in tags):
        return "without places of the slices"
    if len({(about["rows"], about["columns"], about["spacing"]) for about in tags}) > 1:
        return "slices of different sizes"
    directions = np.array([_floats(about["orientation"]) for about in tags])
    if np.abs(directions - directions[0]).max() > 1e-3:
        return "slices of several directions"
    return ""


def _fault_of_places(along: np.ndarray) -> str:
    """Why slices at these places (mm, sorted) are no volume."""
    gaps = np.diff(along)
    if not len(gaps):
        return ""
    usual = np.median(gaps[gaps > 1e-3]) if (gaps > 1e-3).any() else 0.0
    if (gaps <= 1e-3).any():
        return "several images at one place (echoes, b values, times or parts)"
    if np.abs(gaps - usual).max() > GAP_TOLERANCE * usual + 1e-3:
        return f"slices are missing or uneven: {gaps.min():.3g} to {gaps.max():.3g} mm apart"
    return ""


def _places(tags: list[dict[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """Positions (N, 3) of the slices in mm, and the direction (3,) across them."""
    direction = _floats(tags[0]["orientation"])
    return np.array([_floats(about["position"]) for about in tags]), np.cross(direction[:3], direction[3:])


def _floats(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split("\\")]
    except ValueError:
        return []


def _order(series: Series) -> tuple[object, ...]:
    tags = series.tags
    return tags["patient_id"], tags["date"], tags["study_uid"], _number(tags["series"]), tags["series_uid"]
