"""Random crops of preprocessed cases, reproducible by their number."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import count
from multiprocessing.connection import wait
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from emim_nnunet.datasets.preprocessed import OUTSIDE, Case, case_folders, case_stamp, open_case, readable
from emim_nnunet.errors import UserError
from emim_nnunet.randomness import Stream, seeded_generator

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]  # None stands for the module that is not there

MIN_FOREGROUND = 0.1
MAX_TRIES = 10
FILES_WITHOUT_WORKERS = 48
FILES_PER_WORKER = 16  # two batches ahead, of five or six tensors that are files, and the pipes


def crop_box(volume: Any, box: Sequence[Sequence[int]], outside: float) -> np.ndarray:
    """A box of a volume, read from the disk only where it is needed.

    Args:
        volume: (C, *shape), an array or an open file of nnU-Net's.
        box: [lower, upper) per axis; may reach beyond the volume.
        outside: Value there.

    Returns:
        (C, *box).
    """
    return np.asarray(crop_and_pad_nd(volume, box, outside))


def subject_number(identifier: str) -> int:
    """A number >= 0 that stands for a subject in every run on every machine: 62 bits of a digest of the identifier."""
    return int.from_bytes(sha256(identifier.encode()).digest()[:8], "big") >> 2


class CropDataset(Dataset):
    """Crop number ``i`` of an endless sequence: which case, where, and its voxels, all functions of (seed, i).

    Every case comes once per round of ``len(cases)`` crops, in an order that is shuffled anew each round. Cases of several
    origins are balanced: one crop of each origin in turn, and rounds within each. A crop is drawn again (up to ten times)
    while less than a tenth of it lies inside the body. Files that have changed since this object was made are refused: the
    sequence would be of two data sets.

    Args:
        cases: At least one.
        patch_size: Voxels per axis, 2 or 3 axes; 2D patches are slices along the first axis.
        seed: Seed of the whole sequence.
        with_label: Give the labels as well.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        patch_size: Sequence[int],
        seed: int,
        *,
        with_label: bool = False,
    ) -> None:
        if not cases:
            raise ValueError("at least one case is needed")
        self.cases = list(cases)
        self.stamps = {case: case_stamp(case.folder, case.identifier) for case in self.cases}
        self.is_2d = len(patch_size) == 2
        self.patch_size = (1, *patch_size) if self.is_2d else tuple(patch_size)
        self.seed = seed
        self.with_label = with_label
        origins = dict.fromkeys(case.origin for case in self.cases)
        self._groups = [[case for case in self.cases if case.origin == origin] for origin in origins]
        self._orders: dict[
            int, tuple[int, Tensor]
        ] = {}  # of each group, the round that was asked for last and its order

    def check_channels(self, number: int) -> None:
        """Look at the first case of each folder.

        Args:
            number: Channels that the images must have.

        Raises:
            UserError: They have others, or cannot be read.
        """
        for folder in case_folders(self.cases):
            case = next(case for case in self.cases if case.folder == folder)
            with readable(case.identifier):
                found = open_case(folder, case.identifier)[0].shape[0]
            if found != number:
                raise UserError(
                    f"the preprocessed case {case.identifier} has {found} channels, dataset.json of {folder.parent.name} names "
                    f"{number}: preprocess it anew"
                )

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Crop ``index``.

        Returns:
            ``image`` (C, *P) float32, ``foreground`` (1, *P) bool, ``index`` int, ``case`` id, ``subject``, its number, and
            ``present`` (C,) bool, which modalities are not 0 everywhere; ``label`` (1, *P) int16, -1 outside the body, where
            asked for.

        Raises:
            UserError: The files of the case cannot be read, or have changed.
        """
        case = self.case_of(index)
        self._check_unchanged(case)
        with readable(case.identifier):
            item = self._read(case, seeded_generator(self.seed, Stream.CROP, index))
        image = item["image"]
        if self.is_2d:
            item = {key: value[:, 0] for key, value in item.items()}
        about = {"index": index, "case": case.identifier, "subject": subject_number(case.subject)}
        return item | about | {"present": present_channels(image)}

    def _check_unchanged(self, case: Case) -> None:
        if case_stamp(case.folder, case.identifier) == self.stamps[case]:
            return
        where = f"{case.folder.parent.name}/{case.folder.name}"
        raise UserError(
            f"the preprocessed case {case.identifier} in {where} has changed since this command began, or is gone: going on "
            f"would mix two states of the data. Put the old files back and continue, or start anew with the new ones"
        )

    def _read(self, case: Case, generator: torch.Generator) -> dict[str, Any]:
        """Image, foreground and, where asked for, label of a crop."""
        data, seg = open_case(case.folder, case.identifier)
        box, foreground = self._choose_box(seg, generator)
        item = {
            "image": torch.from_numpy(crop_box(data, box, 0).astype(np.float32, copy=False)),
            "foreground": foreground,
        }
        if self.with_label:
            item["label"] = torch.from_numpy(crop_box(seg, box, OUTSIDE).astype(np.int16, copy=False))[:1]
        return item

    def case_of(self, index: int) -> Case:
        """The case of crop ``index``."""
        turn, number = divmod(index, len(self._groups))
        group = self._groups[number]
        round_number, place = divmod(turn, len(group))
        known, order = self._orders.get(number, (-1, torch.empty(0)))
        if known != round_number:
            key = (round_number, number) if number else (round_number,)
            order = torch.randperm(len(group), generator=seeded_generator(self.seed, Stream.ORDER, *key))
            self._orders[number] = (round_number, order)
        return group[int(order[place])]

    def _choose_box(self, seg: Any, generator: torch.Generator) -> tuple[list[list[int]], Tensor]:
        """A bounding box and the foreground in it, (1, *P) bool; the best of the tries if none has enough."""
        best_share, best = -1.0, None
        for _ in range(MAX_TRIES):
            box = self._random_box(seg.shape[1:], generator)
            foreground = torch.from_numpy(crop_box(seg, box, OUTSIDE) != OUTSIDE)[:1]
            share = int(foreground.count_nonzero()) / foreground.numel()
            if share > best_share:
                best_share, best = share, (box, foreground)
            if share >= MIN_FOREGROUND:
                break
        assert best is not None
        return best

    def _random_box(self, shape: Sequence[int], generator: torch.Generator) -> list[list[int]]:
        """[lower, upper) per axis; an axis shorter than the patch is centred and padded."""
        box = []
        for size, patch in zip(shape, self.patch_size, strict=True):
            centred = -((patch - size) // 2)
            lower = int(torch.randint(size - patch + 1, (), generator=generator)) if size >= patch else centred
            box.append([lower, lower + patch])
        return box


def present_channels(image: Tensor) -> Tensor:
    """Which channels are not 0 everywhere; nnU-Net's normalisation leaves an image of zeros at 0.

    Args:
        image: (C, *P).

    Returns:
        (C,) bool.
    """
    sparse = image[(slice(None), *[slice(None, None, 4)] * (image.ndim - 1))]  # nearly always decides
    present = (sparse != 0).flatten(1).any(1)
    for channel in (~present).nonzero()[:, 0].tolist():
        present[channel] = bool((image[channel] != 0).any())
    return present


@dataclass(frozen=True)
class BatchNumbers:
    """Crop numbers of the batches of one rank: an endless (or repeating) sampler for a ``DataLoader``.

    Attributes:
        batch_size: Samples per batch over all ranks.
        first_step: Number of the first batch; a resumed run continues where it was.
        num_steps: Batches before the sequence repeats; None = never.
        rank: This rank.
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
    ``case`` list of ids. The workers start with the first batch, or with :meth:`start`.

    Args:
        dataset: Crops.
        numbers: Which crops make which batch.
        num_workers: Processes; 0 loads in this one.
        pin_memory: For faster copies to a GPU.
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
        if workers:
            wait([worker.sentinel for worker in workers], timeout=1)  # its files are closed a moment before it is dead
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
