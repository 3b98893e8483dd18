"""Shards: several processes, on one machine or many, that convert or prepare different cases of one data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from emim_nnunet.errors import UserError
from emim_nnunet.storage.locks import Lock, acquire, holder

T = TypeVar("T")


class Shard(NamedTuple):
    """One of several parts of the cases of a data set.

    Attributes:
        number: Of this part, from 1.
        of: Number of parts.
    """

    number: int
    of: int

    def part(self, cases: Sequence[T]) -> list[T]:
        """The cases of this part: every ``of``-th of them.

        Args:
            cases: All, in an order that is the same in every process.
        """
        return list(cases[self.number - 1 :: self.of])


WHOLE = Shard(1, 1)


def read_shard(text: str) -> Shard:
    """The shard that ``--shard i/N`` names.

    Raises:
        ValueError: It is not two numbers with 1 <= i <= N.
    """
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise ValueError(f"must be i/N with 1 <= i <= N, for example 1/8, not '{text}'")
    return Shard(int(number), int(of))


def lock_data_set(folder: Path, shard: Shard | None, what: str) -> Lock:
    """Take the lock of a data set that is converted or preprocessed, or of a shard of it.

    Shards of one number run side by side, each once. The whole data set is for one process without any shard.

    Args:
        folder: ``nnUNet_preprocessed/DatasetXXX_NAME``, or what stands for it.
        shard: The shard; None = the whole data set.
        what: Name of the data set, for messages.

    Raises:
        UserError: Another process, which the message names, is in the way.
    """
    if shard is None:
        lock, others = acquire(folder, what), _shards_of(folder)
    else:
        lock = acquire(_place(folder, shard), f"shard {shard.number}/{shard.of} of {what}")
        others = [folder, *(path for path in _shards_of(folder) if path.name.split("_of_")[1] != str(shard.of))]
    for other in others:  # our lock is there already, so the other process finds it if we do not find the other's
        owner = holder(other)
        if owner:
            lock.release()
            which = "as a whole" if other == folder else f"in parts ({other.suffix[1:].replace('_', ' ')})"
            raise UserError(f"{what} is being written {which} by {owner}: wait until it has ended, or end it")
        if shard is None:
            acquire(other, str(other)).release()  # of a shard that was killed
    return lock


def _place(folder: Path, shard: Shard) -> Path:
    """What the lock of a shard stands for: beside the data set, which need not exist."""
    return folder.with_name(f"{folder.name}.shard_{shard.number}_of_{shard.of}")


def _shards_of(folder: Path) -> list[Path]:
    """What the locks of shards stand for, whether they are alive or not."""
    names = sorted(path.name for path in folder.parent.glob(f".{folder.name}.shard_*_of_*.lock"))
    return [folder.with_name(name.removeprefix(".").removesuffix(".lock")) for name in names]
