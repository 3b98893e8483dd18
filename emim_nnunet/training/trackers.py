"""Experiment trackers: Weights & Biases by nnU-Net's own switch, and TensorBoard by one of the same kind.

nnU-Net begins a run of W&B in the constructor of every trainer, and its logger takes no keys but its own. Here one object per
training stands in its list of loggers: it gets what nnU-Net logs of the segmentation stage, and what the SSL stage logs, and
makes one run of both, which ``--c`` goes on with. The keys of the SSL stage begin with ``ssl/``, the others are nnU-Net's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from emim_nnunet.errors import UserError
from emim_nnunet.storage.files import read_json, write_json

STATE = "trackers.json"
WANDB_SWITCH, TENSORBOARD_SWITCH = "nnUNet_wandb_enabled", "nnUNet_tensorboard_enabled"
VALUES = {"0": False, "False": False, "false": False, "1": True, "True": True, "true": True}  # nnU-Net's
SEGMENTATION_EPOCH, SSL_EPOCH = "epoch", "ssl/epoch"  # the axes: the epochs of each stage, from 0
LAST_OF_AN_EPOCH = "epoch_end_timestamps"  # what nnU-Net logs last


@dataclass(frozen=True)
class Entry:
    """What is logged of an epoch.

    Attributes:
        axis: :data:`SSL_EPOCH` or :data:`SEGMENTATION_EPOCH`.
        epoch: The number of the epoch in its stage, from 0.
        step: The number of the epoch in the run.
        numbers: Numbers by key.
        texts: Texts by key.
        pictures: PNG files by key.
    """

    axis: str
    epoch: int
    step: int
    numbers: Mapping[str, float]
    texts: Mapping[str, str]
    pictures: Mapping[str, Path]


class Tracker(Protocol):
    """Where the numbers of a run go. Whatever a tracker raises ends the tracker, not the training."""

    def update_config(self, config: Mapping[str, Any]) -> None:
        """Add to what is known about the run: names, plans, settings."""

    def log(self, entry: Entry) -> None:
        """Log an epoch."""

    def summary(self, key: str, value: Any) -> None:
        """Log something that there is once in a run."""

    def finish(self) -> None:
        """Write what is not written yet."""


class WeightsAndBiases:
    """A run of W&B, in project ``nnUNet_wandb_project``, in mode ``nnUNet_wandb_mode`` (not set: wandb's own variables decide).

    Args:
        folder: The output folder of the training.
        run_id: The id of the run; one that exists goes on.
        name: What W&B shows.
    """

    def __init__(self, folder: Path, run_id: str, name: str) -> None:
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=os.getenv("nnUNet_wandb_project", os.getenv("WANDB_PROJECT", "nnunet")),
            mode=os.getenv("nnUNet_wandb_mode"),
            dir=str(folder),
            id=run_id,
            name=name,
            resume="allow",
            reinit="create_new",  # not the run of another training in this process
        )
        self._known: set[str] = set()

    def update_config(self, config: Mapping[str, Any]) -> None:
        """As in :class:`Tracker`; values of a run that goes on may have changed."""
        self._run.config.update(dict(config), allow_val_change=True)

    def log(self, entry: Entry) -> None:
        """As in :class:`Tracker`; a text is shown as it was last."""
        images = {key: self._wandb.Image(str(file)) for key, file in entry.pictures.items()}
        for key in (entry.numbers.keys() | images.keys()) - self._known:
            self._run.define_metric(key, step_metric=entry.axis)
            self._known.add(key)
        # without the step, an offline run that goes on would begin at 0 again, and syncing would drop what is there
        self._run.log({**entry.numbers, **images, entry.axis: entry.epoch}, step=entry.step, commit=True)
        for key, text in entry.texts.items():
            self.summary(key, text)

    def summary(self, key: str, value: Any) -> None:
        """As in :class:`Tracker`."""
        self._run.summary[key] = value

    def finish(self) -> None:
        """As in :class:`Tracker`."""
        self._run.finish()


class TensorBoard:
    """A folder ``tensorboard/RUN_ID`` for TensorBoard; the arguments are those of :class:`WeightsAndBiases`."""

    def __init__(self, folder: Path, run_id: str, name: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(log_dir=str(folder / "tensorboard" / run_id))
        self._writer.add_text("name", name)

    def update_config(self, config: Mapping[str, Any]) -> None:
        """As in :class:`Tracker`."""
        for key, value in config.items():
            self._writer.add_text(f"config/{key}", f"    {value}")

    def log(self, entry: Entry) -> None:
        """As in :class:`Tracker`; TensorBoard's step is the epoch of the stage, for each key by itself."""
        from matplotlib.image import imread

        for key, number in entry.numbers.items():
            self._writer.add_scalar(key, number, entry.epoch)
        for key, text in entry.texts.items():
            self._writer.add_text(key, text, entry.epoch)
        for key, file in entry.pictures.items():
            self._writer.add_image(key, imread(file)[..., :3], entry.epoch, dataformats="HWC")
        self._writer.flush()

    def summary(self, key: str, value: Any) -> None:
        """As in :class:`Tracker`."""
        if isinstance(value, str):
            self._writer.add_text(key, value)
        else:
            self._writer.add_scalar(key, value, 0)
        self._writer.flush()

    def finish(self) -> None:
        """As in :class:`Tracker`."""
        self._writer.close()


KINDS: dict[str, Callable[[Path, str, str], Tracker]] = {
    WANDB_SWITCH: WeightsAndBiases,
    TENSORBOARD_SWITCH: TensorBoard,
}


def switched_on() -> list[str]:
    """The switches of :data:`KINDS` that are on.

    Raises:
        UserError: A switch has a value that nnU-Net does not know.
    """
    for switch in KINDS:
        if os.getenv(switch, "0") not in VALUES:
            raise UserError(f"{switch} is '{os.environ[switch]}': it must be 0 or 1")
    return [switch for switch in KINDS if VALUES[os.getenv(switch, "0")]]


@contextmanager
def without_nnunets_own() -> Iterator[None]:
    """Keep nnU-Net's logger from beginning a run of W&B of its own meanwhile."""
    kept = os.environ.pop(WANDB_SWITCH, None)
    try:
        yield
    finally:
        if kept is not None:
            os.environ[WANDB_SWITCH] = kept


def _new_state() -> dict[str, Any]:
    return {"run": uuid4().hex[:8], "epochs": {}}


class Trackers:
    """The trackers of a training, which are begun by :meth:`begin`; for nnU-Net one of its loggers.

    A tracker that raises is left out from then on, with a line in the log. An epoch that the run has already (it was computed
    again after an interruption) is not logged twice.

    Args:
        folder: The output folder of the training, whose :data:`STATE` remembers the id of the run and the epochs in it.
        kinds: The switches of the trackers; none on all ranks but the first.
        say: Writes a line to the log of the training.
    """

    def __init__(self, folder: Path, kinds: list[str], say: Callable[[str], object]) -> None:
        self._folder, self._kinds, self._say = folder, kinds, say
        self._trackers: dict[str, Tracker] = {}
        self._config: dict[str, Any] = {}
        self._epoch_at_hand: dict[str, float] = {}
        self._begun = False
        self._state: dict[str, Any] = {}

    def begin(self, *, new: bool) -> None:
        """Begin the run, or go on with the one that the folder remembers; does nothing if it is begun already.

        Args:
            new: Whether a training begins, which gets a run of its own.
        """
        if self._begun or not self._kinds:
            return
        self._begun = True
        self._state = _new_state() if new else self._remembered()
        name = f"{self._folder.parent.name}/{self._folder.name}"
        for kind in self._kinds:
            self._guarded(kind, partial(self._start, kind, name))
        self._remember()

    def _start(self, kind: str, name: str) -> None:
        self._trackers[kind] = KINDS[kind](self._folder, self._state["run"], name)
        self._trackers[kind].update_config(self._config)

    def _remembered(self) -> dict[str, Any]:
        try:
            state = read_json(self._folder / STATE)
            return {"run": str(state["run"]), "epochs": {k: int(v) for k, v in state["epochs"].items()}}
        except (UserError, AttributeError, KeyError, TypeError, ValueError):  # there is none, or it is damaged
            return _new_state()

    def _remember(self) -> None:
        try:
            write_json(self._folder / STATE, self._state, indent=1)
        except OSError as error:
            self._say(f"WARNING: {STATE} cannot be written ({error}): --c will begin another run of the trackers")

    def _guarded(self, kind: str, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # whatever it is: a tracker may cost a curve, never a training
            self._trackers.pop(kind, None)
            reason = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, ImportError):
                reason += "; pip install wandb or tensorboard"
            self._say(f"WARNING: {kind.split('_')[1]} gets nothing from now on ({reason}); the training goes on")

    def _each(self, call: Callable[[Tracker], object]) -> None:
        for kind, tracker in list(self._trackers.items()):
            self._guarded(kind, partial(call, tracker))

    def log_epoch(
        self,
        axis: str,
        epoch: int,
        numbers: Mapping[str, float],
        *,
        texts: Mapping[str, str] | None = None,
        pictures: Mapping[str, Path] | None = None,
    ) -> None:
        """Log an epoch of a stage, unless the run has it already.

        Args:
            axis: :data:`SSL_EPOCH` or :data:`SEGMENTATION_EPOCH`.
            epoch: The number of the epoch, from 0.
            numbers: Numbers by key.
            texts: Texts by key.
            pictures: PNG files by key; those that do not exist are left out.
        """
        if not self._trackers or epoch <= self._state["epochs"].get(axis, -1):
            return
        self._state["epochs"][axis] = epoch
        step = sum(last + 1 for last in self._state["epochs"].values()) - 1
        shown = {key: file for key, file in (pictures or {}).items() if file.is_file()}
        entry = Entry(axis, epoch, step, numbers, texts or {}, shown)
        self._each(lambda tracker: tracker.log(entry))
        self._remember()

    def update_config(self, config: Mapping[str, Any]) -> None:
        """Add to what the trackers know about the run; nnU-Net's interface of a logger.

        Args:
            config: Values by name.
        """
        self._config |= config
        self._each(lambda tracker: tracker.update_config(config))

    def log(self, key: str, value: float, step: int) -> None:
        """Log a number of the segmentation stage; nnU-Net's interface of a logger.

        Args:
            key: nnU-Net's name.
            value: The number.
            step: The epoch.
        """
        self._epoch_at_hand[key] = float(value)
        if key == LAST_OF_AN_EPOCH:
            self.log_epoch(SEGMENTATION_EPOCH, step, self._epoch_at_hand)
            self._epoch_at_hand = {}

    def log_summary(self, key: str, value: Any) -> None:
        """Log what there is once, such as the Dice of the final validation; nnU-Net's interface of a logger.

        Args:
            key: nnU-Net's name.
            value: A number or a text.
        """
        self.begin(new=False)  # --val alone
        self._each(lambda tracker: tracker.summary(key, value))

    def finish(self) -> None:
        """End the run; it can go on with :meth:`begin`."""
        self._each(lambda tracker: tracker.finish())
        self._trackers, self._begun = {}, False
