"""What goes wrong in training, in words that say what to do; and steps whose loss or gradient is not finite."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import torch
from torch import Tensor

from emim_nnunet.checkpoints.io import FAULT_FORMAT, FORMAT_VERSION, save_checkpoint
from emim_nnunet.errors import DISK_FULL, UserError, describe_memory_error

RETRY_SECONDS = 60.0
GIGABYTE = 1e9
LESS_MEMORY = (
    'lower batch_size in a configuration of your own in the plans, for example "smaller": {"inherits_from": "3d_fullres", '
    '"batch_size": 2, "emim": {"batch_size": 4}} (segmentation and SSL stage), or plan anew with a lower '
    "-gpu_memory_target; --c continues after other causes, such as another program on the same GPU"
)


@contextmanager
def explained() -> Iterator[None]:
    """Turn what training dies of without being wrong itself into a :class:`UserError` of one line.

    Raises:
        UserError: Out of memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        which = describe_memory_error(error)
        if which is None:
            raise
        raise UserError(f"{which}: {LESS_MEMORY}") from error


def when_there_is_space(
    write: Callable[[], object], folder: Path, say: Callable[[str], None], give_up: Callable[[], bool]
) -> bool:
    """Write; on a full disk wait until there is space again, saying so every minute.

    Args:
        write: Writes all or nothing of each file; is repeated.
        folder: Where.
        say: Gets a line of text.
        give_up: Whether to wait no longer.

    Returns:
        Whether it was written; False after giving up.

    Raises:
        OSError: Anything but a full disk.
    """
    while True:
        try:
            write()
            return True
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            free = shutil.disk_usage(folder).free / GIGABYTE
            say(
                f"The disk is full ({error.strerror}, {free:.1f} GB free): nothing is lost, training waits until there is "
                f"space. SIGTERM or Ctrl-C ends it; --c continues from the last checkpoint"
            )
        end = monotonic() + RETRY_SECONDS
        while monotonic() < end:
            if give_up():
                return False
            sleep(min(0.5, RETRY_SECONDS))


def read_later(flag: Tensor) -> Callable[[], bool]:
    """A flag on the device, to be read without waiting for work that is queued after this call.

    Args:
        flag: () bool.

    Returns:
        Gives its value; waits for the work before this call only.
    """
    if flag.device.type != "cuda":
        return lambda: bool(flag)
    copy = flag.to("cpu", non_blocking=True)
    done = torch.cuda.Event()
    done.record()

    def value() -> bool:
        done.synchronize()
        return bool(copy)

    return value


class SkippedSteps:
    """Steps of an epoch that changed nothing, because their loss or their gradient was not finite.

    Args:
        folder: Where the crops and masks of such steps are saved.
        limit: How many an epoch may have.
        draw: Draws the masks and other random inputs of a step again, from what is known ``about`` it.
    """

    def __init__(self, folder: Path, limit: int, draw: Callable[[dict[str, Any]], dict[str, Tensor]]) -> None:
        self.folder, self.limit, self.draw = folder, limit, draw
        self.count = self.unsaved = 0
        self.cases: list[str] = []
        self._gradients: list[tuple[Tensor, dict[str, Any]]] = []

    def start_epoch(self, count: int = 0) -> None:
        """Forget the epoch before.

        Args:
            count: Steps skipped already, in an epoch that is continued.
        """
        self.count, self.unsaved, self.cases, self._gradients = count, 0, [], []

    def add(self, what: str, about: dict[str, Any]) -> None:
        """Note a step and save what repeats it, where there is space.

        Args:
            what: ``loss`` or ``gradient``.
            about: ``epoch``, ``step``, ``rank``, ``cases`` and what ``draw`` needs.
        """
        self.count += 1
        self.cases += [case for case in about["cases"] if case not in self.cases]
        name = "epoch_{epoch:04d}_step_{step:04d}_rank_{rank}.pth".format(**about)
        content = {"format": FAULT_FORMAT, "format_version": FORMAT_VERSION, "not_finite": what}
        content |= about | {"draws": self.draw(about)}
        try:
            self.folder.mkdir(exist_ok=True)
            save_checkpoint(content, self.folder / name)
        except OSError as error:  # no reason to wait within a step, for which other ranks wait in turn
            if error.errno not in DISK_FULL:
                raise
            self.unsaved += 1

    def watch_gradient(self, broken: Tensor, about: dict[str, Any]) -> None:
        """Note later, see :meth:`read_gradients`, if ``broken`` () bool is True: reading it now would wait for the device."""
        self._gradients.append((broken, about))

    def read_gradients(self) -> None:
        """Note all watched steps whose gradient was broken; waits for the device."""
        watched, self._gradients = self._gradients, []
        flags = torch.stack([flag for flag, _ in watched]).tolist() if watched else []
        for flag, (_, about) in zip(flags, watched, strict=True):
            if flag:
                self.add("gradient", about)

    def too_many(self) -> bool:
        """Whether the epoch has more of them than allowed."""
        return self.count > self.limit

    def describe(self, epoch: int) -> str:
        """One line for a log."""
        cases = f" (cases {', '.join(self.cases)})" if self.cases else ""
        unsaved = f"; {self.unsaved} not in {self.folder.name}/, because the disk is full" if self.unsaved else ""
        return f"loss or gradient not finite in {self.count} steps of epoch {epoch}{cases}{unsaved}"
