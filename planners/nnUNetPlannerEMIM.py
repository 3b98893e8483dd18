"""nnU-Net's ResEnc planner plus the ``emim`` block of the SSL stage."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, ClassVar

from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    ResEncUNetPlanner,
)
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.json_export import recursive_fix_for_json_export

from emim_nnunet.checkpoints.io import read_json, write_json
from emim_nnunet.config import BLOCK
from emim_nnunet.errors import UserError
from emim_nnunet.planners import ssl_plan
from emim_nnunet.planners.raw_dataset import unlabelled_images
from emim_nnunet.planners.transfer import Like

logger = logging.getLogger(__name__)
DEFAULT_GPU_MEMORY = 24.0
# feature maps that fit into 24 GB, as in nnU-Net's ResEnc L preset
REFERENCE_3D, REFERENCE_2D = 2_100_000_000, 380_000_000
REFERENCE_BATCH_3D, REFERENCE_BATCH_2D = 2, 12  # nnU-Net's, for its reference values


def estimated_gigabytes(units_per_sample: float, batch_size: int, num_axes: int) -> float:
    """Memory of a training step on a GPU as nnU-Net's planner estimates it: in proportion to what convolutions put out.

    Args:
        units_per_sample: Of nnU-Net's ``compute_conv_feature_map_size``, or :func:`ssl_plan.ssl_feature_map_size`.
        batch_size: Samples.
        num_axes: 2 or 3.

    Returns:
        1e9 bytes, in mixed precision.
    """
    reference, batch = (REFERENCE_3D, REFERENCE_BATCH_3D) if num_axes == 3 else (REFERENCE_2D, REFERENCE_BATCH_2D)
    return DEFAULT_GPU_MEMORY * units_per_sample * batch_size / (reference * batch)


class nnUNetPlannerEMIM(ResEncUNetPlanner):
    """Plans ``nnUNetEMIMPlans``: nnU-Net's ResEnc L plan for any memory target, and an ``emim`` block per configuration.

    Differences from nnU-Net's plan: every channel whose normalisation supports it is normalised inside the body, so that
    background = padding = 0 whatever the field of view; hence the preprocessed data has folders of its own. Cases without
    label (``imagesUnlabelled``) count for the schedule and suffice for planning.

    Args:
        dataset_name_or_id: Data set.
        gpu_memory_target_in_gb: Both stages are planned to fit it.
        preprocessor_name: Stays nnU-Net's own.
        plans_name: Name of the plans.
        overwrite_target_spacing: As in nnU-Net.
        suppress_transpose: As in nnU-Net.
    """

    like: ClassVar[Like | None] = None  # set in a subclass, because nnU-Net makes the planner

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = DEFAULT_GPU_MEMORY,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str = "nnUNetEMIMPlans",
        overwrite_target_spacing: list[float] | tuple[float, ...] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        super().__init__(
            dataset_name_or_id,
            gpu_memory_target_in_gb,
            preprocessor_name,
            plans_name,
            overwrite_target_spacing,
            suppress_transpose,
        )
        self.UNet_reference_val_3d, self.UNet_reference_val_2d = REFERENCE_3D, REFERENCE_2D
        self.UNet_reference_val_corresp_GB = DEFAULT_GPU_MEMORY
        self.max_dataset_covered = 1
        self.unlabelled = unlabelled_images(Path(self.raw_dataset_folder), self.dataset_json)
        self.num_cases = len(self.dataset) + len(self.unlabelled)
        if self.num_cases == 0:
            raise UserError(f"{self.raw_dataset_folder} holds no case, neither in imagesTr nor in imagesUnlabelled")
        if not self.dataset:
            self.dataset_json["numTraining"] = len(self.unlabelled)  # in memory only: for the size of the data set

    def determine_reader_writer(self) -> type:
        """nnU-Net's reader for the first case, labelled or not."""
        images = next(iter(self.dataset.values()))["images"] if self.dataset else next(iter(self.unlabelled.values()))
        return determine_reader_writer_from_dataset_json(self.dataset_json, images[0])

    def determine_normalization_scheme_and_whether_mask_is_used_for_norm(self) -> tuple[list[str], list[bool]]:
        """nnU-Net's schemes, always inside the body; nnU-Net asks whether cropping removed a quarter of the image."""
        fingerprint = self.dataset_fingerprint
        self.dataset_fingerprint = fingerprint | {"median_relative_size_after_cropping": 0.0}
        try:
            return super().determine_normalization_scheme_and_whether_mask_is_used_for_norm()
        finally:
            self.dataset_fingerprint = fingerprint

    def generate_data_identifier(self, configuration_name: str) -> str:
        """Folders of our own: the normalisation differs from that of nnU-Net's default plans."""
        return f"{self.plans_identifier}_{configuration_name}"

    def save_plans(self, plans: dict[str, Any]) -> None:
        """nnU-Net's file by nnU-Net's rule (configurations of other names stay), as a whole or not at all.

        Raises:
            UserError: The file that is there is not JSON: what was added to it by hand would be lost.
        """
        recursive_fix_for_json_export(plans)
        file = Path(nnUNet_preprocessed) / self.dataset_name / f"{self.plans_identifier}.json"
        old = read_json(file)["configurations"] if file.is_file() else {}
        plans["configurations"] |= {name: old[name] for name in old if name not in plans["configurations"]}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, plans, indent=4)
        logger.info("plans: %s", file)

    def get_plans_for_configuration(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """nnU-Net's configuration, or what :class:`Like` puts into its place, with the ``emim`` block."""
        plan = super().get_plans_for_configuration(*args, **kwargs)
        like = self.like
        if like is not None and len(like.patch_size) == len(plan["patch_size"]):
            taken = {
                "patch_size": list(like.patch_size),
                "batch_size": like.batch_size,
                "architecture": like.architecture,
            }
            plan = plan | taken
        return plan | {BLOCK: self._emim_block(plan)}

    def _emim_block(self, plan: dict[str, Any]) -> dict[str, Any]:
        architecture = plan["architecture"]
        arch = architecture["arch_kwargs"]
        patch_size = [int(p) for p in plan["patch_size"]]
        strides, features = arch["strides"], arch["features_per_stage"]
        cell = ssl_plan.cell_size(strides, patch_size)
        batch_size = self._ssl_batch_size(plan["batch_size"], architecture, patch_size, cell)
        levels = ssl_plan.pyramid_levels(strides, patch_size, cell, batch_size)
        return {
            "cell_size": list(cell),
            "position_ratio": ssl_plan.POSITION_RATIO,
            "patch_ratio": ssl_plan.PATCH_RATIO,
            "pyramid_levels": list(levels),
            "projector_widths": list(ssl_plan.projector_widths(features, levels)),
            "batch_size": batch_size,
            "parent_factor": list(ssl_plan.parent_factor(patch_size)),
            "patches_at_once": batch_size,
            "num_epochs": ssl_plan.num_epochs(self.num_cases, batch_size),
        }

    def _ssl_batch_size(
        self, batch_size: int, architecture: dict[str, Any], patch_size: list[int], cell: tuple[int, ...]
    ) -> int:
        channels = len(self.dataset_json.get("channel_names", self.dataset_json.get("modality")))
        network = get_network_from_plans(
            architecture["network_class_name"],
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
            channels,
            len(self.dataset_json["labels"]),
            allow_init=False,
        )
        arch = architecture["arch_kwargs"]
        ssl_size = ssl_plan.ssl_feature_map_size(
            int(network.encoder.compute_conv_feature_map_size(patch_size)),
            arch["features_per_stage"],
            arch["strides"],
            patch_size,
            cell,
            channels,
        )
        unet_size = int(network.compute_conv_feature_map_size(patch_size))
        return ssl_plan.ssl_batch_size(int(batch_size), unet_size, ssl_size)
