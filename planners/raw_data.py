"""Looking at a raw data set before it is planned: which cases there are, and whether their files can be used."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from emim_nnunet.datasets.background import Background, background_remark, wrong_background
from emim_nnunet.datasets.channel_names import channel_names
from emim_nnunet.datasets.folders import read_dataset_json
from emim_nnunet.datasets.images import damaged_files
from emim_nnunet.datasets.raw import check_channels, images_of_cases, unlabelled_images
from emim_nnunet.datasets.shards import Shard
from emim_nnunet.datasets.splits import (
    MAX_LISTED,
    PATIENTS,
    SPLITS,
    alike,
    check_patients,
    check_splits,
    read_origins,
    read_patients,
    read_splits,
)
from emim_nnunet.errors import UserError
from emim_nnunet.nnunet.descriptions import get_filenames_of_train_images_and_targets
from emim_nnunet.nnunet.images import determine_reader_writer_from_dataset_json
from emim_nnunet.planners.seen_files import SeenFiles
from emim_nnunet.planners.workers import work_on
from emim_nnunet.storage.progress import Progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RawDataset:
    """A raw data set that can be planned.

    Attributes:
        folder: Its folder ``nnUNet_raw/DatasetXXX_NAME``.
        description: Content of its dataset.json.
        labelled: Ids of the cases in imagesTr, ascending.
        unlabelled: Id of a case in imagesUnlabelled -> its images, in the order of the channels.
        labelled_files: Id of any case in imagesTr -> its images and its label.
        failed: Id of a case that is left out of both -> what is wrong with its files.
    """

    folder: Path
    description: dict[str, Any]
    labelled: list[str]
    unlabelled: dict[str, list[str]]
    labelled_files: dict[str, list[str]]
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, list[str]]:
        """Id of a case -> its images, in the order of the channels, and its label where it has one."""
        return {case: self.labelled_files[case] for case in self.labelled} | self.unlabelled

    def part(self, shard: Shard) -> RawDataset:
        """The cases of a shard: some of the labelled and some of the unlabelled ones."""
        cases = shard.part(sorted(self.unlabelled))
        return replace(
            self, labelled=shard.part(self.labelled), unlabelled={case: self.unlabelled[case] for case in cases}
        )

    def without(self, failed: dict[str, str]) -> RawDataset:
        """Leave out cases.

        Args:
            failed: Id -> what is wrong with the files.
        """
        return replace(
            self,
            labelled=[case for case in self.labelled if case not in failed],
            unlabelled={case: images for case, images in self.unlabelled.items() if case not in failed},
            failed=self.failed | failed,
        )


def look_at_raw_dataset(
    folder: Path,
    preprocessed: Path,
    patients: dict[str, str] | None,
    num_threads: int,
    *,
    keep_going: bool = False,
    seen: SeenFiles | None = None,
) -> RawDataset:
    """Find the cases of a raw data set, and check all its files.

    Args:
        folder: ``nnUNet_raw/DatasetXXX_NAME``.
        preprocessed: ``nnUNet_preprocessed/DatasetXXX_NAME``, which need not exist.
        patients: Case -> patient, as the user says; None = the user says nothing.
        num_threads: Number of files that are read at a time.
        keep_going: Whether cases with a damaged file are left out.
        seen: Cases whose files are not read again.

    Raises:
        UserError: There is no case, a file is missing, damaged or not as it should be, or patients and folds contradict.
    """
    raw = find_cases(folder)
    check_whose(raw, preprocessed, patients)
    raw = check_files(raw, num_threads, keep_going=keep_going, seen=seen)
    if not raw.labelled and not raw.unlabelled:
        raise UserError(next(iter(raw.failed.values())))
    return raw


def find_cases(folder: Path) -> RawDataset:
    """Find the cases of a raw data set, by the names of their files.

    Args:
        folder: ``nnUNet_raw/DatasetXXX_NAME``.

    Raises:
        UserError: There is no case, or a file is missing.
    """
    description = read_dataset_json(folder)
    labelled = labelled_files(folder, description)
    raw = RawDataset(folder, description, list(labelled), unlabelled_images(folder, description), labelled)
    if not raw.labelled and not raw.unlabelled:
        raise UserError(f"{folder} holds no case, neither in imagesTr nor in imagesUnlabelled")
    for known in (read_splits, read_patients, read_origins):  # of the conversion: are they readable?
        known(folder)
    return raw


def check_files(
    raw: RawDataset, num_threads: int, *, keep_going: bool = False, seen: SeenFiles | None = None
) -> RawDataset:
    """Read all files of the cases.

    Args:
        raw: The cases.
        num_threads: Number of files that are read at a time.
        keep_going: Whether cases with a damaged file are left out; otherwise one ends the command.
        seen: Cases whose files are not read again.

    Returns:
        The cases that can be used.

    Raises:
        UserError: A file is damaged or not as it should be; the message names the first one.
    """
    unseen = {case: files for case, files in raw.files.items() if seen is None or seen.backgrounds(case, files) is None}
    owners = {Path(file): case for case, files in unseen.items() for file in files}
    failed: dict[str, str] = {}
    for file, damage in damaged_files(sorted(owners), num_threads):
        if not keep_going:
            raise UserError(f"{file} {damage}")
        failed.setdefault(owners[file], f"{file.name} {damage}")
    raw = raw.without(failed)
    if unseen and not failed:
        check_channels(raw.folder, raw.description, num_threads)
    return raw


def look_at_backgrounds(raw: RawDataset, num_processes: int, seen: SeenFiles | None = None) -> tuple[str, set[str]]:
    """Look for images whose background is not 0.

    Args:
        raw: The data set, of which :func:`check_files` has found all files to be whole.
        num_processes: The most processes that read, this one included.
        seen: Cases whose files are not read again; the others are noted there.

    Returns:
        A line that says which and what helps, or an empty string; ids of the cases with such an image.

    Raises:
        UserError: A file cannot be read; the message names it.
    """
    if not raw.labelled and not raw.unlabelled:
        return "", set()
    files = raw.files
    known = {case: None if seen is None else seen.backgrounds(case, paths) for case, paths in files.items()}
    names = channel_names(raw.description)
    labelled = set(raw.labelled)
    unseen = {c: files[c][:-1] if c in labelled else files[c] for c, about in known.items() if about is None}
    for case, about in _backgrounds(unseen, raw.description, num_processes):
        known[case] = about
        if seen is not None:
            seen.note(case, files[case], about)
    found = {
        f"case {case}, {names[channel]}": background
        for case, about in known.items()
        for channel, background in (about or {}).items()
        if channel < len(names)
    }
    wrong = {case for case, about in known.items() if about}
    if not found:
        return "", wrong
    remark = (
        f"{background_remark(found, len(files) * len(names))}: set it to 0; emim_convert does with --background_to_zero or a "
        f"--mask"
    )
    return remark, wrong


def _backgrounds(
    images: dict[str, list[str]], dataset_json: dict[str, Any], num_processes: int
) -> Iterator[tuple[str, dict[int, Background]]]:
    """Read cases, in processes: in threads SimpleITK may crash. Yields each with its channels whose background is not 0."""
    if not images:
        return
    reader = determine_reader_writer_from_dataset_json(dataset_json, next(iter(images.values()))[0], verbose=False)()

    looks = work_on(list(images.items()), partial(_background, reader), num_processes)
    with closing(looks):
        for (case, _), background in Progress(looks, "Looking at backgrounds", len(images)):
            yield case, background


def _background(reader: Any, case: tuple[str, list[str]]) -> dict[int, Background]:
    """Channel -> what its background is, of a case that has others than 0."""
    found = [wrong_background(channel) for file in case[1] for channel in read_case(reader, [file])[0]]
    return {number: background for number, background in enumerate(found) if background}


def check_whose(raw: RawDataset, preprocessed: Path, patients: dict[str, str] | None) -> None:
    """Whether what ``--patients`` says agrees with the rest; without it, ids that look like several of a patient are told.

    Args:
        raw: All cases.
        preprocessed: The preprocessed data set, which need not exist.
        patients: Case -> patient; None = the user says nothing.

    Raises:
        UserError: It does not.
    """
    cases = {*raw.labelled, *raw.unlabelled}
    if patients is None:
        group = [] if read_patients(raw.folder) or read_patients(preprocessed) else alike(cases)
        if group:
            logger.warning(
                "WARNING: %s look like visits or slices of one patient, but each case is taken for a patient: cases of one may "
                "then be in training and validation. --patients FILE says whose each case is",
                ", ".join(group[:MAX_LISTED]),
            )
        return
    if (raw.folder / PATIENTS).is_file():
        raise UserError(
            f"--patients: {raw.folder / PATIENTS} says already whose each case is: edit that file, or remove it"
        )
    check_patients(patients, cases, raw.folder.name)
    for folder in (preprocessed, raw.folder):  # that of the raw data counts only where there is no other
        if (folder / SPLITS).is_file():
            check_splits(folder, patients)
            break
    own = len(cases - set(patients))
    if own:
        logger.info("--patients says nothing of %d of %d cases: each of them is a patient", own, len(cases))


def labelled_files(raw: Path, dataset_json: dict[str, Any]) -> dict[str, list[str]]:
    """The cases in imagesTr, each with its label, or those that ``dataset.json`` lists.

    Args:
        raw: ``nnUNet_raw/DatasetXXX_NAME``.
        dataset_json: Description of the data set.

    Returns:
        Id -> images in the order of the channels, then the label; ascending.

    Raises:
        UserError: A file is missing.
    """
    if "dataset" in dataset_json:
        listed = get_filenames_of_train_images_and_targets(str(raw), dataset_json)
        return {case: [*listed[case]["images"], listed[case]["label"]] for case in sorted(listed)}
    found = {}
    # nnU-Net's function starts twelve processes to list a folder
    for case, images in sorted(images_of_cases(raw / "imagesTr", dataset_json).items()):
        label = raw / "labelsTr" / f"{case}{dataset_json['file_ending']}"
        if not label.is_file():
            raise UserError(f"{label} is missing: cases without label belong into {raw / 'imagesUnlabelled'}")
        found[case] = [*images, str(label)]
    return found


def read_case(reader: Any, files: list[str]) -> tuple[np.ndarray, dict[str, Any]]:
    """Read images with a reader of nnU-Net's.

    Args:
        reader: An instance of the reader that the data set needs.
        files: Images of a case, or some of them.

    Returns:
        Voxels (channels, z, y, x), and nnU-Net's properties of the case.

    Raises:
        UserError: nnU-Net's reader fails; the message names the first file.
    """
    try:
        return reader.read_images(files)
    except RuntimeError as error:
        raise UserError(
            f"{files[0]}, or another channel of that case, cannot be read ({str(error).splitlines()[0]})"
        ) from error
