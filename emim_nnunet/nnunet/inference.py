"""nnU-Net's prediction: windows, models and scores."""

from __future__ import annotations

from nnunetv2.evaluation.evaluate_predictions import (
    compute_metrics_on_folder,
    compute_tp_fp_fn_tn,
    region_or_label_to_mask,
)
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window

__all__ = [
    "compute_metrics_on_folder",
    "compute_steps_for_sliding_window",
    "compute_tp_fp_fn_tn",
    "convert_predicted_logits_to_segmentation_with_correct_shape",
    "nnUNetPredictor",
    "region_or_label_to_mask",
]
