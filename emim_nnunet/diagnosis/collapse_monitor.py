"""The collapse monitor of an SSL stage: it reports during the training that a pretraining has collapsed.

After every epoch it measures on the same crops with the same masks: the reconstruction, and the features of the *unmasked*
crops, which are what a downstream network will get. The untrained network, as it was before the first step, is the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emim_nnunet.diagnosis.air import without_air
from emim_nnunet.diagnosis.collapse_report import baseline_lines, report, write_csv, write_picture, write_report
from emim_nnunet.diagnosis.reference import Reference
from emim_nnunet.diagnostics import CollapseProbe, Thresholds, Verdict, judge
from emim_nnunet.diagnostics.spectrum import ROWS_PER_CHANNEL
from emim_nnunet.masking import grid_size
from emim_nnunet.methods.base import MethodOutput

UNHEALTHY = ("warning", "error")


@torch.no_grad()
def update_probe(
    probe: CollapseProbe,
    indices: Sequence[int],
    image: Tensor,
    foreground: Tensor,
    output: MethodOutput,
    encoder: Callable[[Tensor], list[Tensor]],
) -> None:
    """Add the output of a method for a batch to a probe.

    Args:
        probe: The probe to add to.
        indices: The number of each patch in the probe set.
        image: (B, C, *P) float, the unmasked patches.
        foreground: (B, 1, *P) bool, True inside the body.
        output: The output of the method in evaluation mode.
        encoder: The encoder of the method; it is called when the output lacks the features of the unmasked image.
    """
    original = output.original_features
    if original is None:
        original = encoder(image)
    parts = output.reconstruction
    hidden = None if parts is None or output.features is None else parts.hidden
    probe.update_features(indices, foreground, original, output.features, hidden)
    if parts is not None:
        body = without_air(parts.image, parts.foreground)
        probe.update_reconstruction(parts.prediction, parts.target, parts.counted, body, indices)


class CollapseMonitor:
    """Measures an SSL stage, judges it and writes its files.

    Args:
        patch_size: Voxels per axis of a patch.
        cell_size: Voxels of a mask cell per axis.
        channel_names: The names of the C modalities.
        seed: Seed of the stage, which decides which cells uniformity and alignment use.
        warmup_epochs: Number of epochs of the warm-up of the learning rate; rules about several evaluations begin after it.
        norm_pix: Whether targets are normalised per cell.
        reference: Another stage, whose losses are drawn beside those of this one.

    Attributes:
        history: The measurements, each with the ``level`` of its verdict; the first one (``epoch`` 0) is of the untrained
            network. Spectra are kept only of the untrained network, the first epoch and the last one.
    """

    thresholds = Thresholds()

    def __init__(
        self,
        patch_size: Sequence[int],
        cell_size: Sequence[int],
        channel_names: Sequence[str],
        *,
        seed: int,
        warmup_epochs: int,
        norm_pix: bool,
        reference: Reference | None = None,
    ) -> None:
        self.cell_size = tuple(cell_size)
        self.mask_grid = grid_size(patch_size, cell_size)
        self.channel_names = list(channel_names)
        self.seed = seed
        self.warmup_epochs = warmup_epochs
        self.norm_pix = norm_pix
        self.reference = reference
        self.history: list[dict[str, Any]] = []
        self._probe: CollapseProbe | None = None

    def start(self) -> None:
        """Begin an evaluation; the losses of predictions without image content are measured in the first one only."""
        cell_size = None if self.history else self.cell_size
        self._probe = CollapseProbe(self.mask_grid, self.channel_names, self.seed, cell_size)

    def update(
        self,
        indices: Sequence[int],
        image: Tensor,
        foreground: Tensor,
        output: MethodOutput,
        encoder: Callable[[Tensor], list[Tensor]],
    ) -> None:
        """Add the output of a method for a batch; the arguments are those of :func:`update_probe`."""
        assert self._probe is not None
        update_probe(self._probe, indices, image, foreground, output, encoder)

    def finish(self, epochs_done: int, steps_done: int) -> dict[str, Any]:
        """End an evaluation; called on all ranks.

        Args:
            epochs_done: Number of epochs done, 0 = untrained.
            steps_done: Number of training steps done.

        Returns:
            The measurement, which is also the last one of the history.
        """
        assert self._probe is not None
        measurement = {"epoch": epochs_done, "step": steps_done} | self._probe.measure()
        self._probe = None
        for old in self.history[2:]:
            for stage in old["stages"]:
                stage.pop("spectrum", None)
        self.history.append(measurement)
        measurement["level"] = self.verdict.level
        return measurement

    @property
    def verdict(self) -> Verdict:
        """The verdict on the last measurement."""
        return judge(self.history, warmup_epochs=self.warmup_epochs, norm_pix=self.norm_pix, thresholds=self.thresholds)

    @property
    def unhealthy_epochs(self) -> int:
        """Number of measurements in a row, up to the last one, that gave a warning or an error."""
        healthy = [i for i, m in enumerate(self.history) if m["level"] not in UNHEALTHY]
        return len(self.history) - 1 - max(healthy, default=-1)

    def skills(self) -> dict[str, float]:
        """``skill/NAME`` of the last measurement, for the log; empty without a reconstruction."""
        scores = self.history[-1]["reconstruction"] or {}
        names = [*self.channel_names, "all"]
        return {f"skill/{name}": scores[name]["skill"] for name in names if name in scores}

    def first_lines(self) -> list[str]:
        """What the losses of this run are compared with, for the log; empty where nothing is reconstructed."""
        lines = baseline_lines(self.history[0])
        return [*lines, str(self.reference)] if lines and self.reference is not None else lines

    def log_line(self) -> str:
        """A line for the log with the verdict and the effective rank of each stage."""
        stages = self.history[-1]["stages"]
        ranks = ", ".join(
            f"{stage['effective_rank']:.1f}/{stage['channels']}{'' if stage['status'] == 'ok' else '?'}"
            for stage in stages
        )
        few = any(stage["status"] != "ok" for stage in stages)
        explained = f"; ? = fewer than {ROWS_PER_CHANNEL} rows per channel, no verdict" if few else ""
        return f"Collapse monitor: {self.verdict.line} (effective rank of the stages: {ranks}{explained})"

    def write(self, folder: Path, about: Mapping[str, Any], *, picture: bool) -> None:
        """Write ``collapse.csv``, ``collapse_report.json`` and, if asked, ``collapse_spectrum.png``.

        Args:
            folder: The folder to write to.
            about: What the report says about the run, as plain values.
            picture: Whether to draw the picture; it is also drawn whenever the level has changed.
        """
        verdict = self.verdict
        about = {"seed": self.seed, "warmup_epochs": self.warmup_epochs, "norm_pix": self.norm_pix} | dict(about)
        about |= {} if self.reference is None else {"reference": self.reference.name}
        write_csv(self.history, folder)
        write_report(report(self.history, verdict, self.thresholds, about), folder)
        changed = len(self.history) > 1 and self.history[-2]["level"] != verdict.level
        if picture or changed:
            write_picture(self.history, verdict, folder, reference=self.reference)
