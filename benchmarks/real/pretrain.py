"""An SSL stage of the experiment: the package's own trainer, in bfloat16, with the encoder kept at some epochs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from emim_nnunet import trainers
from emim_nnunet.checkpoints.io import read_checkpoint
from emim_nnunet.compare.arms import Arm
from emim_nnunet.storage.files import atomic_write, plain_json, read_json
from emim_nnunet.training.checkpoint import FINAL as FINAL_CHECKPOINT
from emim_nnunet.training.checkpoint import LATEST
from real.arms import WITHOUT_BODY
from real.data import CONFIGURATION, DATASET_ID, NAME, PLANS, preprocessed


class Kept:
    """Put before an SSL trainer: it computes in bfloat16, and keeps its encoder after some epochs.

    Attributes:
        kept: Number of epochs done -> file for the encoder.
    """

    kept: Mapping[int, Path]

    def initialize(self) -> None:
        """Initialise, and compute in bfloat16: two thirds of the time, and what the methods do on a GPU."""
        super().initialize()  # type: ignore[misc]
        step: Any = self.guarded_step  # type: ignore[attr-defined]
        step.autocast = lambda: torch.autocast(step.device.type, dtype=torch.bfloat16)

    def on_epoch_end(self) -> None:
        """End the epoch; first keep the encoder if it is one of ``kept``, so that no checkpoint is ahead of it."""
        trainer: Any = self
        file = self.kept.get(trainer.current_epoch + 1)
        if file is not None:
            file.parent.mkdir(exist_ok=True)
            state = {key: value.clone() for key, value in trainer.method.encoder.state_dict().items()}
            atomic_write(file, lambda stream: torch.save(state, stream))
        super().on_epoch_end()  # type: ignore[misc]


def encoder_file(work: Path, stage: str, epoch: int) -> Path:
    """Where the encoder of an SSL stage lies after that many epochs."""
    return work / "encoders" / f"{stage}_after{epoch}.pth"


def pretrain(
    name: str,
    arm: Arm,
    seed: int,
    fold: int,
    steps: dict[str, int],
    kept: Sequence[int],
    work: Path,
    device: str,
    network: str = CONFIGURATION,
) -> dict[str, Any]:
    """Run an SSL stage, or go on with it.

    Args:
        name: The name of the stage in files.
        arm: The arm, which must have a method.
        seed: Seed of everything random.
        fold: The fold whose training patients it learns from; those that it tests on are the monitor's probe set.
        steps: ``num_epochs`` and ``num_iterations_per_epoch``.
        kept: Epochs after which the encoder is kept, see :func:`encoder_file`.
        work: The folder of data and weights; :func:`data.enter` was called with it.
        device: ``cpu`` or ``cuda``.
        network: The configuration whose network it is.

    Returns:
        Plain values: ``arm``, ``seed``, ``fold``, ``steps``, ``settings``, ``seconds_per_step``, ``collapse``
        (the monitor's history), ``verdict`` and ``log`` (the columns of ``ssl_log.csv``).
    """
    torch.set_num_threads(1)
    folder = without_body(work) if arm.name.endswith(WITHOUT_BODY) else preprocessed(work)
    plans, configuration = read_json(folder / f"{PLANS}.json"), f"{CONFIGURATION}_{name}"
    block = arm.settings | {"seed": seed} | steps
    plans["configurations"][configuration] = {"inherits_from": network, "emim": block}
    plans["dataset_name"] = folder.name
    output = work / "nnUNet_results" / folder.name / f"{arm.trainer}__{PLANS}__{configuration}" / f"fold_{fold}"
    files = {epoch: encoder_file(work, name, epoch) for epoch in kept}
    if not (output / FINAL_CHECKPOINT).is_file():
        own = getattr(trainers, str(arm.trainer))
        trainer_class: Any = type(own.__name__, (Kept, own), {"kept": files})
        plans["continue_training"] = (output / LATEST).is_file()
        dataset_json = read_json(folder / "dataset.json")
        trainer = trainer_class(plans, configuration, fold, dataset_json, torch.device(device))
        if (output / LATEST).is_file():
            trainer.load_checkpoint(str(output / LATEST))
        trainer.run_training()
    return _summary(read_checkpoint(output / FINAL_CHECKPOINT), arm.name, seed, fold)


def without_body(work: Path) -> Path:
    """The same preprocessed data, linked, without the body that preprocessing found and the checksums that know of it."""
    source = preprocessed(work)
    target = source.with_name(f"Dataset{DATASET_ID + 1}_{NAME}NoBody")
    target.mkdir(exist_ok=True)
    for entry in source.iterdir():
        kept = entry.name != "body" and entry.suffix != ".checksums"
        if kept and not (target / entry.name).exists():
            (target / entry.name).symlink_to(entry)
    return target


def _summary(checkpoint: dict[str, Any], arm: str, seed: int, fold: int) -> dict[str, Any]:
    history = checkpoint["history"]
    per_epoch = checkpoint["emim"]["num_iterations_per_epoch"]
    seconds = [row["seconds"] for row in history]
    result = {
        "arm": arm,
        "seed": seed,
        "fold": fold,
        "steps": checkpoint["current_epoch"] * per_epoch,
        "seconds_per_step": sorted(seconds)[len(seconds) // 2] / per_epoch,
        "settings": checkpoint["settings"],
        "verdict": checkpoint["verdict"],
        "collapse": checkpoint["collapse"],
        "log": history,
        "versions": checkpoint["versions"],
    }
    return json.loads(json.dumps(plain_json(result)))
