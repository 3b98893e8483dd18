"""nnU-Net's preprocessing of labelled and unlabelled cases, with as many workers as pay.

nnU-Net's own ``preprocess_dataset`` starts all workers that are asked for, each of which imports torch first: small data sets
get slower with more of them. It also deletes the old files before it writes new ones.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from emim_nnunet.datasets.body import body_remarks, write_body
from emim_nnunet.datasets.checksums import Checksums, checksums_of, write_record
from emim_nnunet.datasets.folders import read_dataset_json
from emim_nnunet.datasets.preprocessed import body_folder, case_identifiers, orientations_file
from emim_nnunet.datasets.raw import cases_without_orientation
from emim_nnunet.errors import UserError
from emim_nnunet.nnunet.descriptions import get_filenames_of_train_images_and_targets
from emim_nnunet.nnunet.images import SimpleITKIO
from emim_nnunet.nnunet.paths import nnUNet_preprocessed, nnUNet_raw
from emim_nnunet.nnunet.planning import DefaultPreprocessor
from emim_nnunet.nnunet.plans import PlansManager
from emim_nnunet.storage.files import copy_file, left_work_folders, new_work_folder, write_json
from emim_nnunet.storage.locks import Lock

logger = logging.getLogger(__name__)
WORKER_START_SECONDS = 8.0  # a worker imports torch and nnunetv2 before its first case
MIN_COSINE = 0.9  # of the angle between an axis of the image and one of the patient


class Job(NamedTuple):
    """A case to be preprocessed: where to, its images, its label where it has one, and whether its body is looked for."""

    target: str
    images: list[str]
    label: str | None
    find_body: bool

    @property
    def case(self) -> str:
        """Its id."""
        return Path(self.target).name


class Prepared(NamedTuple):
    """A preprocessed case: its id, checksums, and the share of the volume that its body fills, where that was looked for."""

    case: str
    checksums: Checksums
    body: float | None


class UnlabelledPreprocessor(DefaultPreprocessor):
    """nnU-Net's preprocessing of a case without label. Called directly, never named in plans."""

    def run_case(self, *args: Any, **kwargs: Any) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """As nnU-Net; the data loader wants the locations of classes, of which there are none."""
        data, seg, properties = super().run_case(*args, **kwargs)
        return data, seg, properties | {"class_locations": {}}


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def preprocess_cases(
    name: str,
    plans_name: str,
    configurations: Sequence[str],
    unlabelled: dict[str, list[str]],
    num_processes: int,
    lock: Lock,
    *,
    find_body: Container[str] = (),
    verbose: bool = False,
) -> None:
    """Preprocess into ``<data_identifier>`` and ``<data_identifier>_unlabelled``; copy the labels as nnU-Net does.

    A folder replaces the one of an earlier run only when it is complete; its checksums are written then. The first case is
    preprocessed in this process and timed; workers are started only if that makes the whole faster, so more workers are never
    slower.

    Args:
        name: ``DatasetXXX_NAME`` of a data set that is planned.
        plans_name: Name of its plans.
        configurations: Names of configurations; those that the plans have are preprocessed.
        unlabelled: Case without label -> its images, in the order of the channels.
        num_processes: Workers, at most; never more than cores or cases.
        lock: The lock of the preprocessed data set, which this process holds.
        find_body: Cases whose background is not 0, see :mod:`~emim_nnunet.datasets.body`.
        verbose: Whether nnU-Net says what it does.

    Raises:
        UserError: A case cannot be preprocessed; the folder of its configuration stays as it was.
    """
    folder, raw = Path(nnUNet_preprocessed) / name, Path(nnUNet_raw) / name
    plans = PlansManager(str(folder / f"{plans_name}.json"))
    dataset_json = read_dataset_json(folder)
    any_labelled = "dataset" in dataset_json or (raw / "imagesTr").is_dir()
    cases = get_filenames_of_train_images_and_targets(str(raw), dataset_json) if any_labelled else {}
    labelled = {case: (files["images"], files["label"]) for case, files in cases.items()}
    parts = [
        ("", "labelled", DefaultPreprocessor(verbose), labelled),
        ("_unlabelled", "unlabelled", UnlabelledPreprocessor(verbose), {c: (f, None) for c, f in unlabelled.items()}),
    ]
    unsaid = cases_without_orientation(raw)
    for configuration in [c for c in configurations if c in plans.available_configurations]:
        settings = plans.get_configuration(configuration)
        for suffix, kind, preprocessor, files in parts:
            target = folder / f"{settings.data_identifier}{suffix}"
            with _replaced(target, sorted(files), lock) as partial:
                jobs = [Job(str(partial / case), *inputs, case in find_body) for case, inputs in files.items()]
                title = f"Preprocessing {kind} cases, {configuration}"
                done = _run_jobs(preprocessor, jobs, (plans, settings, dataset_json), num_processes, title)
                orientations_file(target).unlink(missing_ok=True)  # rather none than those of other images
            write_record(target, [case.checksums for case in done])
            for line in body_remarks({case.case: case.body for case in done if case.body is not None}):
                logger.log(logging.WARNING if line.startswith("WARNING") else logging.INFO, "%s", line)
            if plans.image_reader_writer_class is SimpleITKIO:  # others turn the images
                images = {case: Path(paths[0]) for case, (paths, _) in files.items() if case not in unsaid}
                _write_orientations(images, target)
    _copy_labels(
        folder / "gt_segmentations", {case: Path(label) for case, (_, label) in labelled.items()}, dataset_json
    )


def _write_orientations(images: dict[str, Path], folder: Path) -> None:
    """Note to which side of the patient the array axes of raw images (z, y, x) lead, of those whose header says it."""
    found = {case: orientation_of(image) for case, image in images.items()}
    known = {case: letters for case, letters in found.items() if letters}
    if known:
        orientations_file(folder).parent.mkdir(exist_ok=True)
        write_json(orientations_file(folder), known)


def orientation_of(image: Path) -> str:
    """To which side of the patient the array axes of an image lead.

    Args:
        image: Any file that SimpleITK reads; the header is read only.

    Returns:
        A letter for each of z, y, x, for example ``SPL``. Empty for everything but a NIfTI file that says its orientation and
        lies within 25 degrees of the axes of the patient: no letter is better than a wrong one.
    """
    if not image.name.endswith((".nii", ".nii.gz")):
        return ""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(image))
    reader.ReadImageInformation()
    if reader.GetDimension() != 3 or all(int(reader.GetMetaData(f"{form}form_code")) == 0 for form in "qs"):
        return ""
    direction = reader.GetDirection()
    if np.abs(direction).reshape(3, 3).max(0).min() < MIN_COSINE:
        return ""
    return sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(direction)[::-1]


@contextmanager
def _replaced(folder: Path, cases: list[str], lock: Lock) -> Iterator[Path]:
    """A folder to fill with ``cases``, which then takes the place of ``folder``; without cases that is only taken away.

    The folder of their bodies goes along.
    """
    for place in (folder, body_folder(folder)):
        for left in left_work_folders(place.parent, f"{place.name}."):
            shutil.rmtree(left, ignore_errors=True)
    partial, old = new_work_folder(folder), new_work_folder(folder)
    partial.mkdir()
    try:
        yield partial
        if case_identifiers(partial) != cases:
            raise UserError(f"preprocessed cases have vanished from {partial}: repeat the command")
        lock.check()
        if folder.is_dir():
            folder.rename(old)
        for source, target in ((folder, old), (partial, folder)):  # before the cases: these must never be without
            if body_folder(source).is_dir():
                body_folder(source).rename(body_folder(target))
        if cases:
            partial.rename(folder)
    finally:
        for left in (partial, old, body_folder(partial), body_folder(old)):
            shutil.rmtree(left, ignore_errors=True)
        with suppress(OSError):  # not empty, or never made
            body_folder(folder).parent.rmdir()


def _run_jobs(
    preprocessor: DefaultPreprocessor, jobs: list[Job], plans: tuple, num_processes: int, title: str
) -> list[Prepared]:
    """Preprocess and save all cases."""
    done: list[Prepared] = []
    with tqdm(total=len(jobs), desc=title, disable=None) as bar:
        begin = perf_counter()
        for number, job in enumerate(jobs):
            seconds = (perf_counter() - begin) / number if number else 0.0
            workers = num_workers(len(jobs) - number, seconds, num_processes)
            if workers > 1:
                return done + _run_pool(preprocessor, jobs[number:], plans, workers, bar)
            try:
                done.append(_run_case(preprocessor, job, plans))
            except (RuntimeError, AssertionError, ValueError) as error:
                raise _failed(job, error) from error
            bar.update()
    return done


def _run_case(preprocessor: DefaultPreprocessor, job: Job, plans: tuple) -> Prepared:
    """Preprocess and save a case, and its body where that is wanted."""
    preprocessor.run_case_save(job.target, job.images, job.label, *plans)
    folder = Path(job.target).parent
    body = write_body(folder, job.case) if job.find_body else None
    return Prepared(job.case, checksums_of(folder, job.case), body)


def num_workers(num_cases: int, seconds_per_case: float, limit: int) -> int:
    """How many workers make the remaining cases fastest.

    Args:
        num_cases: Number of cases that remain.
        seconds_per_case: Seconds that a case takes in this process; 0 = not known.
        limit: The most workers that are allowed.

    Returns:
        Number of workers to start; 1 = go on in this process.
    """
    allowed = min(limit, num_cases, num_cores())
    alone = num_cases * seconds_per_case
    return allowed if allowed > 1 and WORKER_START_SECONDS + alone / allowed < alone else 1


def _run_pool(
    preprocessor: DefaultPreprocessor, jobs: list[Job], plans: tuple, num_workers: int, bar: tqdm
) -> list[Prepared]:
    """As :func:`_run_jobs`, with workers."""
    prepared = []
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(_run_case, preprocessor, job, plans): job for job in jobs}
        try:
            for done in as_completed(running):
                prepared.append(done.result())
                bar.update()
        except BrokenProcessPool as error:
            raise UserError("a preprocessing worker was killed, probably for memory: use a smaller -np") from error
        except (RuntimeError, AssertionError, ValueError) as error:
            raise _failed(running[done], error) from error
        finally:
            pool.shutdown(cancel_futures=True)
    return prepared


def _failed(job: Job, error: Exception) -> UserError:
    """What nnU-Net stumbles over is mostly the case."""
    return UserError(f"case {job.case} cannot be preprocessed: {' '.join(str(error).split())}")


def _copy_labels(target: Path, labels: dict[str, Path], dataset_json: dict[str, Any]) -> None:
    """nnU-Net validates against them even where the raw data set is gone."""
    target.mkdir(exist_ok=True)
    for case, label in labels.items():
        copy = target / f"{case}{dataset_json['file_ending']}"
        if not copy.is_file() or copy.stat().st_mtime < label.stat().st_mtime:
            copy_file(label, copy)
