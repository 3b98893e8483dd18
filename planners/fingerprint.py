"""nnU-Net's fingerprint of a data set, with or without labels, by one process or by shards."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emim_nnunet.errors import UserError
from emim_nnunet.nnunet.descriptions import recursive_fix_for_json_export
from emim_nnunet.nnunet.images import determine_reader_writer_from_dataset_json
from emim_nnunet.nnunet.planning import DatasetFingerprintExtractor, crop_to_nonzero, verify_dataset_integrity
from emim_nnunet.planners.options import Options
from emim_nnunet.planners.preprocess import CASE_ERRORS
from emim_nnunet.planners.raw_data import RawDataset, find_cases, read_case
from emim_nnunet.planners.workers import work_on
from emim_nnunet.storage.files import read_json, write_json
from emim_nnunet.storage.progress import Progress

# nnU-Net always draws 1e8 of each channel, with repetition: a minute and several GB for eight channels of however small a data
# set. The statistics matter for CT alone, whose 0.5th percentile 1e7 samples give to 0.005 percentiles.
NUM_INTENSITY_SAMPLES = 10_000_000
Looked = Callable[[str, list[str]], "CaseFingerprint | str"]


class CaseFingerprint(NamedTuple):
    """What a case adds to the fingerprint.

    Attributes:
        shape: Voxels per axis inside the bounding box of its body.
        spacing: Size of a voxel per axis, in mm.
        relative_size: Share of the volume that the bounding box fills.
        intensities: Per channel, samples of the voxels with a label, or of the body where no case has a label.
    """

    shape: list[int]
    spacing: list[float]
    relative_size: float
    intensities: list[np.ndarray]


class Analysis(NamedTuple):
    """How the cases of a data set are looked at.

    Attributes:
        reader: nnU-Net's class that reads images.
        labelled: Whether the last file of a case is its label.
        num_samples: Voxels that are drawn of each channel of a case.
    """

    reader: type
    labelled: bool
    num_samples: int

    def of(self, files: list[str]) -> CaseFingerprint:
        """Look at a case, with nnU-Net's own code.

        Args:
            files: Its images, and its label where the cases have one.
        """
        if self.labelled:
            *images, label = files
            shape, spacing, intensities, _, relative_size = DatasetFingerprintExtractor.analyze_case(
                images, label, self.reader, self.num_samples
            )
        else:
            data, properties = read_case(self.reader(), files)
            cropped, seg, _ = crop_to_nonzero(data)
            shape, spacing = cropped.shape[1:], properties["spacing"]
            relative_size = np.prod(shape) / np.prod(data.shape[1:])
            intensities, _ = DatasetFingerprintExtractor.collect_foreground_intensities(
                (seg >= 0).astype(np.int8), cropped, num_samples=self.num_samples
            )
        samples = [np.asarray(values) for values in intensities]
        return CaseFingerprint([int(n) for n in shape], [float(s) for s in spacing], float(relative_size), samples)


def extract_fingerprint(raw: RawDataset, path: Path, options: Options) -> RawDataset:
    """Write the fingerprint where there is none, or none that can be read, or where the user wants it anew.

    Args:
        raw: What is in its raw folder.
        path: ``dataset_fingerprint.json`` in its preprocessed folder.
        options: ``clean``, ``num_processes_fingerprint``, ``verify_integrity`` and ``keep_going`` of them are used.

    Returns:
        The cases that can be used.

    Raises:
        UserError: A file cannot be read, or nnU-Net stumbles over it.
    """
    if options.verify_integrity and raw.labelled:
        _verify(raw.folder, options.num_processes_fingerprint)
    if not options.clean and is_json(path):  # nnU-Net would stumble over one that was not written to its end
        return raw
    analysis, files = how_to_look(raw)
    found, failed = look_at_cases(partial(looked_at, analysis), files, options)
    raw = raw.without(failed)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, fingerprint_of(found), indent=4)
    return raw


def how_to_look(raw: RawDataset) -> tuple[Analysis, dict[str, list[str]]]:
    """How cases are looked at, and the files of those that count: the labelled ones, or without any the unlabelled ones.

    Args:
        raw: Some cases of a data set. What is drawn of each depends on how many there are in all.
    """
    everything = find_cases(raw.folder)
    labelled = bool(everything.labelled)
    all_files = raw.files
    files = {case: all_files[case] for case in (raw.labelled if labelled else sorted(raw.unlabelled))}
    example = next(iter(all_files.values()) if all_files else iter(everything.files.values()))[0]
    reader = determine_reader_writer_from_dataset_json(raw.description, example, verbose=False)
    total = len(everything.labelled if labelled else everything.unlabelled)
    return Analysis(reader, labelled, max(1, NUM_INTENSITY_SAMPLES // total)), files


def looked_at(analysis: Analysis, case: str, files: list[str]) -> CaseFingerprint | str:
    """What a case adds to the fingerprint, or what is wrong with it."""
    try:
        return analysis.of(files)
    except (*CASE_ERRORS, FileNotFoundError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        return reason if isinstance(error, UserError) else f"case {case} cannot be used: {reason}"


def look_at_cases(
    look: Looked, files: dict[str, list[str]], options: Options
) -> tuple[dict[str, CaseFingerprint], dict[str, str]]:
    """Look at cases, in this process or in several.

    Args:
        look: What is called for each; it is given the id and the files.
        files: Case id -> files.
        options: ``num_processes_fingerprint`` and ``keep_going`` of them are used.

    Returns:
        What each adds to the fingerprint; and what is wrong with others, where ``keep_going`` leaves them out.

    Raises:
        UserError: A case cannot be used; the message says why.
    """
    found: dict[str, CaseFingerprint] = {}
    failed: dict[str, str] = {}
    ended = work_on(list(files.items()), partial(_look, look), options.num_processes_fingerprint)
    with Progress(total=len(files), desc="Extracting dataset fingerprint") as bar, closing(ended):
        for (case, _), result in ended:
            if isinstance(result, CaseFingerprint):
                found[case] = result
            elif options.keep_going:
                failed[case] = result
            else:
                raise UserError(result)
            bar.update()
    return found, failed


def _look(look: Looked, item: tuple[str, list[str]]) -> CaseFingerprint | str:
    return look(*item)


def fingerprint_of(found: dict[str, CaseFingerprint]) -> dict[str, Any]:
    """nnU-Net's fingerprint.

    Args:
        found: Case id -> what it adds; at least one.
    """
    cases = [found[case] for case in sorted(found)]
    channels = range(len(cases[0].intensities))
    # an array of all channels, as nnU-Net's, so that all have one type
    intensities = np.array([np.concatenate([case.intensities[c] for case in cases]) for c in channels])
    fingerprint = {
        "spacings": [case.spacing for case in cases],
        "shapes_after_crop": [case.shape for case in cases],
        "foreground_intensity_properties_per_channel": {str(c): _statistics(intensities[c]) for c in channels},
        "median_relative_size_after_cropping": float(np.median([case.relative_size for case in cases])),
    }
    recursive_fix_for_json_export(fingerprint)
    return fingerprint


def _statistics(values: np.ndarray) -> dict[str, float]:
    """nnU-Net's statistics of the intensities of a channel."""
    low, median, high = np.percentile(values, (0.5, 50.0, 99.5))
    return {
        "mean": float(values.mean()),
        "median": float(median),
        "std": float(values.std()),
        "min": float(values.min()),
        "max": float(values.max()),
        "percentile_99_5": float(high),
        "percentile_00_5": float(low),
    }


def _verify(folder: Path, num_processes: int) -> None:
    """nnU-Net's check of the labelled cases."""
    try:
        verify_dataset_integrity(str(folder), num_processes)
    except (RuntimeError, AssertionError, FileNotFoundError) as error:  # mostly of a file: say it in one line
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"nnU-Net's {verify_dataset_integrity.__name__} failed: {reason}") from error


def is_json(path: Path) -> bool:
    """Whether a file is there and can be read as JSON."""
    try:
        read_json(path)
    except UserError:
        return False
    return True
