"""The choice of the device of a command, by the same rule for all commands."""

from __future__ import annotations

import logging
import os

import torch

from emim_nnunet.errors import UserError

logger = logging.getLogger(__name__)
DEVICES = ("cuda", "cpu", "mps")


def choose_device(asked: str | None) -> str:
    """Choose the device that was asked for; otherwise the GPU, or the CPU with a line in the log where there is no GPU.

    Args:
        asked: Value of ``-device``; None = not given.

    Returns:
        One of :data:`DEVICES`.

    Raises:
        UserError: The device is unknown, or this machine does not have it.
    """
    if asked is not None:
        check_device(asked)
        return asked
    if torch.cuda.is_available():
        return "cuda"
    logger.info("There is no GPU: using the CPU, as with -device cpu")
    return "cpu"


def keep_to_thread_limit() -> None:
    """Take no more threads than ``OMP_NUM_THREADS`` says; nnU-Net's training on a CPU takes as many as there are cores."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if limit.isdigit() and int(limit) >= 1:
        torch.set_num_threads(min(int(limit), torch.get_num_threads()))


def check_device(kind: str) -> None:
    """Check that this machine has a kind of device.

    Args:
        kind: ``cuda``, ``cpu`` or ``mps``.

    Raises:
        UserError: The machine does not have it; the message says which option to use.
    """
    if kind not in DEVICES:
        raise UserError(f"-device {kind}: must be one of {', '.join(DEVICES)}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no GPU: use -device cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("there is no Apple GPU (mps): use -device cpu")
