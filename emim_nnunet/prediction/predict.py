"""Predicting cases that have some of the modalities or all: images as they are in, segmentations and what was missing out."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from emim_nnunet.dataset_conversion.case import TARGET_ENDING, SourceCase
from emim_nnunet.dataset_conversion.family import DatasetFamily
from emim_nnunet.dataset_conversion.options import Options
from emim_nnunet.dataset_conversion.writing import write_images
from emim_nnunet.datasets.images import stream_damage
from emim_nnunet.errors import UserError, listed
from emim_nnunet.nnunet.inference import nnUNetPredictor
from emim_nnunet.nnunet.plans import PlansManager
from emim_nnunet.prediction.inputs import checked_cases, input_family
from emim_nnunet.prediction.model import Settings, TrainedModel
from emim_nnunet.prediction.subsets import SubsetTable, read_subset_table
from emim_nnunet.storage.files import left_work_folders, new_work_folder, read_json, write_json
from emim_nnunet.storage.locks import acquire
from emim_nnunet.storage.tables import write_csv
from emim_nnunet.storage.versions import versions

TABLE = "missing_modalities.csv"
RECORD = "prediction.json"  # what was predicted with what: a repeated command goes on
NNUNETS_RECORD = "predict_from_raw_data_args.json"  # names the files of the work folder, which is gone at the end
logger = logging.getLogger(__name__)


def predict(
    model: TrainedModel,
    source: Path,
    output: Path,
    settings: Settings,
    *,
    patterns: Sequence[tuple[str, str]],
    resample_to: str | None = None,
    save_probabilities: bool = False,
    num_preprocessing: int = 3,
    num_export: int = 3,
) -> list[dict[str, Any]]:
    """Predict all cases in a folder with nnU-Net's predictor, zeros in place of what they lack.

    Everything is read and checked before anything is written. Cases that an earlier, interrupted call with the same model,
    settings and images has finished are not predicted again.

    Args:
        model: The model.
        source: Folder of the images, see :func:`.inputs.modality_of`.
        output: Folder of the segmentations; it is made when needed.
        settings: How nnU-Net predicts.
        patterns: See :func:`.inputs.input_family`.
        resample_to: Channel onto whose grid images of other grids are put; None = other grids are refused.
        save_probabilities: Whether nnU-Net writes the class probabilities too.
        num_preprocessing: Number of nnU-Net's processes that preprocess.
        num_export: Number of nnU-Net's processes that write; both 0 = all in this process.

    Returns:
        The rows of ``missing_modalities.csv``.

    Raises:
        UserError: Model, images or folders are not as they must be; nothing has been written then.
    """
    _check_folders(source, output)
    _check_reader(model)
    family, options = input_family(model.channels, patterns), Options(resample_to=resample_to, link=True)
    cases = checked_cases(family, source, options, num_preprocessing)
    table = read_subset_table(model)
    predictor = model.predictor(settings)
    request = {
        "model": model.folder.name,
        "checkpoints": {fold: {"name": model.checkpoint_name, "sha256": sha} for fold, sha in model.sha256.items()},
        "settings": asdict(settings) | {"save_probabilities": save_probabilities, "resampled_to": resample_to},
    }
    with acquire(output, f"the folder {output}"):
        _remove_left_work(output)
        todo = _unfinished(model, output, request, cases)
        output.mkdir(parents=True, exist_ok=True)
        for case in todo:  # before the record says of which images it is
            (output / f"{case.identifier}{model.file_ending}").unlink(missing_ok=True)
        contents = {case.identifier: _content(case) for case in cases}
        write_json(output / RECORD, request | {"cases": contents, "versions": versions()})
        _predict(predictor, family, todo, output, options, save_probabilities, num_preprocessing, num_export)
        rows = _rows(model, cases, table)
        write_csv(output / TABLE, rows)
    for line in warnings(model, cases, table):
        logger.warning("WARNING: %s", line)
    return rows


def fill(
    model: TrainedModel,
    source: Path,
    output: Path,
    *,
    patterns: Sequence[tuple[str, str]],
    resample_to: str | None = None,
    num_threads: int = 3,
) -> list[dict[str, Any]]:
    """Write the input of plain ``nnUNetv2_predict``: CASE_0000, CASE_0001, ... with zeros in place of what cases lack.

    Args:
        model: The model, whose checkpoints need not be there.
        source: Folder of the images, see :func:`.inputs.modality_of`.
        output: Folder to write, which must not exist. It appears when it is complete.
        patterns: See :func:`.inputs.input_family`.
        resample_to: Channel onto whose grid images of other grids are put; None = other grids are refused.
        num_threads: Number of cases that are read and written at a time.

    Returns:
        A row per case: what it has and what it lacks; they are ``missing_modalities.csv`` beside the images.

    Raises:
        UserError: As :func:`predict`; or ``output`` exists.
    """
    _check_folders(source, output)
    if model.file_ending != TARGET_ENDING:
        raise UserError(
            f"--missing writes {TARGET_ENDING}, the model reads {model.file_ending}: predict without --missing"
        )
    family, options = input_family(model.channels, patterns), Options(resample_to=resample_to)
    cases = checked_cases(family, source, options, num_threads)
    if output.exists():
        raise UserError(f"-o {output} exists: choose another folder")
    with acquire(output, f"the folder {output}"):
        _remove_left_work(output)
        work = new_work_folder(output)
        work.mkdir(parents=True)
        _write_inputs(family, cases, work, options, num_threads)
        rows = [_what_it_has(model, case) for case in cases]
        write_csv(work / TABLE, rows)
        work.rename(output)
    return rows


def _check_folders(source: Path, output: Path) -> None:
    """Segmentations among the images would be taken for images when the command is repeated."""
    if output.exists() and not output.is_dir():
        raise UserError(f"-o {output} is a file: name a folder")
    if output.resolve().is_relative_to(source.resolve()):
        raise UserError(f"-o {output} lies in -i {source}: choose another folder")


def _remove_left_work(output: Path) -> None:
    """Remove what a killed call has left; called under the lock of the folder."""
    for left in left_work_folders(output.parent, output.name):
        if left.name.rsplit(".", 2)[0] == f".{output.name}":  # not that of a folder whose name is longer
            shutil.rmtree(left, ignore_errors=True)


def _check_reader(model: TrainedModel) -> None:
    """Whether nnU-Net's reader of the model takes what is written for it."""
    endings = PlansManager(model.plans).image_reader_writer_class.supported_file_endings
    if TARGET_ENDING not in endings:
        raise UserError(
            f"the model reads {model.file_ending} images, and fills only {TARGET_ENDING}: use nnUNetv2_predict"
        )


def _content(case: SourceCase) -> dict[str, Any]:
    """What decides the segmentation of a case, beside model and settings."""
    return {"sha256": dict(sorted(case.sha256.items())), "missing": case.missing}


def _unfinished(
    model: TrainedModel, output: Path, request: dict[str, Any], cases: Sequence[SourceCase]
) -> list[SourceCase]:
    """The cases that no earlier call has finished.

    Raises:
        UserError: The folder holds segmentations of another model or other settings, or of which nobody knows.
    """
    segmentations = {case.identifier: output / f"{case.identifier}{model.file_ending}" for case in cases}
    if not (output / RECORD).is_file():
        there = [file.name for file in segmentations.values() if file.exists()]
        if there:
            raise UserError(f"-o {output} holds {listed(there, 3)} already, by another program: choose another folder")
        return list(cases)
    earlier = read_json(output / RECORD)
    same = isinstance(earlier, dict) and all(earlier.get(key) == value for key, value in request.items())
    if not same:
        raise UserError(
            f"-o {output} holds predictions of another model or with other settings ({RECORD}): choose another folder"
        )
    left = []
    for case in cases:
        file = segmentations[case.identifier]
        done = (
            earlier.get("cases", {}).get(case.identifier) == _content(case)
            and file.is_file()
            and not stream_damage(file)
        )
        left += [] if done else [case]
    if len(left) < len(cases):
        logger.info("%d of %d cases are predicted already", len(cases) - len(left), len(cases))
    return left


def _write_inputs(
    family: DatasetFamily, cases: Sequence[SourceCase], folder: Path, options: Options, num_threads: int
) -> list[list[str]]:
    """Write or link the images of all channels; returns their paths by case, in nnU-Net's order."""
    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        list(pool.map(lambda case: write_images(family, case, folder, options), cases))
    places = range(len(family.channels))
    return [[str(folder / f"{case.identifier}_{c:04d}{TARGET_ENDING}") for c in places] for case in cases]


def _predict(
    predictor: nnUNetPredictor,
    family: DatasetFamily,
    cases: Sequence[SourceCase],
    output: Path,
    options: Options,
    save_probabilities: bool,
    num_preprocessing: int,
    num_export: int,
) -> None:
    """Let nnU-Net predict; the filled images lie beside the output until it has."""
    if not cases:
        return
    work = new_work_folder(output)
    work.mkdir()
    try:
        images = _write_inputs(family, cases, work, options, num_preprocessing)
        targets = [str(output / case.identifier) for case in cases]
        common = {"save_probabilities": save_probabilities, "overwrite": True}
        if num_preprocessing == 0 and num_export == 0:
            predictor.predict_from_files_sequential(images, targets, **common)
        else:
            workers = {
                "num_processes_preprocessing": num_preprocessing,
                "num_processes_segmentation_export": num_export,
            }
            predictor.predict_from_files(images, targets, **common, **workers)
        (output / NNUNETS_RECORD).unlink(missing_ok=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _what_it_has(model: TrainedModel, case: SourceCase) -> dict[str, Any]:
    """Case, what it has and what it lacks."""
    has = [channel for channel in model.channels if channel not in case.missing]
    return {"case": case.identifier, "has": "+".join(has), "lacks": "+".join(case.missing)}


def _rows(model: TrainedModel, cases: Sequence[SourceCase], table: SubsetTable | None) -> list[dict[str, Any]]:
    """A row per case: what it has, whether the model was trained for that, and what such segmentations are worth."""
    rows = []
    for case in cases:
        row = _what_it_has(model, case)
        has = row["has"].split("+")
        measured = None if table is None else table.of(has)
        row["trained"] = "yes" if model.was_trained_for(has) else "no"
        row["validation_dice"] = "" if measured is None or measured.dice is None else f"{measured.dice:.3f}"
        row["validation_cases"] = "" if measured is None else measured.num_cases
        rows.append(row)
    return rows


def warnings(model: TrainedModel, cases: Sequence[SourceCase], table: SubsetTable | None) -> list[str]:
    """A line for each subset of modalities whose segmentations deserve no trust.

    Args:
        model: The model.
        cases: The cases that were predicted.
        table: What each subset is worth; None = it was never measured.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for case in cases:
        if case.missing:
            has = tuple(channel for channel in model.channels if channel not in case.missing)
            groups.setdefault(has, []).append(case.identifier)
    lines = []
    for has, identifiers in groups.items():
        reasons = [] if model.was_trained_for(has) else ["its training did not drop what they lack"]
        reasons += [] if table is None else table.doubts(has)
        if reasons:
            which = f"{len(identifiers)} case{'s' * (len(identifiers) > 1)} with {' + '.join(has)} only"
            lines.append(f"{which} ({listed(identifiers, 3)}): {'; '.join(reasons)}")
    if groups and table is None:
        lines.append("what segmentations without a modality are worth was not measured: emim_evaluate_modalities does")
    return lines
