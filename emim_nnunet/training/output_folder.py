"""The output folder of a stage, which one process (or process group) at a time may write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from emim_nnunet.storage.locks import Lock, acquire
from emim_nnunet.training.faults import when_there_is_space


class OutputFolder:
    """Holds the lock of an output folder from :meth:`hold` to the end of a ``with`` block; only the first rank does.

    A stage that is continued is read before nnU-Net calls ``run_training``: from then on no other may write it.

    Args:
        folder: The output folder of nnU-Net's trainer.
        rank: The number of this process among all processes of the training, from 0.
    """

    def __init__(self, folder: str, rank: int) -> None:
        self.path = Path(folder)
        self._rank = rank
        self._lock: Lock | None = None

    def hold(self) -> None:
        """Take the lock, unless this object holds it already.

        Raises:
            UserError: Another process writes the folder.
        """
        if self._lock is None and self._rank == 0:
            self._lock = acquire(self.path, f"{self.path.parent.name}/{self.path.name}")

    @contextmanager
    def held_from_now_on(self) -> Iterator[None]:
        """Take the lock, and keep it after the ``with`` block; it is given back only if the block raises."""
        self.hold()
        try:
            yield
        except BaseException:
            self.let_go()
            raise

    def let_go(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def check(self) -> None:
        """Check that the folder is still ours, before a checkpoint in it is replaced.

        Raises:
            UserError: Another process has taken the folder over.
        """
        if self._lock is not None:
            self._lock.check()

    def write(self, write: Callable[[], object], say: Callable[[str], None], give_up: Callable[[], bool]) -> bool:
        """Write into the folder on the first rank, see :func:`when_there_is_space`; other ranks do nothing.

        Args:
            write: Writes all or nothing of each file; may be called again.
            say: Called with a line of text while the disk is full.
            give_up: Whether to stop waiting for space.

        Returns:
            Whether it was written; True on the other ranks.
        """
        return self._rank != 0 or when_there_is_space(write, self.path, say, give_up)

    def __enter__(self) -> OutputFolder:
        self.hold()
        return self

    def __exit__(self, *error: object) -> None:
        self.let_go()
