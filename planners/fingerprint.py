"""nnU-Net's fingerprint of a data set, with or without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from emim_nnunet.errors import UserError
from emim_nnunet.nnunet.descriptions import recursive_fix_for_json_export
from emim_nnunet.nnunet.images import determine_reader_writer_from_dataset_json
from emim_nnunet.nnunet.planning import DatasetFingerprintExtractor, crop_to_nonzero, extract_fingerprint_dataset
from emim_nnunet.planners.options import Options
from emim_nnunet.planners.preprocess import num_cores
from emim_nnunet.planners.raw_data import RawDataset, read_case
from emim_nnunet.storage.files import read_json, write_json

NUM_INTENSITY_SAMPLES = 10_000_000


class FingerprintExtractor(DatasetFingerprintExtractor):
    """nnU-Net's, with a tenth of its samples of the intensities.

    It always draws 1e8 of each channel, with repetition: a minute and several GB for eight channels of however small a data
    set. The statistics matter for CT alone, whose 0.5th percentile 1e7 samples give to 0.005 percentiles.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.num_foreground_voxels_for_intensitystats = NUM_INTENSITY_SAMPLES


def extract_fingerprint(dataset_id: int, raw: RawDataset, path: Path, options: Options) -> None:
    """Write the fingerprint where there is none, or none that can be read, or where the user wants it anew.

    Args:
        dataset_id: Id of the data set.
        raw: What is in its raw folder.
        path: ``dataset_fingerprint.json`` in its preprocessed folder.
        options: ``clean``, ``num_processes_fingerprint``, ``verify_integrity`` and ``verbose`` of them are used.

    Raises:
        UserError: A file cannot be read, or nnU-Net stumbles over it.
    """
    clean = options.clean or not _is_json(path)  # nnU-Net would stumble over one that was not written to its end
    if not raw.labelled:
        _extract_unlabelled_fingerprint(path, raw.description, raw.unlabelled, clean)
        return
    workers = min(options.num_processes_fingerprint, len(raw.labelled), num_cores())
    try:
        extract_fingerprint_dataset(
            dataset_id, FingerprintExtractor, workers, options.verify_integrity, clean, options.verbose
        )
    except (RuntimeError, AssertionError, FileNotFoundError) as error:  # mostly of a file: say it in one line
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines) or type(error).__name__
        raise UserError(f"nnU-Net's {extract_fingerprint_dataset.__name__} failed: {reason}") from error


def _is_json(path: Path) -> bool:
    """Whether a file is there and can be read as JSON."""
    try:
        read_json(path)
    except UserError:
        return False
    return True


def _extract_unlabelled_fingerprint(
    path: Path, dataset_json: dict[str, Any], images: dict[str, list[str]], clean: bool
) -> None:
    """nnU-Net's fingerprint where there is no label: intensities are those of non-zero voxels."""
    if path.is_file() and not clean:
        return
    reader = determine_reader_writer_from_dataset_json(dataset_json, next(iter(images.values()))[0])()
    samples_per_case = max(1, NUM_INTENSITY_SAMPLES // len(images))
    shapes, spacings, relative_sizes, intensities = [], [], [], []
    for files in tqdm(images.values(), desc="Extracting dataset fingerprint", disable=None):
        data, properties = read_case(reader, files)
        cropped, seg, _ = crop_to_nonzero(data)
        shapes.append(cropped.shape[1:])
        spacings.append(properties["spacing"])
        relative_sizes.append(np.prod(cropped.shape[1:]) / np.prod(data.shape[1:]))
        body = (seg >= 0).astype(np.int8)
        samples, _ = DatasetFingerprintExtractor.collect_foreground_intensities(
            body, cropped, num_samples=samples_per_case
        )
        intensities.append(samples)
    fingerprint = {
        "spacings": spacings,
        "shapes_after_crop": shapes,
        "foreground_intensity_properties_per_channel": {
            str(c): _statistics(np.concatenate([case[c] for case in intensities])) for c in range(len(intensities[0]))
        },
        "median_relative_size_after_cropping": float(np.median(relative_sizes)),
    }
    recursive_fix_for_json_export(fingerprint)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, fingerprint, indent=4)


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
