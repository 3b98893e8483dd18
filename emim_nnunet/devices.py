"""Where a command computes: one rule for all of them."""

from __future__ import annotations

import logging

import torch

from emim_nnunet.errors import UserError

logger = logging.getLogger(__name__)
DEVICES = ("cuda", "cpu", "mps")


def choose_device(asked: str | None) -> str:
    """The device that was asked for; otherwise the GPU, or the CPU where there is none, which is said.

    Args:
        asked: Value of ``-device``, or None.

    Returns:
        One of :data:`DEVICES`.

    Raises:
        UserError: It is unknown, or not there.
    """
    if asked is not None:
        check_device(asked)
        return asked
    if torch.cuda.is_available():
        return "cuda"
    logger.info("There is no GPU: using the CPU, as with -device cpu")
    return "cpu"


def check_device(kind: str) -> None:
    """Whether this machine has a kind of device.

    Args:
        kind: ``cuda``, ``cpu`` or ``mps``.

    Raises:
        UserError: It has not; says what to type.
    """
    if kind not in DEVICES:
        raise UserError(f"-device {kind}: must be one of {', '.join(DEVICES)}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no GPU: use -device cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("there is no Apple GPU (mps): use -device cpu")
