"""Vectors of whole cases and of regions in them, from every stage of an encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from emim_nnunet.classification.model import open_masked, tiles_in_boxes
from emim_nnunet.dataloading.crops import crop_box
from emim_nnunet.datasets.dataset import PreprocessedDataset
from emim_nnunet.datasets.preprocessed import Case
from emim_nnunet.errors import UserError
from emim_nnunet.views.boxes import adaptive_pool

BODY = "body"
STATISTICS = ("mean", "std", "before")
NORMS = (nn.InstanceNorm2d, nn.InstanceNorm3d, nn.BatchNorm2d, nn.BatchNorm3d)


class StageMoments:
    """Runs an encoder and gives what its stages hold: their outputs, and what entered their last normalisation.

    Instance normalisation fixes mean and variance of every channel over a patch, so averages of what comes behind it differ
    less between cases than those of what entered it.

    Args:
        encoder: An encoder of nnU-Net that returns the outputs of all stages, in evaluation mode.
        before: Whether to look at what enters the normalisations.

    Raises:
        UserError: ``before`` is asked for, and a stage has no such normalisation (a Primus).
    """

    def __init__(self, encoder: Any, *, before: bool) -> None:
        self.encoder = encoder
        self._entered: dict[int, Tensor] = {}
        if not before:
            return
        stages = list(getattr(encoder, "stages", []))
        norms = [[module for module in stage.modules() if isinstance(module, NORMS)] for stage in stages]
        if not norms or not all(norms):
            raise UserError(
                "--statistic before: stages of this encoder end in no normalisation over a patch: leave it out"
            )
        for number, modules in enumerate(norms):
            for module in set(modules):
                module.register_forward_pre_hook(self._keeper(number))

    def _keeper(self, stage: int) -> Any:
        def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._entered[stage] = inputs[0]  # the last one of a stage to run stays

        return keep

    def __call__(self, image: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """For an image (B, C, *P) the output (B, features_s, *grid_s) of each stage, and what entered its last norm."""
        outputs = self.encoder(image)
        return [(output, self._entered.get(stage)) for stage, output in enumerate(outputs)]


@dataclass
class Sums:
    """Weighted sums over a region, added up over the patches of a case.

    Attributes:
        count: Per stage: voxels of the region, in voxels of the stage.
        totals: Per stage and ``x``, ``x2``, ``before``: sums per channel, (features_s,) float64.
    """

    count: dict[int, float] = field(default_factory=dict)
    totals: dict[tuple[int, str], np.ndarray] = field(default_factory=dict)

    def add(self, stage: int, count: float, sums: Mapping[str, np.ndarray]) -> None:
        """Add what a patch holds.

        Args:
            stage: Number of the stage.
            count: Sum of the weights.
            sums: Name of a sum -> (features_s,) float64.
        """
        self.count[stage] = self.count.get(stage, 0.0) + count
        for name, values in sums.items():
            self.totals[stage, name] = self.totals.get((stage, name), 0.0) + values

    def vector(self, statistics: Sequence[str]) -> dict[str, float]:
        """Value by name of its column, ``stage<number>_<statistic>_<channel>``.

        Args:
            statistics: Some of :data:`STATISTICS`.
        """
        values: dict[str, float] = {}
        for stage in sorted(self.count):
            count = self.count[stage]
            mean = self.totals[stage, "x"] / count
            found = {"mean": mean, "std": np.sqrt(np.maximum(self.totals[stage, "x2"] / count - mean**2, 0))}
            if "before" in statistics:
                found["before"] = self.totals[stage, "before"] / count
            for statistic in statistics:
                names = (f"stage{stage}_{statistic}_{channel}" for channel in range(len(mean)))
                values |= dict(zip(names, found[statistic].tolist(), strict=True))
        return values


@torch.no_grad()
def case_features(
    moments: StageMoments,
    data: PreprocessedDataset,
    case: Case,
    patch_size: Sequence[int],
    regions: Mapping[str, Sequence[int]],
    label_map: np.ndarray | None,
    statistics: Sequence[str],
    device: torch.device,
) -> dict[str, dict[str, float]]:
    """Vectors of a case: of its body, and of each region that it has.

    A patch is what the encoder was made for; patches cover the case and overlap, and a voxel counts once for each that it is
    in. Stages are coarser than the image: a position of a stage counts by the share of the region in it.

    Args:
        moments: The encoder, on ``device``.
        data: The data set that the case belongs to.
        case: The case.
        patch_size: Voxels per axis of a patch.
        regions: Name -> values of the label map that belong to the region.
        label_map: (*shape) int on the voxels of the preprocessed case; None = no regions in this case.
        statistics: Some of :data:`STATISTICS`.
        device: The device to compute on.

    Returns:
        Name of the region -> ``voxels`` (of the preprocessed case), and the values of :meth:`Sums.vector` where there are any.
        The first one is :data:`BODY`.

    Raises:
        UserError: The case cannot be read, or has no body.
    """
    voxels = {BODY: int(open_masked(case)[1][0].sum())}
    if label_map is not None:
        voxels |= {name: int(np.isin(label_map, values).sum()) for name, values in regions.items()}
    sums = {name: Sums() for name in voxels}
    for box, image, foreground in tiles_in_boxes(data, case, patch_size):
        masks = {BODY: foreground}
        if label_map is not None:
            labels = crop_box(label_map[None], box, 0)
            labels = labels[:, 0] if len(patch_size) == 2 else labels
            found = {name: torch.from_numpy(np.isin(labels, values))[None] for name, values in regions.items()}
            masks |= {name: mask for name, mask in found.items() if mask.any()}
        _add_patch(sums, masks, moments(image.to(device)), device)
    if not voxels[BODY]:
        raise UserError(f"case {case.identifier} holds nothing but background")
    return {name: {"voxels": voxels[name]} | found.vector(statistics) for name, found in sums.items()}


def _add_patch(
    sums: dict[str, Sums],
    masks: Mapping[str, Tensor],
    stages: Sequence[tuple[Tensor, Tensor | None]],
    device: torch.device,
) -> None:
    """Add the values of a patch to the sums of the regions that are in it."""
    shares = torch.cat(list(masks.values()), 1).float().to(device)  # (1, R, *P)
    for stage, (output, entered) in enumerate(stages):
        weights = adaptive_pool(shares, output.shape[2:])[0].flatten(1)  # (R, N)
        x = output[0].float().flatten(1).T  # (N, features)
        parts = {"x": weights @ x, "x2": weights @ x.square()}
        if entered is not None:
            parts["before"] = weights @ entered[0].float().flatten(1).T
        counts = weights.sum(1).tolist()
        on_cpu = {name: values.cpu().double().numpy() for name, values in parts.items()}
        for row, name in enumerate(masks):
            sums[name].add(stage, counts[row], {key: values[row] for key, values in on_cpu.items()})
