"""nnU-Net's preprocessing of labelled and unlabelled cases, with as many workers as pay.

nnU-Net's own ``preprocess_dataset`` starts all workers that are asked for, each of which imports torch first: small data sets
get slower with more of them. It also deletes the old files before it writes new ones.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from emim_nnunet.datasets.body import body_remarks
from emim_nnunet.datasets.folders import read_dataset_json
from emim_nnunet.datasets.preprocessed import are_many, unlabelled_folder
from emim_nnunet.datasets.raw import cases_without_orientation
from emim_nnunet.datasets.shards import WHOLE, Shard
from emim_nnunet.errors import UserError
from emim_nnunet.nnunet.images import SimpleITKIO
from emim_nnunet.nnunet.paths import nnUNet_preprocessed, nnUNet_raw
from emim_nnunet.nnunet.planning import DefaultPreprocessor
from emim_nnunet.nnunet.plans import ConfigurationManager, PlansManager
from emim_nnunet.planners.work_folder import NEW, Job, WorkFolder, said
from emim_nnunet.planners.workers import work_on
from emim_nnunet.storage.files import copy_file
from emim_nnunet.storage.locks import Lock
from emim_nnunet.storage.progress import Progress
from emim_nnunet.storage.versions import versions

logger = logging.getLogger(__name__)
CASE_ERRORS = (RuntimeError, AssertionError, ValueError)  # what nnU-Net raises where a case is not as it should be
WITHOUT_FINGERPRINT = {"ZScoreNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization"}
LABELS = "gt_segmentations"
MIN_COSINE = 0.9  # of the angle between an axis of the image and one of the patient


class UnlabelledPreprocessor(DefaultPreprocessor):
    """nnU-Net's preprocessing of a case without label. Called directly, never named in plans."""

    def run_case(self, *args: Any, **kwargs: Any) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """As nnU-Net; the data loader wants the locations of classes, of which there are none."""
        data, seg, properties = super().run_case(*args, **kwargs)
        return data, seg, properties | {"class_locations": {}}


@dataclass(frozen=True, kw_only=True)
class Part:
    """What of a preparation is done.

    Attributes:
        shard: Which cases are preprocessed.
        finish: Whether the folders are finished then, which must be complete.
        preprocess: Whether cases are preprocessed.
        keep_going: Whether a case that fails is left out instead of ending the command.
        body: Whether the body is looked for at all; shards must agree about it.
    """

    shard: Shard = WHOLE
    preprocess: bool = True
    finish: bool = True
    keep_going: bool = False
    body: bool = True


ALL = Part()


def preprocess_cases(
    name: str,
    plans_name: str,
    configurations: Sequence[str],
    labelled: dict[str, list[str]],
    unlabelled: dict[str, list[str]],
    num_processes: int,
    lock: Lock,
    *,
    find_body: Container[str] | None = (),
    verbose: bool = False,
    part: Part = ALL,
    failed: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Preprocess into ``<data_identifier>`` and ``<data_identifier>_unlabelled``; copy the labels as nnU-Net does.

    Cases that are prepared already, with the same settings and of the same files, stay as they are; see
    :class:`.work_folder.WorkFolder`. The first case is preprocessed in this process and timed; workers are started only if that
    makes the whole faster, and this process works beside them, so more processes are never slower.

    Args:
        name: ``DatasetXXX_NAME`` of a data set that is planned.
        plans_name, configurations: Names of its plans and of configurations; those that the plans have are preprocessed.
        labelled, unlabelled: Case -> its images, in the order of the channels, and its label where it has one.
        num_processes: Processes that work, at most, this one included; never more than cores or cases.
        lock: The lock of what is written, which this process holds.
        find_body: Cases whose background is not 0, see :mod:`~emim_nnunet.datasets.body`; None = as the records say.
        verbose: Whether nnU-Net says what it does.
        part: What of it is done.
        failed: Case -> what is wrong with its files, of those that are left out.

    Returns:
        Case -> why it could not be preprocessed, with ``keep_going``.

    Raises:
        UserError: A case cannot be preprocessed, or some are not when the folder is finished; that folder stays as it was.
    """
    folder = Path(nnUNet_preprocessed) / name
    plans = PlansManager(str(folder / f"{plans_name}.json"))
    dataset_json = read_dataset_json(folder)
    unsaid = cases_without_orientation(Path(nnUNet_raw) / name)
    bad = dict(failed or {})
    for configuration in [c for c in configurations if c in plans.available_configurations]:
        settings = plans.get_configuration(configuration)
        target, settled = folder / settings.data_identifier, (plans, settings, dataset_json)
        kinds: list[tuple[type[DefaultPreprocessor], Path, list[Job]]] = [
            (DefaultPreprocessor, target, _jobs(labelled, find_body, labelled=True)),
            (UnlabelledPreprocessor, unlabelled_folder(target), _jobs(unlabelled, find_body, labelled=False)),
        ]
        for preprocessor, place, jobs in kinds:
            divided = place != target and are_many(len(jobs))
            work = WorkFolder(place, decisive_settings(*settled, labelled=place == target), divided=divided)
            oriented = {job.case for job in jobs} - unsaid if plans.image_reader_writer_class is SimpleITKIO else set()
            run = _Run(work, preprocessor(verbose), settled, oriented, part.keep_going)
            bad |= _prepare(run, jobs, bad, part, num_processes, configuration)
            bad |= _finish(run, jobs, lock) if part.finish else {}
    if part.finish:
        labels = {case: Path(label) for case, (*_, label) in labelled.items() if case not in bad}
        _copy_labels(folder / LABELS, labels, dataset_json)
    return bad


def _jobs(files: Mapping[str, list[str]], find_body: Container[str] | None, *, labelled: bool) -> list[Job]:
    """The cases in the order of their ids; the last file of a labelled one is its label."""
    jobs = []
    for case, paths in sorted(files.items()):
        images, label = (paths[:-1], paths[-1]) if labelled else (paths, None)
        jobs.append(Job(case, images, label, None if find_body is None else case in find_body))
    return jobs


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


def decisive_settings(
    plans: PlansManager, configuration: ConfigurationManager, dataset_json: dict[str, Any], *, labelled: bool
) -> dict[str, Any]:
    """What decides how nnU-Net preprocesses a case, besides its files.

    Args:
        plans: The plans.
        configuration: A configuration of them.
        dataset_json: Description of the data set.
        labelled: Whether it is one of the cases with label.

    Returns:
        Plain values by the names of nnU-Net's keys. Intensities of the fingerprint are only among them where a normalisation
        uses them, so that other cases in the data set do not change how one is preprocessed.
    """
    keys = ("spacing", "patch_size", "normalization_schemes", "use_mask_for_norm", "preprocessor_name")
    content = {key: value for key, value in configuration.configuration.items() if key in keys or "resampling" in key}
    content |= {key: plans.plans[key] for key in ("transpose_forward", "image_reader_writer")}
    content |= {key: dataset_json.get(key) for key in ("labels", "regions_class_order")} if labelled else {}
    if not set(content["normalization_schemes"]) <= WITHOUT_FINGERPRINT:
        content["intensities"] = plans.plans["foreground_intensity_properties_per_channel"]
    return content | {"nnunetv2": versions()["nnunetv2"]}


@dataclass(frozen=True)
class _Run:
    """What is needed for each case of a folder."""

    work: WorkFolder
    preprocessor: DefaultPreprocessor
    plans: tuple[Any, ...]
    oriented: set[str]  # cases whose orientation is known; readers other than SimpleITK turn the images
    keep_going: bool

    def failed(self, job: Job, error: Exception) -> UserError:
        """What nnU-Net stumbles over is mostly the case."""
        reason = f"case {job.case} cannot be preprocessed: {' '.join(str(error).split())}"
        if self.keep_going:
            self.work.note_failure(job.case, reason)
            return UserError(reason)
        return UserError(f"{reason} (cases that are finished are kept; --keep_going leaves out those that fail)")


def _prepare(
    run: _Run, jobs: list[Job], bad: Mapping[str, str], part: Part, num_processes: int, configuration: str
) -> dict[str, str]:
    """Preprocess those cases of a shard that are not prepared yet; returns which failed, and why."""
    title = f"{'labelled' if any(job.label for job in jobs) else 'unlabelled'} cases, {configuration}"
    if not part.preprocess:
        return {}
    mine = part.shard.part(jobs)
    done, todo = run.work.sort(mine)
    waiting = {case for cases in todo.values() for case in cases} - set(bad)
    if waiting or bad.keys() & {job.case for job in mine}:
        run.work.begin()
        run.work.agree({"--no_body": not part.body}, first=part.finish)
    for job in mine:
        if job.case in bad:
            run.work.forget(job.case)
            run.work.note_failure(job.case, bad[job.case])
    if done or set(todo) - {NEW}:
        logger.info("%s: %d of %d are prepared already", title, len(done), len(mine))
        for line in said(todo):
            logger.info("%s: %s", title, line)
    return _run_jobs(run, [job for job in mine if job.case in waiting], num_processes, f"Preprocessing {title}")


def _finish(run: _Run, jobs: list[Job], lock: Lock) -> dict[str, str]:
    """Let the finished cases take the place of the folder of an earlier run; returns which are left out, and why."""
    work = run.work
    done, todo = work.sort(jobs)
    failures = work.failures(case for cases in todo.values() for case in cases)
    missing = {reason: sorted(set(cases) - set(failures if run.keep_going else ())) for reason, cases in todo.items()}
    missing = {reason: cases for reason, cases in missing.items() if cases}
    if missing:
        why = f"; {next(iter(failures.values()))}" if failures else ""
        raise UserError(
            f"{work.target.name} is not complete, {len(done)} of {len(jobs)} cases are prepared: "
            f"{'; '.join(said(missing))}{why}"
        )
    if failures and not done:
        return failures  # the folder of an earlier run stays
    work.finish(done, lock)
    bodies = {case: about.record.body for case, about in done.items() if about.record.body is not None}
    for line in body_remarks(bodies):
        logger.log(logging.WARNING if line.startswith("WARNING") else logging.INFO, "%s", line)
    return failures


def _run_jobs(run: _Run, jobs: list[Job], num_processes: int, title: str) -> dict[str, str]:
    """Preprocess and save cases; returns which failed, and why, where that does not end the command."""
    failed: dict[str, str] = {}
    ended = work_on(jobs, partial(_run_case, run), num_processes)
    with Progress(total=len(jobs), desc=title) as bar, closing(ended):
        for job, error in ended:
            if error is not None:
                failure = run.failed(job, error)
                if not run.keep_going:
                    raise failure from error
                failed[job.case] = str(failure)
            bar.update()
    return failed


def _run_case(run: _Run, job: Job) -> Exception | None:
    """Preprocess and save a case, and its body where that is wanted; then its record. Returns what is wrong with the case."""
    try:
        orientation = orientation_of(Path(job.images[0])) if job.case in run.oriented else ""
        run.work.do(run.preprocessor, job, run.plans, orientation)
    except CASE_ERRORS as error:
        return error
    return None


def _copy_labels(target: Path, labels: dict[str, Path], dataset_json: dict[str, Any]) -> None:
    """nnU-Net validates against them even where the raw data set is gone."""
    target.mkdir(exist_ok=True)
    for case, label in labels.items():
        copy = target / f"{case}{dataset_json['file_ending']}"
        if not copy.is_file() or copy.stat().st_mtime < label.stat().st_mtime:
            copy_file(label, copy)
