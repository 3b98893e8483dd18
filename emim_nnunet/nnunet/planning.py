"""nnU-Net's fingerprint, planner and preprocessor."""

from __future__ import annotations

from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
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
    "plan_experiment_dataset",
    "verify_dataset_integrity",
]
