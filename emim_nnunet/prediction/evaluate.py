"""Measuring a model with every subset of the modalities, on the validation cases of its folds."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt
from torch import Tensor
from tqdm import tqdm

from emim_nnunet.dataloading.crops import present_channels
from emim_nnunet.datasets.dataset import PreprocessedDataset
from emim_nnunet.datasets.folders import preprocessed_folder
from emim_nnunet.datasets.preprocessed import without_code
from emim_nnunet.errors import UserError
from emim_nnunet.nnunet.cases import infer_dataset_class
from emim_nnunet.nnunet.inference import (
    compute_tp_fp_fn_tn,
    convert_predicted_logits_to_segmentation_with_correct_shape,
    nnUNetPredictor,
    region_or_label_to_mask,
)
from emim_nnunet.prediction.model import Settings, TrainedModel
from emim_nnunet.prediction.report import markdown, plot_subsets
from emim_nnunet.prediction.subsets import TABLE, Measured
from emim_nnunet.storage.files import plain_json, read_json, write_json, write_text
from emim_nnunet.storage.locks import acquire
from emim_nnunet.storage.versions import versions

PARTIAL = "modality_subsets.partial.json"
logger = logging.getLogger(__name__)
Score = dict[str, Any]  # case, modalities, whole (all of them), and per label dice and distance, NaN where undefined


def evaluate(model: TrainedModel, subsets: Sequence[tuple[str, ...]], settings: Settings) -> list[Measured]:
    """Measure a model, and write ``modality_subsets.json``, ``.md`` and ``.png`` beside it.

    Each fold's network predicts that fold's validation cases, with 0 in what a subset lacks, as nnU-Net's own validation does
    with all. A case counts for the subsets of what it has. An interrupted call goes on when it is repeated.

    Args:
        model: The model with the folds to measure.
        subsets: Names of channels, see :func:`.subsets.subsets_of`.
        settings: How nnU-Net predicts.

    Returns:
        What each subset is worth, the fullest first; subsets of no case are left out.

    Raises:
        UserError: The preprocessed data set is not there or not as the model needs it, or a fold has no validation cases.
    """
    data = PreprocessedDataset(
        preprocessed_folder(model.plans["dataset_name"]), model.plans, model.dataset_json, model.configuration_name
    )
    validation = {fold: _validation_cases(model, data, fold) for fold in model.folds}
    request = {
        "checkpoints": model.sha256,
        "settings": asdict(settings),
        "subsets": [list(subset) for subset in subsets],
        "validation": validation,
    }
    with acquire(model.folder / TABLE, f"the table of {model.folder.name}"):
        scores = _known(model, request)
        for score in _new_scores(model, data, validation, subsets, settings, {score["case"] for score in scores}):
            scores += score
            write_json(model.folder / PARTIAL, {"request": request, "scores": plain_json(scores)})
        measured = [row for subset in subsets if (row := _summary(subset, scores)) is not None]
        _write(model, measured, scores, request)
        (model.folder / PARTIAL).unlink(missing_ok=True)
    return measured


def _validation_cases(model: TrainedModel, data: PreprocessedDataset, fold: str) -> list[str]:
    """The validation cases of a fold, all of which are preprocessed."""
    splits = data.splits
    if fold == "all" or int(fold) >= len(splits) or not splits[int(fold)]["val"]:
        raise UserError(
            f"-f {fold}: {data.name} has no validation cases of that fold; name a fold of splits_final.json"
        )
    data.require_cases(labelled=True)
    cases = splits[int(fold)]["val"]
    gone = sorted(set(cases) - set(data.labelled_ids))
    if gone:
        raise UserError(f"case {gone[0]} of fold {fold} is not in {data.labelled_folder}: preprocess the data set")
    return sorted(cases)


def _known(model: TrainedModel, request: dict[str, Any]) -> list[Score]:
    """What an interrupted call of the same request has measured."""
    file = model.folder / PARTIAL
    earlier = read_json(file) if file.is_file() else {}
    if not isinstance(earlier, dict) or earlier.get("request") != request:
        return []
    return [_with_nan(score) for score in earlier["scores"]]


def _with_nan(score: Score) -> Score:
    """A score as JSON gives it back, which has no NaN."""
    numbers = {k: {n: float("nan") if v is None else v for n, v in score[k].items()} for k in ("dice", "distance")}
    return score | numbers


def _new_scores(
    model: TrainedModel,
    data: PreprocessedDataset,
    validation: dict[str, list[str]],
    subsets: Sequence[tuple[str, ...]],
    settings: Settings,
    done: set[str],
) -> Iterator[list[Score]]:
    """The scores of one case after another, for every subset of what it has."""
    reader = without_code(infer_dataset_class(str(data.labelled_folder)))
    for fold, cases in validation.items():
        todo = [case for case in cases if case not in done]
        if not todo:
            continue
        predictor = model.predictor(settings, [fold])
        for case in tqdm(todo, f"Fold {fold}", disable=None if settings.progress else True):
            voxels, _, _, properties = reader(str(data.labelled_folder), [case]).load_case(case)
            image = torch.from_numpy(np.array(voxels[:]))
            reference = _reference(predictor, data.folder, case, model.file_ending)
            there = present_channels(image).tolist()
            has = {name for name, is_there in zip(model.channels, there, strict=True) if is_there}
            scores = []
            for subset in subsets:
                if not set(subset) <= has:
                    continue
                found = _segmentation(predictor, image, [name in subset for name in model.channels], properties)
                about = {"case": case, "modalities": list(subset), "whole": len(subset) == len(model.channels)}
                scores.append(about | _compare(predictor.label_manager, reference, found, properties["spacing"]))
            yield scores


def _reference(predictor: nnUNetPredictor, folder: Path, case: str, ending: str) -> np.ndarray:
    """The human segmentation of a case, (z, y, x)."""
    file = folder / "gt_segmentations" / f"{case}{ending}"
    if not file.is_file():
        raise UserError(f"{file} is missing: preprocess the data set again")
    return predictor.plans_manager.image_reader_writer_class().read_seg(str(file))[0][0]


def _segmentation(
    predictor: nnUNetPredictor, image: Tensor, seen: Sequence[bool], properties: dict[str, Any]
) -> np.ndarray:
    """What the network makes of the channels that it sees, (z, y, x) on the grid of the case."""
    masked = image * torch.tensor(seen).reshape(-1, *[1] * (image.ndim - 1))
    logits = predictor.predict_sliding_window_return_logits(masked).cpu()
    return convert_predicted_logits_to_segmentation_with_correct_shape(
        logits,
        predictor.plans_manager,
        predictor.configuration_manager,
        predictor.label_manager,
        properties,
        num_threads_torch=torch.get_num_threads(),
    )


def _compare(labels: Any, reference: np.ndarray, found: np.ndarray, spacing: Sequence[float]) -> Score:
    """nnU-Net's Dice, and the mean surface distance in mm, of each label or region; NaN where they are undefined."""
    classes = labels.foreground_regions if labels.has_regions else labels.foreground_labels
    ignored = None if labels.ignore_label is None else reference == labels.ignore_label
    dice, distance = {}, {}
    for what in classes:
        masks = [region_or_label_to_mask(voxels, what) for voxels in (reference, found)]
        tp, fp, fn, _ = (int(n) for n in compute_tp_fp_fn_tn(*masks, ignored))
        name = "+".join(map(str, what)) if isinstance(what, tuple | list) else str(what)
        dice[name] = 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else float("nan")
        inside = masks if ignored is None else [mask & ~ignored for mask in masks]
        distance[name] = surface_distance(inside[0], inside[1], spacing)
    return {"dice": dice, "distance": distance}


def surface_distance(first: np.ndarray, second: np.ndarray, spacing: Sequence[float]) -> float:
    """The mean distance from a surface point of either mask to the surface of the other one.

    Args:
        first: Mask, bool, of any number of axes. Axes of one voxel do not count: the surface of a slice is its outline.
        second: Mask of the same shape.
        spacing: Size of a voxel per axis in mm.

    Returns:
        Distance in mm, at least 0; NaN where a mask is empty.
    """
    if not first.any() or not second.any():
        return float("nan")
    wide = [axis for axis, size in enumerate(first.shape) if size > 1]
    both = np.argwhere(first | second)
    box = tuple(slice(low, high + 1) for low, high in zip(both.min(0), both.max(0), strict=True))
    masks = [np.pad(mask[box].squeeze(_thin(mask)), 1) for mask in (first, second)]
    surfaces = [mask & ~binary_erosion(mask) for mask in masks]
    away = [distance_transform_edt(~surface, [spacing[axis] for axis in wide]) for surface in surfaces]
    return float(np.concatenate([away[1][surfaces[0]], away[0][surfaces[1]]]).mean())


def _thin(mask: np.ndarray) -> tuple[int, ...]:
    """Axes of one voxel."""
    return tuple(axis for axis, size in enumerate(mask.shape) if size == 1)


def _mean(values: Sequence[float]) -> float | None:
    """Mean of what is defined."""
    defined = [value for value in values if np.isfinite(value)]
    return float(np.mean(defined)) if defined else None


def _mean_of_labels(scores: Sequence[Score], key: str) -> tuple[float | None, dict[str, float | None]]:
    """nnU-Net's mean: over the labels, of each over the cases."""
    per_label = {label: _mean([score[key][label] for score in scores]) for label in scores[0][key]}
    return _mean([float("nan") if value is None else value for value in per_label.values()]), per_label


def _summary(subset: tuple[str, ...], all_scores: Sequence[Score]) -> Measured | None:
    """What a subset is worth; None where no case has it."""
    scores = [score for score in all_scores if tuple(score["modalities"]) == subset]
    if not scores:
        return None
    dice, per_label = _mean_of_labels(scores, "dice")
    distance, _ = _mean_of_labels(scores, "distance")
    whole = {score["case"]: score for score in all_scores if score["whole"]}
    changes = [
        _mean([score["dice"][label] - whole[score["case"]]["dice"][label] for label in score["dice"]])
        for score in scores
        if score["case"] in whole
    ]
    return Measured(
        modalities=subset,
        num_cases=len(scores),
        dice=dice,
        dice_per_label=per_label,
        surface_distance=distance,
        num_distances=sum(bool(np.isfinite(d)) for score in scores for d in score["distance"].values()),
        change=_mean([float("nan") if change is None else change for change in changes]),
    )


def _write(model: TrainedModel, measured: Sequence[Measured], scores: Sequence[Score], request: dict[str, Any]) -> None:
    """The table for programs, for people, and as a picture."""
    rows = [asdict(row) for row in measured]
    content = request | {"channels": model.channels, "subsets": rows, "scores": scores, "versions": versions()}
    write_text((model.folder / TABLE).with_suffix(".md"), "\n".join(markdown(model, measured)) + "\n")
    plot_subsets(model, measured, scores, (model.folder / TABLE).with_suffix(".png"))
    write_json(model.folder / TABLE, plain_json(content))
