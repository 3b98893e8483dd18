"""Faults of the machine during training, such as too little memory or a full disk, and what the user is told to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

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
    """Turn an error that ends training without being a fault of the program into a :class:`UserError` of one line.

    Raises:
        UserError: Memory of the GPU or of the machine ran out in the ``with`` block.
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
    """Write files; on a full disk, wait until there is space again and say so every minute.

    Args:
        write: Writes all or nothing of each file; it is called again after each wait.
        folder: The folder that is written to.
        say: Called with a line of text at the start of each wait.
        give_up: Whether to stop waiting; asked about twice a second.

    Returns:
        Whether it was written; False after giving up.

    Raises:
        OSError: Writing failed for another reason than a full disk.
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
