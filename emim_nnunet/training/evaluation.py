"""The evaluation of an epoch: the probe set, whose crops and masks are the same in every epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from emim_nnunet.datasets.preprocessed import Case, case_folders, read_orientations
from emim_nnunet.diagnosis.collapse_monitor import CollapseMonitor
from emim_nnunet.methods.base import MethodOutput, SSLMethod
from emim_nnunet.networks import PlannedEncoder
from emim_nnunet.views.boxes import centre_box

Inputs = tuple[Tensor, Tensor, dict[str, Tensor]]


class Evaluation:
    """Measures networks on batches of the probe set, for the collapse monitor.

    Args:
        monitor: The collapse monitor that collects what is measured.
        inputs: Turns a batch into what a method takes: image, foreground and random inputs, on the device.
        autocast: Opens a context of mixed precision, as in training.
        patch_size: Voxels per axis that the encoder takes; crops may be larger.
    """

    def __init__(
        self,
        monitor: CollapseMonitor,
        inputs: Callable[[dict[str, Any]], Inputs],
        autocast: Callable[[], AbstractContextManager],
        patch_size: Sequence[int],
    ) -> None:
        self.monitor, self._inputs, self._autocast, self._patch_size = monitor, inputs, autocast, patch_size

    @torch.no_grad()
    def measure(self, batch: dict[str, Any], network: nn.Module, encoder: PlannedEncoder) -> MethodOutput:
        """Measure one batch.

        Args:
            batch: A batch of the probe set, as the crop loader gives it.
            network: The method in evaluation mode, with DDP and torch.compile around it where they are used.
            encoder: The encoder of the method, without them.

        Returns:
            The output of the method.
        """
        image, foreground, draws = self._inputs(batch)
        with self._autocast():
            output = network(image, foreground, draws)
            patch, inside = (centre_box(t, self._patch_size) for t in (image, foreground))
            self.monitor.update(batch["index"].tolist(), patch, inside, output, encoder)
        return output

    def measure_untrained(self, batches: Iterable[dict[str, Any]], method: SSLMethod) -> list[str]:
        """One pass over the probe set with the network as it was before the first step: the reference of the monitor.

        Args:
            batches: The batches of the probe set, each once.
            method: The method as it was before the first step, in evaluation mode.

        Returns:
            Lines for the log with the losses of predictions without image content.
        """
        self.monitor.start()
        for batch in batches:
            self.measure(batch, method, method.encoder)
        self.monitor.finish(0, 0)
        return self.monitor.first_lines()


def orientations_of(cases: Sequence[Case], transpose: Sequence[int], num_axes: int) -> dict[str, str]:
    """The side of the patient to which each axis of a patch leads, for the cases where it is known.

    Args:
        cases: The cases of the probe set.
        transpose: ``transpose_forward`` of the plans.
        num_axes: Number of axes of a patch, 2 or 3; 2D patches are slices along the first axis of the image.

    Returns:
        Case id -> one letter (L, R, A, P, I or S) for each axis of the patch.
    """
    found: dict[str, str] = {}
    for folder in case_folders(cases):
        found |= read_orientations(folder, transpose)
    return {case: letters[-num_axes:] for case, letters in found.items()}
