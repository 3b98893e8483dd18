"""Fingerprint, plan and preprocess a data set, with or without labels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from emim_nnunet.datasets.background import Background, background_remark, wrong_background
from emim_nnunet.datasets.channel_names import channel_names
from emim_nnunet.datasets.folders import read_dataset_json
from emim_nnunet.datasets.images import check_streams
from emim_nnunet.datasets.raw import check_channels, dataset_name, images_of_cases, raw_files, unlabelled_images
from emim_nnunet.datasets.splits import (
    MAX_LISTED,
    PATIENTS,
    SPLITS,
    alike,
    check_patients,
    check_splits,
    ensure_splits,
    read_origins,
    read_patients,
    read_splits,
    take_over_splits,
)
from emim_nnunet.errors import UserError
from emim_nnunet.nnunet.descriptions import get_filenames_of_train_images_and_targets, recursive_fix_for_json_export
from emim_nnunet.nnunet.images import determine_reader_writer_from_dataset_json
from emim_nnunet.nnunet.paths import nnUNet_preprocessed, nnUNet_raw
from emim_nnunet.nnunet.planning import (
    DatasetFingerprintExtractor,
    crop_to_nonzero,
    extract_fingerprint_dataset,
    plan_experiment_dataset,
)
from emim_nnunet.planners.nnUNetPlannerEMIM import nnUNetPlannerEMIM
from emim_nnunet.planners.preprocess import num_cores, preprocess_cases
from emim_nnunet.planners.transfer import Like
from emim_nnunet.settings.plans import is_folder_name
from emim_nnunet.storage.files import read_json, write_json
from emim_nnunet.storage.locks import acquire

NUM_INTENSITY_SAMPLES = 10_000_000
logger = logging.getLogger(__name__)


class FingerprintExtractor(DatasetFingerprintExtractor):
    """nnU-Net's, with a tenth of its samples of the intensities.

    It always draws 1e8 of each channel, with repetition: a minute and several GB for eight channels of however small a data
    set. The statistics matter for CT alone, whose 0.5th percentile 1e7 samples give to 0.005 percentiles.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.num_foreground_voxels_for_intensitystats = NUM_INTENSITY_SAMPLES


def plan_and_preprocess(
    dataset_id: int,
    *,
    configurations: Sequence[str] = ("2d", "3d_fullres", "3d_lowres"),
    gpu_memory_target: float | None = None,
    num_processes_fingerprint: int = 8,
    num_processes: int = 4,
    plans_name: str | None = None,
    target_spacing: Sequence[float] | None = None,
    like: Like | None = None,
    like_spacing: bool = False,
    verify_integrity: bool = False,
    clean: bool = False,
    preprocess: bool = True,
    patients: dict[str, str] | None = None,
    verbose: bool = False,
) -> str:
    """nnU-Net's three steps with our planner, for labelled and unlabelled cases.

    Args:
        dataset_id: Data set.
        configurations: To preprocess, where the plans have them.
        gpu_memory_target: GB that both stages must fit; None = the planner's default.
        num_processes_fingerprint: Workers, at most one per case and core.
        num_processes: Workers of the preprocessing, at most; see :func:`preprocess_cases`.
        plans_name: Other name of the plans.
        target_spacing: Of 3d_fullres, three numbers in mm.
        like: Take architecture, patch and batch size from there; configurations of as many axes get them.
        like_spacing: Take its spacing too.
        verify_integrity: Run nnU-Net's integrity check on the labelled cases first.
        clean: Extract the fingerprint anew.
        preprocess: False = only plan.
        patients: Case -> patient, where the conversion does not say it; a case that is missing is its own patient.
        verbose: nnU-Net's verbosity.

    Returns:
        Name of the plans.

    Raises:
        UserError: Data set, files or options are not as needed.
    """
    if gpu_memory_target is not None and gpu_memory_target <= 0:
        raise UserError(f"-gpu_memory_target must be a positive number of GB, not {gpu_memory_target}")
    if like is not None:
        plans_name = plans_name or f"nnUNetEMIMPlans_like_{like.name}"
        if like_spacing and (like.spacing is None or target_spacing is not None):
            raise UserError(
                "--like_spacing: the source does not say its spacing, or -overwrite_target_spacing is given too"
            )
        target_spacing = like.spacing if like_spacing else target_spacing
    for option, value in (("-np", num_processes), ("-npfp", num_processes_fingerprint)):
        if value < 1:
            raise UserError(f"{option} {value}: at least 1 worker is needed")
    if plans_name is not None and not is_folder_name(plans_name):
        raise UserError(f"-overwrite_plans_name {plans_name!r}: use letters, digits, _ . + and - only")
    planner = nnUNetPlannerEMIM if like is None else type("nnUNetPlannerEMIM", (nnUNetPlannerEMIM,), {"like": like})
    name = dataset_name(dataset_id)
    with acquire(Path(nnUNet_preprocessed) / name, f"{name} in nnUNet_preprocessed") as lock:
        raw = Path(nnUNet_raw) / name
        dataset_json = read_dataset_json(raw)
        labelled = _labelled_cases(raw, dataset_json)
        unlabelled = unlabelled_images(raw, dataset_json)
        if not labelled and not unlabelled:
            raise UserError(f"{raw} holds no case, neither in imagesTr nor in imagesUnlabelled")
        for known in (read_splits, read_patients, read_origins):  # of the conversion: are they readable?
            known(raw)
        fingerprint = Path(nnUNet_preprocessed) / name / "dataset_fingerprint.json"
        _check_patients(raw, fingerprint.parent, patients, {*labelled, *unlabelled})
        check_streams(raw_files(raw, dataset_json), num_processes_fingerprint)
        check_channels(raw, dataset_json, num_processes_fingerprint)
        train = get_filenames_of_train_images_and_targets(str(raw), dataset_json) if labelled else {}
        images = {case: files["images"] for case, files in train.items()} | unlabelled
        remark = _background_of_images(images, dataset_json, num_processes_fingerprint)
        if remark:
            logger.warning("WARNING: %s", remark)
        clean = clean or not _is_json(fingerprint)  # nnU-Net would stumble over one that was not written to its end
        if labelled:
            workers = min(num_processes_fingerprint, len(labelled), num_cores())
            _stock(
                extract_fingerprint_dataset,
                dataset_id,
                FingerprintExtractor,
                workers,
                verify_integrity,
                clean,
                verbose,
            )
        else:
            _extract_unlabelled_fingerprint(fingerprint, dataset_json, unlabelled, clean)
        take_over_splits(raw, fingerprint.parent)
        if patients is not None:
            write_json(fingerprint.parent / PATIENTS, patients)
        _, plans = plan_experiment_dataset(
            dataset_id, planner, gpu_memory_target, "DefaultPreprocessor", target_spacing, plans_name
        )
        if preprocess:
            preprocess_cases(name, plans, configurations, unlabelled, num_processes, lock, verbose=verbose)
        ensure_splits(fingerprint.parent, labelled)
    if remark:
        logger.warning("WARNING: %s", remark)  # again: nnU-Net has printed much since
    return plans


def _background_of_images(images: dict[str, list[str]], dataset_json: dict[str, Any], num_threads: int) -> str:
    """Look for images whose background is not 0.

    Args:
        images: Case -> its files.
        dataset_json: Of the data set.
        num_threads: Files read at a time.

    Returns:
        A line that says which and what helps, or an empty string.

    Raises:
        UserError: A file cannot be read.
    """
    reader = determine_reader_writer_from_dataset_json(dataset_json, next(iter(images.values()))[0], verbose=False)()
    names = channel_names(dataset_json)

    def look(files: list[str]) -> list[Background | None]:
        return [wrong_background(channel) for file in files for channel in _read(reader, [file])[0]]

    found: dict[str, Background] = {}
    with ThreadPoolExecutor(num_threads) as pool:
        looks = tqdm(pool.map(look, images.values()), "Looking at backgrounds", len(images), disable=None)
        for case, backgrounds in zip(images, looks, strict=True):
            named = zip(names, backgrounds, strict=False)
            found |= {f"case {case}, {name}": background for name, background in named if background}
    if not found:
        return ""
    return (
        f"{background_remark(found, len(images) * len(names))}: set it to 0; emim_convert does with --background_to_zero or a "
        f"--mask"
    )


def _check_patients(raw: Path, preprocessed: Path, patients: dict[str, str] | None, cases: set[str]) -> None:
    """What ``--patients`` says must agree with the rest; without it, ids that look like several of a patient are told."""
    if patients is None:
        group = [] if read_patients(raw) or read_patients(preprocessed) else alike(cases)
        if group:
            logger.warning(
                "WARNING: %s look like visits or slices of one patient, but each case is taken for a patient: cases of one may "
                "then be in training and validation. --patients FILE says whose each case is",
                ", ".join(group[:MAX_LISTED]),
            )
        return
    if (raw / PATIENTS).is_file():
        raise UserError(f"--patients: {raw / PATIENTS} says already whose each case is: edit that file, or remove it")
    check_patients(patients, cases, raw.name)
    for folder in (preprocessed, raw):  # that of the raw data counts only where there is no other
        if (folder / SPLITS).is_file():
            check_splits(folder, patients)
            break
    own = len(cases - set(patients))
    if own:
        logger.info("--patients says nothing of %d of %d cases: each of them is a patient", own, len(cases))


def _labelled_cases(raw: Path, dataset_json: dict[str, Any]) -> list[str]:
    """Ids of the cases in imagesTr, each with its label."""
    ending = dataset_json["file_ending"]
    if "dataset" in dataset_json:
        return sorted(dataset_json["dataset"])
    cases = sorted(images_of_cases(raw / "imagesTr", dataset_json))
    for case in cases:
        label = raw / "labelsTr" / f"{case}{ending}"
        if not label.is_file():
            raise UserError(f"{label} is missing: cases without label belong into {raw / 'imagesUnlabelled'}")
    return cases


def _stock(step: Any, *args: Any) -> None:
    """Run a step of nnU-Net; what its workers stumble over is mostly a file, so say it in one line."""
    try:
        step(*args)
    except (RuntimeError, AssertionError, FileNotFoundError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(f"nnU-Net's {step.__name__} failed: {' '.join(lines) or type(error).__name__}") from error


def _is_json(path: Path) -> bool:
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
        data, properties = _read(reader, files)
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


def _read(reader: Any, files: list[str]) -> tuple[np.ndarray, dict[str, Any]]:
    try:
        return reader.read_images(files)
    except RuntimeError as error:
        raise UserError(
            f"{files[0]}, or another channel of that case, cannot be read ({str(error).splitlines()[0]})"
        ) from error


def _statistics(values: np.ndarray) -> dict[str, float]:
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
