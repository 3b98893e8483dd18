"""What a diagnosis measures: the features and the reconstruction of networks on the same patches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from emim_nnunet.dataloading.batch import method_inputs, prepare
from emim_nnunet.dataloading.crops import CropDataset
from emim_nnunet.datasets.preprocessed import Case
from emim_nnunet.diagnosis.collapse_monitor import update_probe
from emim_nnunet.diagnosis.probe_data import ProbeData
from emim_nnunet.diagnosis.subjects import Subject
from emim_nnunet.diagnostics import CollapseProbe, cell_grid, dense_probe, foreground_rows
from emim_nnunet.errors import UserError
from emim_nnunet.masking import grid_size, voxels_to_cells
from emim_nnunet.methods.base import SSLMethod
from emim_nnunet.randomness import Stream, seeded_generator
from emim_nnunet.storage.progress import Progress
from emim_nnunet.views.boxes import centre_box

BATCH = 2
PROBE_CELL = 4  # voxels per axis; smaller than mask cells, because labels have fine detail
PROBE_ROWS_PER_PATCH = 256
Batch = tuple[dict[str, Any], Tensor, Tensor, dict[str, Tensor]]  # the whole batch, its image, foreground and draws


class Measurement:
    """Measures networks on the same patches.

    Args:
        data: The preprocessed cases.
        patch_size: Voxels per axis of a patch.
        crop_size: Voxels per axis of the crops whose middle the patches are; larger than a patch for some methods.
        cell_size: Voxels of a mask cell per axis.
        num_patches: Number of patches to measure on.
        seed: Seed of crops and masks.
        device: The device to compute on.
    """

    def __init__(
        self,
        data: ProbeData,
        patch_size: Sequence[int],
        crop_size: Sequence[int],
        cell_size: Sequence[int],
        *,
        num_patches: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.data = data
        self.patch_size = tuple(patch_size)
        self.crop_size = tuple(crop_size)
        self.cell_size = tuple(cell_size)
        self.num_patches = num_patches
        self.seed = seed
        self.device = device

    @torch.no_grad()
    def measure(self, subject: Subject) -> dict[str, Any]:
        """Measure what the collapse monitor measures.

        Args:
            subject: The network.

        Returns:
            The scores of :meth:`CollapseProbe.measure`, with ``epoch``.
        """
        grid = grid_size(self.patch_size, self.cell_size)
        cell_size = None if subject.epochs else self.cell_size
        probe = CollapseProbe(grid, self.data.dataset.channel_names, self.seed, cell_size)
        (subject.method or subject.encoder).to(self.device)
        for batch, image, foreground, draws in self._batches(self.data.cases, subject.name, subject.method):
            indices = batch["index"].tolist()
            patch, inside = (centre_box(t, self.patch_size) for t in (image, foreground))
            if subject.method is None:
                probe.update_features(indices, inside, subject.encoder(patch))
            else:
                output = subject.method(image, foreground, draws)
                update_probe(probe, indices, patch, inside, output, subject.encoder)
        return {"epoch": subject.epochs} | probe.measure()

    @torch.no_grad()
    def dense_probe(self, subject: Subject) -> list[float]:
        """Measure how well the features of each stage predict label fractions, with a split by case.

        Args:
            subject: The network.

        Returns:
            One R2 per stage, see :func:`.diagnostics.dense_probe`.

        Raises:
            UserError: There are fewer than two labelled cases, or all patches came from one.
        """
        cases = self.data.labelled
        if len(cases) < 2:
            raise UserError(f"--probe splits by case and needs at least two labelled ones, there are {len(cases)}")
        collected: list[list[tuple[Tensor, Tensor, str]]] = []
        subject.encoder.to(self.device)
        for batch, image, foreground, _ in self._batches(cases, subject.name):
            patch, inside, label = (centre_box(t, self.patch_size) for t in (image, foreground, batch["label"]))
            fractions = torch.cat([(label == value).float() for value in self.data.labels], 1)
            features = subject.encoder(patch)
            collected = collected or [[] for _ in features]
            for sample, case in enumerate(batch["case"]):
                part, number = slice(sample, sample + 1), int(batch["index"][sample])
                for stage, output in enumerate(features):
                    rows = self._probe_rows(output[part], fractions[part], inside[part], number)
                    collected[stage].append((*rows, case))
        return [_score(parts) for parts in collected]

    def _batches(self, cases: Sequence[Case], name: str, method: SSLMethod | None = None) -> Iterator[Batch]:
        crops = CropDataset(cases, self.crop_size, self.seed, with_label=True)
        numbers = range(0, self.num_patches, BATCH)
        for start in Progress(numbers, desc=f"Measuring {name}", leave=False):
            yield self._prepare([crops[i] for i in range(start, min(start + BATCH, self.num_patches))], method)

    def _prepare(self, items: list[dict[str, Any]], method: SSLMethod | None) -> Batch:
        """Crops as a batch, with its image, its foreground and the method's random inputs on the device."""
        batch = default_collate(items)
        zero_outside = self.data.dataset.manager.use_mask_for_norm
        if method is None:
            return batch, *prepare(batch, self.device, zero_outside), {}
        return batch, *method_inputs(method, batch, self.device, zero_outside, self.seed)

    def _probe_rows(
        self, features: Tensor, fractions: Tensor, foreground: Tensor, number: int
    ) -> tuple[Tensor, Tensor]:
        """Features (N, C) and label fractions (N, K) of some cells of one patch."""
        grid = tuple(max(1, p // PROBE_CELL) for p in self.patch_size)
        rows, present = foreground_rows(features, foreground, grid)
        cells = voxels_to_cells(fractions, cell_grid(features.shape[2:], grid)).flatten(2).transpose(1, 2)
        generator = seeded_generator(self.seed, Stream.PROBE, number)
        chosen = torch.randperm(len(rows), generator=generator)[:PROBE_ROWS_PER_PATCH]
        return rows.cpu()[chosen], cells[present.cpu()][chosen]


def _score(parts: Sequence[tuple[Tensor, Tensor, str]]) -> float:
    rows = torch.cat([rows for rows, _, _ in parts]).numpy()
    targets = torch.cat([targets for _, targets, _ in parts]).numpy()
    cases = np.concatenate([[case] * len(part) for part, _, case in parts])
    if len(set(cases)) < 2:
        raise UserError("--probe: all patches came from one case; take more --patches")
    return dense_probe(rows, targets, cases)
