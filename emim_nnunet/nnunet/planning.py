"""nnU-Net's fingerprint, planner and preprocessor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    ResEncUNetPlanner,
)
from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiment_dataset
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

__all__ = [
    "DatasetFingerprintExtractor",
    "DefaultPreprocessor",
    "ResEncUNetPlanner",
    "crop_to_nonzero",
    "listed_with",
    "plan_experiment_dataset",
    "verify_dataset_integrity",
]


@contextmanager
def listed_with(list_cases: Callable[[str, dict[str, Any]], dict[str, Any]]) -> Iterator[None]:
    """Let nnU-Net's planners list the labelled cases with another function inside the block.

    nnU-Net's own compares every case with every file, which takes minutes with 10,000 cases, and starts twelve processes.

    Args:
        list_cases: Raw folder and dataset.json -> case -> its ``images`` and its ``label``.
    """
    before = default_experiment_planner.get_filenames_of_train_images_and_targets
    default_experiment_planner.get_filenames_of_train_images_and_targets = list_cases
    try:
        yield
    finally:
        default_experiment_planner.get_filenames_of_train_images_and_targets = before
