"""nnU-Net's preprocessed cases."""

from __future__ import annotations

from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class, nnUNetDatasetBlosc2, nnUNetDatasetNumpy

__all__ = ["infer_dataset_class", "nnUNetDatasetBlosc2", "nnUNetDatasetNumpy"]
