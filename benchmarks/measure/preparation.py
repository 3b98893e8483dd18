"""Data sets for the measurements of preprocessing, and what they compare."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk

CONFIGURATION, PLANS = "3d_fullres", "nnUNetEMIMPlans"
DRAWN = 4  # phantoms that are drawn; more cases are copies of them under other ids
TINY = (8, 8, 8)
POLL = 0.02


class Ended(NamedTuple):
    """What a process took: seconds, seconds of CPU of it and of those that it has waited for, and its own peak memory in MB."""

    seconds: float
    cpu: float
    peak: float


@contextmanager
def started(command: Sequence[str], env: dict[str, str], ended: list[Ended]) -> Iterator[subprocess.Popen]:
    """Run a command beside the block; at the end of the block it is waited for, and what it took is added to ``ended``.

    Raises:
        SystemExit: It failed; the message is the end of its output.
    """
    log = Path(env["nnUNet_results"]) / f"{os.getpid()}_{time.monotonic_ns()}.log"
    begin = perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT)
    yield process
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    ended.append(Ended(perf_counter() - begin, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024))
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{log.read_text()[-4000:]}")


def run(command: Sequence[str], env: dict[str, str]) -> Ended:
    """Run a command to its end; see :func:`started`."""
    ended: list[Ended] = []
    with started(command, env, ended):
        pass
    return ended[0]


def ours(name: str, *options: str) -> list[str]:
    """A command of this package."""
    return [sys.executable, "-m", f"emim_nnunet.cli.{name}", *options]


def write_phantoms(source: Path, num_labelled: int, num_unlabelled: int, side: int) -> None:
    """Phantoms in the layout of BraTS 2023; :data:`DRAWN` of them differ, the others are copies."""
    from emim_nnunet.phantom import TRAINING_FOLDER, VALIDATION_FOLDER, write_brats2023

    drawn = min(DRAWN, num_labelled)
    cases = write_brats2023(source, drawn, 0, seed=0, shape=(side, side, side))
    for number in range(drawn, num_labelled + num_unlabelled):
        old, new = cases[number % drawn], f"BraTS-GLI-{number + 1:05d}-000"
        folder = source / (TRAINING_FOLDER if number < num_labelled else VALIDATION_FOLDER) / new
        folder.mkdir(parents=True)
        for file in (source / TRAINING_FOLDER / old).iterdir():
            if number < num_labelled or not file.name.endswith("-seg.nii.gz"):
                shutil.copy(file, folder / file.name.replace(old, new))


def differences(one: Path, other: Path) -> list[str]:
    """Files of two folders of preprocessed cases that are not equal: voxels and properties, value for value."""
    from emim_nnunet.datasets.preprocessed import case_identifiers, open_case, read_properties

    found = sorted({file.name for file in one.iterdir()} ^ {file.name for file in other.iterdir()})
    for case in set(case_identifiers(one)) & set(case_identifiers(other)):
        for name, *arrays in zip(("", "_seg"), open_case(one, case), open_case(other, case), strict=True):
            if not np.array_equal(np.asarray(arrays[0]), np.asarray(arrays[1])):
                found.append(f"{case}{name}.b2nd")
        if repr(read_properties(one, case)) != repr(read_properties(other, case)):
            found.append(f"{case}.pkl")
    return found


def write_tiny(raw: Path, number: int) -> None:
    """A raw data set of labelled cases of 8^3 voxels of noise, with one channel."""
    rng = np.random.default_rng(0)
    for case in range(number):
        voxels = rng.integers(1, 1000, TINY).astype(np.int16)
        for folder, name, content in (
            ("imagesTr", f"tiny{case:05d}_0000", voxels),
            ("labelsTr", f"tiny{case:05d}", (voxels > 700).astype(np.uint8)),
        ):
            (raw / folder).mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(sitk.GetImageFromArray(content), raw / folder / f"{name}.nii.gz")
    description = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "bright": 1}, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(description | {"numTraining": number}))


def multiply(raw: Path, preprocessed: Path, number: int, new: int) -> None:
    """Make a prepared data set larger: cases get hard links and records under further ids, as if they had been prepared.

    Args:
        raw: Raw data set of :func:`write_tiny`.
        preprocessed: It, preprocessed.
        number: Of cases that are prepared afterwards.
        new: Of cases that are in the raw data set besides.
    """
    from emim_nnunet.datasets.records import read_records, write_records
    from emim_nnunet.planners.seen_files import SeenFiles

    folder = preprocessed / f"{PLANS}_{CONFIGURATION}"
    settings, records = read_records(folder)
    real = sorted(records)
    seen = SeenFiles(preprocessed)
    for case in range(len(real), number + new):
        old, name = real[case % len(real)], f"tiny{case:05d}"
        files = [raw / "imagesTr" / f"{old}_0000.nii.gz", raw / "labelsTr" / f"{old}.nii.gz"]
        sources = [link(file, old, name) for file in files]
        if case >= number:
            continue
        for file in [folder / f"{old}{ending}" for ending in (".b2nd", "_seg.b2nd", ".pkl")]:
            link(file, old, name)
        link(preprocessed / "gt_segmentations" / f"{old}.nii.gz", old, name)
        about = records[old]
        records[name] = replace(
            about,
            sources=[(source.name, *rest) for source, (_, *rest) in zip(sources, about.sources, strict=True)],
            files={file.replace(old, name): entry for file, entry in about.files.items()},
        )
        seen.note(name, [str(source) for source in sources], {})
    write_records(folder, settings, records)
    seen.save()


def link(file: Path, old: str, new: str) -> Path:
    """Give a file a second name, in which ``old`` is ``new``."""
    target = file.with_name(file.name.replace(old, new))
    target.unlink(missing_ok=True)
    os.link(file, target)
    return target


def first_record(command: Sequence[str], env: dict[str, str], records: Path) -> dict[str, Any]:
    """Seconds until a preparation has done its first case, and what the whole process took."""
    ended: list[Ended] = []
    begin, first = perf_counter(), 0.0
    with started(command, env, ended) as process:
        while not first and os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            first = perf_counter() - begin if any(records.glob("*.json")) else 0.0
            time.sleep(POLL)
    return {"first": first, **ended[0]._asdict()}


def preprocess(name: str, num_processes: int) -> None:
    """Our counterpart of ``nnUNetv2_preprocess``: everything that is planned, by one process and its workers."""
    from emim_nnunet.datasets.shards import lock_data_set
    from emim_nnunet.nnunet.paths import nnUNet_preprocessed, nnUNet_raw
    from emim_nnunet.planners.preprocess import preprocess_cases
    from emim_nnunet.planners.raw_data import find_cases

    labelled = find_cases(Path(nnUNet_raw) / name).labelled_files
    with lock_data_set(Path(nnUNet_preprocessed) / name, None, name) as lock:
        preprocess_cases(name, PLANS, [CONFIGURATION], labelled, {}, num_processes, lock)


def per_case(name: str) -> list[tuple[float, float]]:
    """Each case by nnU-Net's code and by ours, who goes first in turn, in this process: seconds of CPU of both."""
    from emim_nnunet.datasets.folders import read_dataset_json
    from emim_nnunet.nnunet.paths import nnUNet_preprocessed, nnUNet_raw
    from emim_nnunet.nnunet.planning import DefaultPreprocessor
    from emim_nnunet.nnunet.plans import PlansManager
    from emim_nnunet.planners.preprocess import decisive_settings
    from emim_nnunet.planners.raw_data import find_cases
    from emim_nnunet.planners.work_folder import Job, WorkFolder

    folder = Path(nnUNet_preprocessed) / name
    plans, description = PlansManager(str(folder / f"{PLANS}.json")), read_dataset_json(folder)
    settings = plans.get_configuration(CONFIGURATION)
    work = WorkFolder(folder / "case", decisive_settings(plans, settings, description, labelled=True))
    work.begin()
    stock = folder / "case_stock"
    stock.mkdir()
    took = []
    cases = find_cases(Path(nnUNet_raw) / name).labelled_files
    for number, (case, (*images, label)) in enumerate(cases.items()):
        preprocessor, given = DefaultPreprocessor(False), (plans, settings, description)
        job = Job(case, images, label, False)
        ways: dict[str, Callable[[], object]] = {
            "stock": partial(preprocessor.run_case_save, str(stock / case), images, label, *given),
            "own": partial(work.do, preprocessor, job, given, ""),
        }
        spent = {}
        for way in sorted(ways, reverse=number % 2 == 0):  # the second finds the case's files in memory
            begin = process_time()
            ways[way]()
            spent[way] = process_time() - begin
        took.append((spent["stock"], spent["own"]))
    unequal = differences(stock, work.cases)
    if unequal:
        raise SystemExit(f"these files differ from nnU-Net's: {', '.join(unequal)}")
    for place in (stock, work.place):
        shutil.rmtree(place)
    return took


if __name__ == "__main__":
    if sys.argv[2] == "per_case":
        print(json.dumps(per_case(sys.argv[1])))
    else:
        preprocess(sys.argv[1], int(sys.argv[2]))
