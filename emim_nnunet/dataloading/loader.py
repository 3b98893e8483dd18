"""Batches of crops in a fixed order, whatever the number of processes that read and that train."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import wait
from typing import Any

from torch.utils.data import DataLoader

from emim_nnunet.dataloading.crops import CropDataset
from emim_nnunet.errors import UserError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]  # None stands for the module that is not there

FILES_WITHOUT_WORKERS = 48
FILES_PER_WORKER = 18  # two batches ahead, of five to seven tensors that are files, and the pipes
DEATH_SECONDS = 5  # to wait for the end of a worker that has closed its files


@dataclass(frozen=True)
class BatchNumbers:
    """Crop numbers of the batches of one rank: an endless (or repeating) sampler for a ``DataLoader``.

    Attributes:
        batch_size: Samples per batch over all ranks.
        first_step: Number of the first batch; a resumed run continues where it was.
        num_steps: Number of batches before the sequence repeats; None = never.
        rank: Number of this rank.
        world_size: Number of ranks; rank r takes its contiguous share of each batch.
    """

    batch_size: int
    first_step: int = 0
    num_steps: int | None = None
    rank: int = 0
    world_size: int = 1

    def __iter__(self) -> Iterator[list[int]]:
        share = self.share()
        for step in count(self.first_step):
            step = step if self.num_steps is None else step % self.num_steps
            yield [step * self.batch_size + sample for sample in share]

    def share(self) -> range:
        """Places in the batch that belong to this rank; shares differ by at most one sample."""
        bounds = [self.batch_size * r // self.world_size for r in (self.rank, self.rank + 1)]
        return range(*bounds)


class CropBatches:
    """An endless iterator over batches of crops, in a fixed order whatever the number of workers.

    Gives dicts: ``image`` (B, C, *P), ``foreground`` (B, 1, *P), ``index`` (B,), ``subject`` (B,), ``present`` (B, C),
    ``case`` list of ids, and ``inside`` (B, 1, *P) where :class:`~emim_nnunet.dataloading.crops.CropDataset` gives it. The
    workers start with the first batch, or with :meth:`start`.

    Args:
        dataset: The crops.
        numbers: Numbers of the crops of each batch.
        num_workers: Number of processes that read; 0 reads in this one.
        pin_memory: Lock batches in memory, which makes copies to a GPU faster.
        start_worker: Called in each worker with its number.
    """

    def __init__(
        self,
        dataset: CropDataset,
        numbers: BatchNumbers,
        *,
        num_workers: int,
        pin_memory: bool,
        start_worker: Callable[[int], None] | None = None,
    ) -> None:
        self.dataset = dataset
        self._loader = DataLoader(
            dataset,
            batch_sampler=numbers,
            num_workers=num_workers,
            pin_memory=pin_memory,
            prefetch_factor=2 if num_workers else None,
            worker_init_fn=start_worker,
        )
        self._iterator: Any = None

    def start(self) -> CropBatches:
        """Let the workers begin to read; does nothing where they have.

        Raises:
            UserError: This process may not open the files that they need.
        """
        if self._iterator is None:
            _allow_open_files(self._loader.num_workers)
            with _sigchld_kept():
                self._iterator = iter(self._loader)
        return self

    def close(self) -> None:
        """End the workers, which otherwise live as long as something refers to this object."""
        if self._iterator is not None and self._loader.num_workers:
            self._iterator._shutdown_workers()
        self._iterator = None

    def __iter__(self) -> CropBatches:
        return self

    def __next__(self) -> dict[str, Any]:
        """The next batch.

        Raises:
            UserError: A worker died, or a case cannot be read.
        """
        try:
            return next(self.start()._iterator)
        except UserError as error:
            if "\n" in str(error):  # came out of a worker, with the traceback in its text
                raise UserError(str(error).strip().splitlines()[-1].partition("UserError: ")[2]) from error
            raise
        except Exception as error:  # whatever a worker leaves behind that dies while it hands over a batch
            if death := self._death():
                raise UserError(
                    f"a data-loading worker died ({death}): mostly the machine's memory ran out, or /dev/shm did. "
                    f"Use fewer workers (nnUNet_n_proc_DA) and continue with --c"
                ) from error
            raise

    def _death(self) -> str:
        """What a worker died of, if one did."""
        workers = getattr(self._iterator, "_workers", [])
        ended = wait([worker.sentinel for worker in workers], timeout=DEATH_SECONDS) if workers else []
        for worker in workers:
            if worker.sentinel in ended:  # its files are closed, a moment before it is dead
                worker.join(DEATH_SECONDS)
        codes = [worker.exitcode for worker in workers if worker.exitcode]
        return "; ".join(str(signal.strsignal(-code) if code < 0 else f"exit code {code}") for code in codes)


def _allow_open_files(num_workers: int) -> None:
    """Raise this process's limit of open files to what the workers need: where it is too low, torch waits for ever."""
    if resource is None or not num_workers:
        return
    needed = FILES_WITHOUT_WORKERS + FILES_PER_WORKER * num_workers
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise UserError(
            f"{num_workers} data-loading workers need {needed} open files, and {hard} are allowed: raise ulimit -n, or use "
            f"fewer workers (nnUNet_n_proc_DA)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


@contextmanager
def _sigchld_kept() -> Iterator[None]:
    """Undo that torch handles SIGCHLD: its handler raises wherever the main thread happens to be, in the middle of a
    checkpoint or of ending other workers too. Without it a death is noticed where the next batch is waited for.
    """
    number = getattr(signal, "SIGCHLD", None)  # not on Windows
    handler = number and signal.getsignal(number)
    try:
        yield
    finally:
        if number and signal.getsignal(number) is not handler:
            signal.signal(number, handler)
