"""nnU-Net's ResEnc planner plus the ``emim`` block of the SSL stage."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, ClassVar

from emim_nnunet.datasets.raw import missing_channels, unlabelled_images
from emim_nnunet.errors import UserError
from emim_nnunet.methods.base import SSLMethod
from emim_nnunet.methods.emim import EMIM
from emim_nnunet.methods.moco import MoCoZCA
from emim_nnunet.networks import is_primus, planned_geometry
from emim_nnunet.networks.backbones import primus_architecture
from emim_nnunet.nnunet.descriptions import recursive_fix_for_json_export
from emim_nnunet.nnunet.images import determine_reader_writer_from_dataset_json
from emim_nnunet.nnunet.paths import nnUNet_preprocessed
from emim_nnunet.nnunet.planning import ResEncUNetPlanner, listed_with
from emim_nnunet.nnunet.plans import LabelManager
from emim_nnunet.planners import ssl_plan
from emim_nnunet.planners.counting import MemoryCounts
from emim_nnunet.planners.raw_data import labelled_files
from emim_nnunet.planners.transfer import Like
from emim_nnunet.settings.block import BLOCK
from emim_nnunet.storage.files import read_json, write_json

logger = logging.getLogger(__name__)
WORKERS = "nnUNet_n_proc_DA"
DEFAULT_PLANS, DEFAULT_GPU_MEMORY = "nnUNetEMIMPlans", 24.0
COUNTS = "memory_counts.json"
HUNGRIEST = (EMIM, MoCoZCA)  # of the methods; plain MIM takes less, others keep to patches_at_once
# feature maps that fit into 24 GB, as in nnU-Net's ResEnc L preset
REFERENCE_3D, REFERENCE_2D = 2_100_000_000, 380_000_000
# nnU-Net is asked for less memory at most in these steps, at least to this share of the target
REDUCTION, LEAST_SHARE = 0.95, 0.25


class nnUNetPlannerEMIM(ResEncUNetPlanner):
    """Plans ``nnUNetEMIMPlans``: nnU-Net's ResEnc L plan for any memory target, and an ``emim`` block per configuration.

    Differences from nnU-Net's plan: where a step of it would take more than the target (see :mod:`.memory`; with small targets
    it does), the plan for a smaller target is taken. Every channel whose normalisation supports it is normalised inside the
    body, so that background = padding = 0 whatever the field of view; hence the preprocessed data has folders of its own. Cases
    without label (``imagesUnlabelled``) count for the schedule and suffice for planning.

    Args:
        dataset_name_or_id: Name or id of the data set, which has a fingerprint.
        gpu_memory_target_in_gb: GB that a step of either stage is planned to fit.
        preprocessor_name: Name of nnU-Net's preprocessor, which stays its own.
        plans_name: Name of the plans, and of their file without ``.json``.
        overwrite_target_spacing: Voxel size of 3d_fullres, three numbers in mm; None = nnU-Net plans it.
        suppress_transpose: Keep the order of the axes, as nnU-Net's argument of that name.

    Attributes:
        like: What is taken over from another data set; None = nothing.
        backbone: The network of 3D configurations, a key of :data:`BACKBONES`; None = nnU-Net's residual U-Net.
        left_out: Ids of cases that are not counted, because their files cannot be used.
        unlabelled: Case without label -> its images.
        num_cases: Number of cases, labelled and unlabelled.
        incomplete: Case that lacks modalities -> their names.

    Raises:
        UserError: The data set holds no case.
    """

    like: ClassVar[Like | None] = None  # these are set in a subclass, because nnU-Net makes the planner
    backbone: ClassVar[str | None] = None
    left_out: ClassVar[Collection[str]] = ()
    dataset_fingerprint: dict[str, Any]
    dataset: dict[str, Any]
    UNet_vram_target_GB: float

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = DEFAULT_GPU_MEMORY,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str = DEFAULT_PLANS,
        overwrite_target_spacing: list[float] | tuple[float, ...] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        with listed_with(_labelled_cases):
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
        unlabelled = unlabelled_images(Path(self.raw_dataset_folder), self.dataset_json)
        self.unlabelled = {case: images for case, images in unlabelled.items() if case not in self.left_out}
        self.dataset = {case: files for case, files in self.dataset.items() if case not in self.left_out}
        self._counts = MemoryCounts(Path(nnUNet_preprocessed) / self.dataset_name / COUNTS)
        self.num_cases = len(self.dataset) + len(self.unlabelled)
        if self.num_cases == 0:
            raise UserError(f"{self.raw_dataset_folder} holds no case, neither in imagesTr nor in imagesUnlabelled")
        self.incomplete = missing_channels(Path(self.raw_dataset_folder))
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
        lowres = plans["configurations"].get("3d_lowres")
        if lowres is not None:
            lowres |= self._complete_plan(*self._lowres_request)
        self._counts.save()
        recursive_fix_for_json_export(plans)
        file = Path(nnUNet_preprocessed) / self.dataset_name / f"{self.plans_identifier}.json"
        old = read_json(file)["configurations"] if file.is_file() else {}
        plans["configurations"] |= {name: old[name] for name in old if name not in plans["configurations"]}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, plans, indent=4)
        logger.info("plans: %s", file)

    def get_plans_for_configuration(
        self,
        spacing: Any,
        median_shape: Any,
        data_identifier: str,
        approximate_n_voxels_dataset: float,
        _cache: dict[Any, Any],
    ) -> dict[str, Any]:
        """nnU-Net's configuration within the memory target, or what :class:`Like` puts into its place, with the block."""
        request = (spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache)
        if data_identifier == self.generate_data_identifier("3d_lowres"):
            self._lowres_request = request
            return self._stock_plan(*request)  # nnU-Net tries many spacings: see save_plans
        return self._complete_plan(*request)

    @staticmethod
    def static_estimate_VRAM_usage(*arguments: Any) -> int:
        """nnU-Net's estimate, also without worker processes: nnU-Net would ask torch for 0 threads."""
        threads = os.environ.get(WORKERS)
        if threads == "0":
            os.environ[WORKERS] = "1"
        try:
            return ResEncUNetPlanner.static_estimate_VRAM_usage(*arguments)
        finally:
            if threads is not None:
                os.environ[WORKERS] = threads

    def _stock_plan(self, *request: Any) -> dict[str, Any]:
        """nnU-Net's configuration for the target that is set now, or what another source or network puts into its place."""
        plan = super().get_plans_for_configuration(*request)
        if self.backbone is not None and len(plan["patch_size"]) == 3:
            patch = ssl_plan.token_patch(plan["patch_size"])
            return plan | {"patch_size": patch, "architecture": primus_architecture(self.backbone, patch)}
        like = self.like
        if like is None or not self._is_like(plan):
            return plan
        return plan | {
            "patch_size": list(like.patch_size),
            "batch_size": like.batch_size,
            "architecture": like.architecture,
        }

    def _is_like(self, plan: dict[str, Any]) -> bool:
        """Whether a configuration takes architecture, patch and batch size from elsewhere: one of as many axes does."""
        return self.like is not None and len(self.like.patch_size) == len(plan["patch_size"])

    def _complete_plan(self, *request: Any) -> dict[str, Any]:
        """A configuration whose steps fit the memory target, with its ``emim`` block."""
        _, _, name, num_voxels, _ = request
        plan, peak = self._plan_within_target(*request)

        @cache
        def ssl_peak(batch_size: int) -> float:
            block = self._emim_block(plan, batch_size)
            return max(self._ssl_gigabytes(method, plan, block) for method in HUNGRIEST)

        num_voxels *= self.num_cases / max(1, len(self.dataset) or self.num_cases)  # unlabelled cases count too
        limit = max(self.UNet_min_batch_size, round(num_voxels * self.max_dataset_covered / prod(plan["patch_size"])))
        batch_size = ssl_plan.ssl_batch_size(ssl_peak, self.UNet_vram_target_GB, int(plan["batch_size"]), limit)
        logger.info(
            "%s: patch %s; on a GPU a step takes about %.2g GB in the SSL stage (batch size %d), %.2g GB in the segmentation "
            "(batch size %d)",
            name,
            "x".join(str(p) for p in plan["patch_size"]),
            ssl_peak(batch_size),
            batch_size,
            peak,
            plan["batch_size"],
        )
        block = self._emim_block(plan, batch_size)
        if "finetune_p_drop_modality" in block:
            logger.info(
                "%s: %d of %d cases lack modalities, so the segmentation stage drops each with probability %g "
                "(finetune_p_drop_modality)",
                name,
                len(self.incomplete),
                self.num_cases,
                block["finetune_p_drop_modality"],
            )
        if max(peak, ssl_peak(batch_size)) > self.UNet_vram_target_GB:
            reason = "patch and batch size are those of --like" if self._is_like(plan) else "nnU-Net plans none smaller"
            logger.warning("%s: that is more than the target of %g GB; %s", name, self.UNet_vram_target_GB, reason)
        return plan | {BLOCK: block}

    def _plan_within_target(self, *request: Any) -> tuple[dict[str, Any], float]:
        """nnU-Net's plan, or the one for less memory, such that a step fits the target; and what the step takes, in GB."""
        target, asked = self.UNet_vram_target_GB, self.UNet_vram_target_GB
        plan = self._stock_plan(*request)
        peak = self._segmentation_gigabytes(plan)
        try:
            while peak > target and asked > LEAST_SHARE * target and not self._is_like(plan):
                asked *= min(REDUCTION, target / peak)
                self.UNet_vram_target_GB = asked
                plan = self._stock_plan(*request)
                peak = self._segmentation_gigabytes(plan)
        finally:
            self.UNet_vram_target_GB = target
        return plan, peak

    @property
    def _num_channels(self) -> int:
        """Number of channels of an image."""
        return len(self.dataset_json.get("channel_names", self.dataset_json.get("modality")))

    def _segmentation_gigabytes(self, plan: dict[str, Any]) -> float:
        """Peak memory of a step of the segmentation, in GB."""
        labels, order = (self.dataset_json.get(key) for key in ("labels", "regions_class_order"))
        inputs = {key: plan[key] for key in ("architecture", "patch_size", "batch_size")}
        inputs |= {"channels": self._num_channels, "labels": labels, "regions_class_order": order}

        def count() -> float:
            # imports nnU-Net's training, for seconds, which neither workers nor a command that is repeated need
            from emim_nnunet.planners.memory import segmentation_gigabytes

            return segmentation_gigabytes(plan, self._num_channels, LabelManager(labels, order))

        return self._counts.of("segmentation", inputs, count)

    def _ssl_gigabytes(self, method: type[SSLMethod], plan: dict[str, Any], block: dict[str, Any]) -> float:
        """Peak memory of a step of a method, in GB."""
        inputs = {key: plan[key] for key in ("architecture", "patch_size")}
        inputs |= {"channels": self._num_channels, "block": block}

        def count() -> float:
            from emim_nnunet.planners.memory import ssl_gigabytes

            return ssl_gigabytes(method, plan, block, self._num_channels)

        return self._counts.of(method.__name__, inputs, count)

    def _emim_block(self, plan: dict[str, Any], batch_size: int) -> dict[str, Any]:
        """The settings of the SSL stage for a configuration, by the rules of :mod:`.ssl_plan`."""
        patch_size = [int(p) for p in plan["patch_size"]]
        strides, features = planned_geometry(plan["architecture"])
        cell = ssl_plan.cell_size(strides, patch_size)
        levels = ssl_plan.pyramid_levels(strides, patch_size, cell, batch_size)
        width = ssl_plan.decoder_min_width(strides, len(patch_size), self._num_channels)
        if is_primus(plan["architecture"]):
            width = ssl_plan.DECODER_MIN_WIDTH  # a token is unfolded step by step, not in one product
        block = {
            "cell_size": list(cell),
            "position_ratio": ssl_plan.POSITION_RATIO,
            "patch_ratio": ssl_plan.PATCH_RATIO,
            "pyramid_levels": list(levels),
            "projector_widths": list(ssl_plan.projector_widths(features, levels)),
            "decoder_min_width": width,
            "batch_size": batch_size,
            "parent_factor": list(ssl_plan.parent_factor(patch_size)),
            "patches_at_once": batch_size,
            "num_epochs": ssl_plan.num_epochs(self.num_cases, batch_size),
        }
        block |= ssl_plan.PRIMUS_RATES if is_primus(plan["architecture"]) else {}
        return block | (ssl_plan.DROPOUT if self._is_incomplete(plan) else {})

    def _is_incomplete(self, plan: dict[str, Any]) -> bool:
        """Whether cases lack modalities, whose zeros the normalisation keeps."""
        return bool(self.incomplete) and set(plan["normalization_schemes"]) <= set(ssl_plan.KEEPS_ZERO)


def _labelled_cases(folder: str, description: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The labelled cases of a raw data set, in nnU-Net's form."""
    files = labelled_files(Path(folder), description)
    return {case: {"images": images, "label": label} for case, (*images, label) in files.items()}
