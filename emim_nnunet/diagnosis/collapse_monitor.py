"""The collapse monitor of an SSL stage: says while the GPU still burns that a pretraining has collapsed.

After every epoch it looks at the same held-out crops with the same masks: at the reconstruction, and at the features of the
*unmasked* crops, which is what a downstream network will see. The untrained network itself, as it was before the first step, is
the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
    """Add what a method put out for a batch to a probe.

    Args:
        probe: Gets it.
        indices: Number of each patch.
        image: (B, C, *P), the patch.
        foreground: (B, 1, *P) bool.
        output: Of the method in evaluation mode.
        encoder: Of the method; called when the output lacks the features of the unmasked image.
    """
    original = output.original_features
    if original is None:
        original = encoder(image)
    parts = output.reconstruction
    hidden = None if parts is None or output.features is None else parts.hidden
    probe.update_features(indices, foreground, original, output.features, hidden)
    if parts is not None:
        probe.update_reconstruction(parts.prediction, parts.target, parts.counted, parts.foreground, indices)


class CollapseMonitor:
    """Measurements of a run, its verdict, its files.

    Args:
        patch_size: Voxels per axis.
        cell_size: Voxels of a mask cell per axis.
        channel_names: C names.
        seed: Of the run.
        warmup_epochs: Of its learning rate; the rules begin after them.
        norm_pix: Whether targets are normalised per cell.
        reference: Another stage, whose losses are drawn beside those of this one.

    Attributes:
        history: Measurements; the first one (``epoch`` 0) of the untrained network. Each has its ``level``. Spectra are kept of
            the untrained network, the first epoch and the last one.
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
        """Add a batch; see :func:`update_probe`."""
        assert self._probe is not None
        update_probe(self._probe, indices, image, foreground, output, encoder)

    def finish(self, epochs_done: int, steps_done: int) -> dict[str, Any]:
        """End an evaluation, on all ranks.

        Args:
            epochs_done: 0 = untrained.
            steps_done: Training steps in them.

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
        """On the last measurement."""
        return judge(self.history, warmup_epochs=self.warmup_epochs, norm_pix=self.norm_pix, thresholds=self.thresholds)

    @property
    def unhealthy_epochs(self) -> int:
        """How many of the last measurements in a row gave a warning or an error."""
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
        """Verdict and effective ranks."""
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
            folder: Where to write.
            about: For the report.
            picture: Draw it; also drawn whenever the level has changed.
        """
        verdict = self.verdict
        about = {"seed": self.seed, "warmup_epochs": self.warmup_epochs, "norm_pix": self.norm_pix} | dict(about)
        about |= {} if self.reference is None else {"reference": self.reference.name}
        write_csv(self.history, folder)
        write_report(report(self.history, verdict, self.thresholds, about), folder)
        changed = len(self.history) > 1 and self.history[-2]["level"] != verdict.level
        if picture or changed:
            write_picture(self.history, verdict, folder, reference=self.reference)
