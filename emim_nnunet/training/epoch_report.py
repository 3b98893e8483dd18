"""The report of an epoch: the outputs of its steps become one row of numbers, a few lines of text and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from emim_nnunet.diagnostics.rules import LEVELS
from emim_nnunet.methods.base import Reconstruction
from emim_nnunet.storage.figures import rounded
from emim_nnunet.training.plots import plot_reconstruction


def step_record(output: Any) -> dict[str, Any]:
    """What is kept of a :class:`~emim_nnunet.methods.base.MethodOutput`; tensors stay on the device, so nothing waits."""
    return {"loss": output.loss.detach(), "terms": output.terms}


def record_on(device: torch.device, record: dict[str, Any]) -> dict[str, Any]:
    """Move the record of a step, which a checkpoint held, to a device."""
    return {"loss": record["loss"].to(device), "terms": {k: v.to(device) for k, v in record["terms"].items()}}


class EpochAtHand:
    """The current epoch and what has been done of it; a checkpoint may be written in the middle of it.

    Attributes:
        iteration: Number of steps taken.
        records: The records of these steps, see :func:`step_record`; steps whose loss was not finite have none.
        row: The numbers for the log, as they become known.
    """

    def __init__(self) -> None:
        self.records: list[dict[str, Any]]
        self.row: dict[str, float]
        self.begin()

    def begin(self) -> None:
        """Begin an epoch of which nothing is done yet."""
        self.iteration, self.records, self.row = 0, [], {}
        self._seconds_before, self._start = 0.0, nan

    def go_on(self, checkpoint: dict[str, Any], device: torch.device) -> None:
        """Go on with an epoch that the checkpoint of a stage holds in part."""
        self.begin()
        self.iteration, self._seconds_before = checkpoint["iteration"], checkpoint["seconds"]
        self.records = [record_on(device, record) for record in checkpoint["records"]]

    def start_clock(self) -> None:
        """Start the clock, or start it again in a process that continues the epoch."""
        self._start = monotonic() - self._seconds_before

    def seconds(self) -> float:
        """Seconds spent on the epoch so far, including those in earlier processes."""
        return monotonic() - self._start

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of the epoch: steps taken, their records and the seconds spent."""
        seconds = self.seconds() if self.iteration else 0.0
        return {"iteration": self.iteration, "records": self.records, "seconds": seconds}


def mean_terms(records: Sequence[dict[str, Any]], prefix: str) -> dict[str, float]:
    """Average loss and terms over steps: keys ``prefix/loss``, ``prefix/TERM``; the loss is NaN where all were skipped."""
    if not records:
        return {f"{prefix}/loss": nan}
    rows = [{"loss": r["loss"]} | r["terms"] for r in records]
    stacked = torch.stack([torch.stack([row[key].float() for key in rows[0]]) for row in rows])
    return {f"{prefix}/{key}": value for key, value in zip(rows[0], stacked.mean(0).tolist(), strict=True)}


def log_lines(row: dict[str, float]) -> list[str]:
    """Lines for the log that show a row in the way in which nnU-Net prints its numbers."""
    skill = {key.removeprefix("skill/"): value for key, value in row.items() if key.startswith("skill/")}
    skill_line = "Skill over the constant prediction: " + ", ".join(
        f"{name} {rounded(value)}" for name, value in skill.items()
    )
    return [
        f"train_loss {row['train/loss']:.4f}{_terms(row, 'train/')}",
        f"val_loss {row['val/loss']:.4f}{_terms(row, 'val/')}",
        *([skill_line] if skill else []),
        f"Epoch time: {row['seconds']:.2f} s ({row['patches_per_second']:.2f} patches/s in training)",
    ]


def tracked_numbers(row: Mapping[str, float], history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What trackers get of an epoch: its row of the log, and what the collapse monitor measured after it.

    Args:
        row: The row, with ``epoch`` from 0.
        history: The measurements, whose ``epoch`` is the number of epochs done.

    Returns:
        ``ssl/KEY`` of the row, ``ssl/effective_rank/stage_N`` of each stage of the encoder, and ``ssl/verdict``: the place of
        the level in :data:`.rules.LEVELS` (0 = ok), -1 where there was too little data for one.
    """
    numbers = {f"ssl/{key}": value for key, value in row.items() if key != "epoch"}
    for measured in (m for m in history if m["epoch"] == row["epoch"] + 1):
        for number, stage in enumerate(measured["stages"]):
            numbers[f"ssl/effective_rank/stage_{number}"] = float(stage["effective_rank"])
        level = measured["level"]
        numbers["ssl/verdict"] = float(LEVELS.index(level)) if level in LEVELS else -1.0
    return numbers


def _terms(row: dict[str, float], prefix: str) -> str:
    shown = [k for k in row if k.startswith(prefix) and not k.endswith(("/loss", "fraction")) and "stage" not in k]
    return " (" + ", ".join(f"{k.removeprefix(prefix)} {row[k]:.4f}" for k in shown) + ")"


def save_reconstructions(
    folder: Path,
    epoch: int,
    cases: Sequence[str],
    reconstruction: Reconstruction,
    channel_names: Sequence[str],
    spacing: Sequence[float],
    orientations: Mapping[str, str],
    limit: int = 3,
) -> None:
    """Write ``epoch_NNNN_CASE.png`` for the first different cases of a probe batch.

    Args:
        folder: The folder to write to; it is made when needed.
        epoch: The number of the epoch, from 0.
        cases: The case id of each of the B samples.
        reconstruction: The method's reconstruction of the same samples.
        channel_names: The names of the C modalities.
        spacing: mm per voxel along the axes of the patch.
        orientations: Case id -> orientation of the patch's axes, for cases where it is known; see
            :func:`.evaluation.orientations_of`.
        limit: Largest number of pictures.
    """
    folder.mkdir(exist_ok=True)
    first_of_case = {case: sample for sample, case in reversed(list(enumerate(cases)))}
    for case, sample in sorted(first_of_case.items(), key=lambda item: item[1])[:limit]:
        parts = (reconstruction.image, reconstruction.masked_image, reconstruction.prediction)
        image, masked_image, prediction = (part[sample].cpu().float().numpy() for part in parts)
        plot_reconstruction(
            image,
            masked_image,
            prediction,
            reconstruction.hidden[sample].cpu().numpy(),
            folder / f"epoch_{epoch:04d}_{case}.png",
            channel_names=channel_names,
            foreground=reconstruction.foreground[sample, 0].cpu().numpy(),
            spacing=spacing,
            orientation=orientations.get(case, ""),
            title=f"{case}, epoch {epoch}",
        )
