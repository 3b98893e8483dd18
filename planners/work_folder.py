"""The work on a folder of preprocessed cases: a hidden folder beside it, which goes on where it was interrupted."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from emim_nnunet.datasets.body import is_sensible, write_body
from emim_nnunet.datasets.checksums import checksums_of
from emim_nnunet.datasets.preprocessed import (
    body_folder,
    case_identifiers,
    case_path,
    case_stamp,
    open_case,
    orientations_file,
    properties_file,
    stamped_file,
    subfolder,
)
from emim_nnunet.datasets.records import (
    Record,
    read_records,
    same_sources,
    sources_of,
    with_files,
    work_place,
    write_records,
)
from emim_nnunet.errors import UserError, listed
from emim_nnunet.nnunet.planning import DefaultPreprocessor
from emim_nnunet.storage.files import left_work_folders, read_json_object, write_json
from emim_nnunet.storage.locks import Lock, acquire

NEW, CHANGED, LOST = "new", "their images or labels have changed", "their prepared files are missing or others"
UNKNOWN = "they have no record (of an older version, or of nnU-Net), so it cannot be known what they were made of"
OPTIONS_PATIENCE = 60.0  # seconds that a shard waits for others that start with it
BODY_CHANGED = "whether their body is looked for has changed"


class Job(NamedTuple):
    """A case to be preprocessed: its id, its images, its label where it has one, and whether its body is looked for.

    ``find_body`` is None where it does not matter.
    """

    case: str
    images: list[str]
    label: str | None
    find_body: bool | None

    @property
    def sources(self) -> list[str]:
        """Its images, and its label."""
        return [*self.images, *([] if self.label is None else [self.label])]


class Done(NamedTuple):
    """A case that is prepared: its record, and the folder that holds its files."""

    record: Record
    place: Path


def digest_of(settings: Mapping[str, Any]) -> str:
    """A digest of settings: 16 hexadecimal digits."""
    return sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


class WorkFolder:
    """The work on a folder of preprocessed cases.

    Every finished case stays, with a record that is written after its files. The folder takes the place of ``target`` when it
    is complete; until then ``target`` stays as it was. Several processes may work on different cases.

    Args:
        target: The folder that is prepared.
        settings: What decides the result, plain values.
        divided: Whether the cases lie in subfolders, which nnU-Net does not look into.
    """

    def __init__(self, target: Path, settings: Mapping[str, Any], *, divided: bool = False) -> None:
        self.target, self.settings, self.divided = target, settings, divided
        self.digest = digest_of(settings)
        self.place = work_place(target)
        self.cases = self.place / "cases"

    def _where(self, case: str) -> Path:
        """Where the files of a case lie below a folder of cases, without ending."""
        return Path(subfolder(case), case) if self.divided else Path(case)

    def _record_files(self, case: str) -> list[Path]:
        """Where the record of a case is, and where it may have been left when there were fewer cases, or more."""
        places = dict.fromkeys((self._where(case).parent, Path(), Path(subfolder(case))))
        return [self.place / "records" / place / f"{case}.json" for place in places]

    def _failure_file(self, case: str) -> Path:
        return self.place / "failed" / f"{case}.json"

    def sort(self, jobs: Sequence[Job]) -> tuple[dict[str, Done], dict[str, list[str]]]:
        """Find out which cases are prepared as they should be.

        Args:
            jobs: The cases that are wanted.

        Returns:
            The finished cases, by id; and the ids of the others, by the reason why they must be done.
        """
        old_settings, finished = read_records(self.target)
        here = set(case_identifiers(self.target))
        started = self.place.is_dir()
        done: dict[str, Done] = {}
        todo: dict[str, list[str]] = {}
        for job in jobs:
            reason = UNKNOWN if job.case in here else NEW
            own = next(filter(None, map(_read_record, self._record_files(job.case))), None) if started else None
            for record, places in ((finished.get(job.case), [self.target]), (own, [self.cases, self.target])):
                if record is None or job.case in done:
                    continue
                reason = self._unfit(record, job, old_settings)
                found = None if reason else _find(record, places, job.case)
                if found is not None:
                    done[job.case] = found
                reason = reason or LOST
            if job.case not in done:
                todo.setdefault(reason, []).append(job.case)
        return done, todo

    def _unfit(self, record: Record, job: Job, old_settings: Mapping[str, Any]) -> str:
        """Why a record is not that of a case as it is wanted now; empty where it is."""
        if record.settings != self.digest:
            old = (
                old_settings
                if digest_of(old_settings) == record.settings
                else read_json_object(self._settings_file(record))
            )
            keys = sorted(key for key in {*old, *self.settings} if old.get(key) != self.settings.get(key))
            return f"other settings ({', '.join(keys)})" if old else "other settings"
        if job.find_body is not None and (record.body is not None) != job.find_body:
            return BODY_CHANGED
        return "" if same_sources(record.sources, job.sources) else CHANGED

    def _settings_file(self, record: Record) -> Path:
        return self.place / "settings" / f"{record.settings}.json"

    def begin(self) -> None:
        """Make the folder, where it is not there yet."""
        for folder in ("cases", "records", "failed", "settings"):
            (self.place / folder).mkdir(parents=True, exist_ok=True)
        write_json(self.place / "settings" / f"{self.digest}.json", self.settings)

    def agree(self, options: Mapping[str, bool], *, first: bool) -> None:
        """Check that all processes that work on the folder were given the same options.

        Args:
            options: Name of an option -> whether it was given.
            first: Whether this process does all cases, so that what others were given before does not count.

        Raises:
            UserError: An earlier shard was given others.
        """
        file = self.place / "options.json"
        with acquire(file, f"{self.place.name} in nnUNet_preprocessed", OPTIONS_PATIENCE):
            known = {} if first else read_json_object(file)
            other = [name for name, given in options.items() if known.get(name, given) != given]
            if other:
                begun = " ".join(name for name in other if known[name]) or f"no {' '.join(other)}"
                raise UserError(
                    f"{self.target.name}: other shards were given {begun}, and all must be given the same. To begin anew with "
                    f"other options, remove {self.place}"
                )
            write_json(file, dict(options))

    def do(self, preprocessor: DefaultPreprocessor, job: Job, plans: tuple[Any, ...], orientation: str) -> None:
        """Preprocess a case, then write its record.

        Args:
            preprocessor: nnU-Net's, or one like it.
            job: The case.
            plans: nnU-Net's plans, configuration and dataset.json.
            orientation: For the record.

        Raises:
            Exception: Whatever nnU-Net raises; the case has no record then.
        """
        self.forget(job.case)
        sources = sources_of(job.sources)
        case = self.cases / self._where(job.case)
        record_file = self._record_files(job.case)[0]
        for file in (case, record_file):
            file.parent.mkdir(exist_ok=True)
        preprocessor.run_case_save(str(case), job.images, job.label, *plans)
        body = write_body(self.cases, job.case) if job.find_body else None
        warnings = ["its background is not 0"] if job.find_body else []
        warnings += ["no body was found in it"] if body is not None and not is_sensible(body) else []
        stamp = case_stamp(self.cases, job.case)
        voxels = [stamped_file(self.cases, job.case, name) for name, *_ in stamp]
        for file in [*voxels, properties_file(self.cases, job.case)]:
            with file.open("rb") as written:
                os.fsync(written.fileno())  # the record must not outlive the files
        shape = list(open_case(self.cases, job.case)[0].shape)
        files = checksums_of(self.cases, job.case)
        record = Record(self.digest, sources, files, shape, body, orientation, warnings)
        write_json(record_file, record.to_json())

    def forget(self, case: str) -> None:
        """Remove what there is of a case, its record first."""
        old = case_path(self.cases, case).relative_to(self.cases)
        files = [file for where in (old, self._where(case)) for file in self._files(self.cases, where)]
        for file in (*self._record_files(case), self._failure_file(case), *files):
            file.unlink(missing_ok=True)

    @staticmethod
    def _files(folder: Path, where: Path) -> list[Path]:
        """The files of a case; ``where`` it lies below ``folder``, without ending."""
        files = [folder / where.with_name(f"{where.name}{ending}") for ending in (".b2nd", "_seg.b2nd", ".pkl")]
        return [*files, body_folder(folder) / where.with_name(f"{where.name}.b2nd")]

    def note_failure(self, case: str, reason: str) -> None:
        """Remember why a case cannot be preprocessed, until it is tried again."""
        write_json(self._failure_file(case), {"reason": reason})

    def failures(self, cases: Iterable[str]) -> dict[str, str]:
        """Why some cases could not be preprocessed when they were last tried."""
        found = {case: read_json_object(self._failure_file(case)).get("reason") for case in cases}
        return {case: str(reason) for case, reason in found.items() if reason}

    def finish(self, done: Mapping[str, Done], lock: Lock) -> None:
        """Let the folder take the place of the target.

        Args:
            done: The cases that it shall hold, of :meth:`sort`.
            lock: The lock of the data set, which this process holds.

        Raises:
            UserError: Cases have vanished, or the lock was taken over.
        """
        records = {case: about.record for case, about in done.items()}
        if not self._is_finished(done) and (done or self.target.is_dir()):
            self.begin()
            for case, about in done.items():
                self._take_over(about.place, case)
            wanted = {file for case in done for file in self._files(self.cases, self._where(case))}
            for file in [*self.cases.rglob("*"), *body_folder(self.cases).rglob("*")]:
                if file not in wanted and not file.is_dir():
                    file.unlink()
            if case_identifiers(self.cases) != sorted(done):
                raise UserError(f"preprocessed cases have vanished from {self.cases}: repeat the command")
            lock.check()
            self._replace(bool(done))
        orientations = {case: record.orientation for case, record in sorted(records.items()) if record.orientation}
        orientations_file(self.target).unlink(missing_ok=True)  # rather none than those of other images
        write_records(self.target, self.settings if records else {}, records)
        if orientations:
            orientations_file(self.target).parent.mkdir(exist_ok=True)
            write_json(orientations_file(self.target), orientations)
        self.remove()

    def _is_finished(self, done: Mapping[str, Done]) -> bool:
        """Whether the target holds these cases as they should be, and nothing else."""
        in_place = all(about.place == self.target for about in done.values())
        return bool(done) and in_place and case_identifiers(self.target) == sorted(done)

    def _take_over(self, folder: Path, case: str) -> None:
        """Give the files of a case a second name where they belong here; without hard links they are copied."""
        old, new = case_path(folder, case), self.cases / self._where(case)
        if old == new:
            return
        sources = self._files(folder, old.relative_to(folder))
        for source, target in zip(sources, self._files(self.cases, self._where(case)), strict=True):
            target.unlink(missing_ok=True)
            if not source.is_file():  # a body, or nnU-Net's older format
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, target)
            except OSError:
                shutil.copy2(source, target)

    def _replace(self, any_case: bool) -> None:
        """Rename the folders: bodies go before the cases, which must never be without them."""
        old = self.place / f"old-{uuid4().hex[:8]}"
        if self.target.is_dir():
            self.target.rename(old)
        if body_folder(self.target).is_dir():
            body_folder(self.target).rename(old.with_name(f"{old.name}-body"))
        if body_folder(self.cases).is_dir():
            body_folder(self.target).parent.mkdir(exist_ok=True)
            body_folder(self.cases).rename(body_folder(self.target))
        if any_case:
            self.cases.rename(self.target)

    def remove(self) -> None:
        """Remove the folder, and what older versions left beside it."""
        for left in (self.place, *left_work_folders(self.target.parent, f"{self.target.name}.")):
            shutil.rmtree(left, ignore_errors=True)
        with suppress(OSError):  # not empty, or never made
            body_folder(self.target).parent.rmdir()


def said(todo: Mapping[str, Sequence[str]]) -> list[str]:
    """A line for each reason why cases must be done, of :meth:`WorkFolder.sort`."""
    return [f"{len(cases)} to do ({listed(sorted(cases))}): {reason}" for reason, cases in todo.items()]


def _find(record: Record, places: Sequence[Path], case: str) -> Done | None:
    """The first of some folders that holds the files of a record."""
    for place in places:
        there = with_files(record, place, case)
        if there is not None:
            return Done(there, place)
    return None


def _read_record(file: Path) -> Record | None:
    return Record.of_json(read_json_object(file))
