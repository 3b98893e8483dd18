"""From a checked source to nnU-Net's raw format, all or nothing."""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json
from nnunetv2.paths import nnUNet_raw
from sklearn.model_selection import KFold
from tqdm import tqdm

from emim_nnunet.dataset_conversion.family import DatasetFamily
from emim_nnunet.dataset_conversion.source_cases import LABEL, SourceCase, check_case, find_cases
from emim_nnunet.errors import UserError
from emim_nnunet.training.provenance import versions

ENDING = ".nii.gz"
UNLABELLED = "imagesUnlabelled"
NUM_FOLDS, SPLIT_SEED = 5, 12345  # nnU-Net's
logger = logging.getLogger(__name__)


def convert(
    family: DatasetFamily,
    source: Path,
    dataset_id: int,
    dataset_name: str | None = None,
    *,
    num_processes: int = 4,
    dry_run: bool = False,
) -> tuple[Path | None, list[SourceCase]]:
    """Convert a data set into ``nnUNet_raw``.

    Everything is read and checked first. Labelled cases go to imagesTr and labelsTr, the others to imagesUnlabelled. The
    folder appears under its name only when it is complete; the source is never changed.

    Args:
        family: Table of the data set.
        source: Folder, searched with all folders below.
        dataset_id: 1 to 999, not used yet.
        dataset_name: NAME in DatasetXXX_NAME; None = the family's.
        num_processes: Files that are read at a time.
        dry_run: Only check.

    Returns:
        The new folder (None for a dry run) and the cases.

    Raises:
        UserError: Anything is not as it must be; nothing has been written then.
    """
    target = _target_folder(dataset_id, dataset_name or family.default_dataset_name)
    cases = find_cases(family, source)
    with ThreadPoolExecutor(num_processes) as pool:
        jobs = pool.map(lambda case: check_case(family, case), cases)
        cases = list(tqdm(jobs, total=len(cases), desc="Checking", disable=None))
    if dry_run:
        return None, cases
    problems = [problem for case in cases for problem in case.problems]
    if problems:
        more = f" (and {len(problems) - 1} more problems: --dry_run lists all)" if len(problems) > 1 else ""
        raise UserError(problems[0] + more)
    partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".partial"))
    try:
        partial.chmod(0o777 & ~_umask(target.parent))
        _write(family, source, cases, partial, target.name, num_processes)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    logger.info("wrote %s", target)
    return target, cases


def _umask(folder: Path) -> int:
    """What the permissions of the parent folder withhold (temporary folders are private, results are shared)."""
    return ~folder.stat().st_mode & 0o777


def _target_folder(dataset_id: int, name: str) -> Path:
    if not nnUNet_raw.is_set():
        raise UserError("the environment variable nnUNet_raw is not set: it must name the folder of raw data sets")
    raw = Path(nnUNet_raw)
    if not raw.is_dir():
        raise UserError(f"nnUNet_raw={raw} is not a folder: create it first")
    if not 1 <= dataset_id <= 999:
        raise UserError(f"-d {dataset_id}: a data set id is a number from 1 to 999")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise UserError(f"--name {name!r}: use letters, digits, _ and - only")
    used = sorted(p.name for p in raw.glob(f"Dataset{dataset_id:03d}_*"))
    if used:
        raise UserError(f"-d {dataset_id}: this data set id is used already by {raw / used[0]}")
    return raw / f"Dataset{dataset_id:03d}_{name}"


def _write(
    family: DatasetFamily, source: Path, cases: Sequence[SourceCase], folder: Path, name: str, num_processes: int
) -> None:
    for sub in ("imagesTr", "labelsTr", UNLABELLED):
        (folder / sub).mkdir()
    with ThreadPoolExecutor(num_processes) as pool:
        jobs = pool.map(lambda case: _write_case(family, case, folder), cases)
        list(tqdm(jobs, total=len(cases), desc="Writing", disable=None))
    labelled = [case.identifier for case in cases if case.labelled]
    generate_dataset_json(
        str(folder),
        channel_names=dict(enumerate(family.channels)),
        labels=family.labels,
        num_training_cases=len(labelled),
        file_ending=ENDING,
        regions_class_order=family.regions_class_order,
        dataset_name=name,
        reference=family.citation,
        license=family.licence,
        description=family.title,
        converted_by=f"emim_nnunet {versions()['emim_nnunet']}",
    )
    dataset_json = json.loads((folder / "dataset.json").read_text())
    _write_json(folder / "dataset.json", dataset_json | {"citation": family.citation})
    splits = patient_splits(labelled, family.patient_pattern)
    if splits:
        _write_json(folder / "splits_final.json", splits)
    _write_json(folder / "provenance.json", _provenance(family, source, cases))


def _write_case(family: DatasetFamily, case: SourceCase, folder: Path) -> None:
    images = folder / ("imagesTr" if case.labelled else UNLABELLED)
    for number, channel in enumerate(family.channels):
        target = images / f"{case.identifier}_{number:04d}{ENDING}"
        _copy_or_rewrite(case.files[channel], target)
    if case.labelled:
        _write_label(family, case.files[LABEL], folder / "labelsTr" / f"{case.identifier}{ENDING}")


def _copy_or_rewrite(file: Path, target: Path) -> None:
    """The same bytes where the format is right already."""
    if file.name.endswith(ENDING):
        shutil.copyfile(file, target)
    else:
        sitk.WriteImage(sitk.ReadImage(str(file)), str(target))


def _write_label(family: DatasetFamily, file: Path, target: Path) -> None:
    image = sitk.ReadImage(str(file))
    voxels = sitk.GetArrayFromImage(image)
    mapped = np.zeros(voxels.shape, dtype=np.uint8)
    for old, new in family.label_map.items():
        mapped[voxels == old] = new
    result = sitk.GetImageFromArray(mapped)
    result.CopyInformation(image)
    sitk.WriteImage(result, str(target))


def patient_splits(cases: Sequence[str], patient_pattern: str) -> list[dict[str, list[str]]]:
    """nnU-Net's five folds over patients, where some patient has several cases.

    Args:
        cases: Ids of the labelled cases.
        patient_pattern: See :class:`DatasetFamily`.

    Returns:
        Folds; empty where every patient has one case (nnU-Net's own split is right then) or there is only one patient.
    """
    patients: dict[str, list[str]] = {}
    for case in sorted(cases):
        match = re.match(patient_pattern, case)
        patients.setdefault(match[1] if match else case, []).append(case)
    if len(patients) == len(cases) or len(patients) < 2:
        return []
    names = sorted(patients)
    folds = KFold(min(NUM_FOLDS, len(names)), shuffle=True, random_state=SPLIT_SEED).split(names)
    return [
        {
            part: [c for i in indices for c in patients[names[i]]]
            for part, indices in zip(("train", "val"), fold, strict=True)
        }
        for fold in folds
    ]


def _provenance(family: DatasetFamily, source: Path, cases: Sequence[SourceCase]) -> dict:
    """Where every file came from; no absolute path."""
    return {
        "family": family.name,
        "source": source.resolve().name,
        "licence": family.licence,
        "citation": family.citation,
        "num_labelled": sum(case.labelled for case in cases),
        "num_unlabelled": sum(not case.labelled for case in cases),
        "cases": {
            case.identifier: {"labelled": case.labelled, "sha256": dict(sorted(case.sha256.items()))} for case in cases
        },
        "versions": versions(),
    }


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2))
