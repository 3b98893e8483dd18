"""What nnU-Net writes about a data set and reads of one."""

from __future__ import annotations

from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json
from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets
from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

__all__ = [
    "find_candidate_datasets",
    "generate_dataset_json",
    "get_filenames_of_train_images_and_targets",
    "recursive_fix_for_json_export",
]
