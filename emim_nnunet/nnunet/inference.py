"""nnU-Net's windows and scores."""

from __future__ import annotations

from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window

__all__ = ["compute_metrics_on_folder", "compute_steps_for_sliding_window"]
