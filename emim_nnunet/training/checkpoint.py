"""The checkpoints of an SSL stage: finding them, checking what they hold, and continuing from one."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from emim_nnunet.checkpoints.io import load_checkpoint
from emim_nnunet.checkpoints.schema import CONTINUED, check_content
from emim_nnunet.errors import UserError
from emim_nnunet.settings.plans import check_plans

FINAL, LATEST, PREVIOUS = "checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_previous.pth"
LOG = "ssl_log.csv"


def unfinished_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that an unfinished SSL stage left, if any."""
    return next((folder / name for name in (LATEST, PREVIOUS) if (folder / name).is_file()), None)


def check_beginning(folder: Path, *, asked_to_continue: bool) -> str | None:
    """Refuse to begin an SSL stage in a folder that holds one already.

    Args:
        folder: The output folder of the stage.
        asked_to_continue: Whether ``--c`` was given (and no checkpoint was found).

    Returns:
        A line for the log, or None where there is nothing to say.

    Raises:
        UserError: The folder holds checkpoints, or results whose checkpoints are gone.
    """
    existing = [name for name in (FINAL, LATEST, PREVIOUS, LOG) if (folder / name).is_file()]
    if not existing:
        return (
            "--c: there is no checkpoint to continue from, so the SSL stage starts anew" if asked_to_continue else None
        )
    if existing == [LOG]:
        raise UserError(
            f"{folder} holds the results of an SSL stage ({LOG}) but no checkpoint to continue from: move it away to start anew"
        )
    raise UserError(f"{folder} already holds an SSL stage ({existing[0]}): continue it with --c, or move it away")


def load_newest(path: Path) -> tuple[dict[str, Any], str | None]:
    """Load a checkpoint of an SSL stage; where it is damaged, load the one before it.

    The damaged file is renamed, so that the next checkpoint that is written does not replace the good one.

    Args:
        path: The checkpoint file; the one before it is :data:`PREVIOUS` in the same folder.

    Returns:
        The checkpoint on the CPU, and a line for the log (None where there is nothing to say).

    Raises:
        UserError: Neither of the two can be read.
    """
    previous = path.with_name(PREVIOUS)
    try:
        return _continued(path), None
    except UserError as error:
        if path == previous or not previous.is_file():
            raise
        checkpoint = _continued(previous)
        with suppress(OSError):  # another process of the stage was faster
            path.rename(path.with_name(f"{path.name}.damaged"))
        return checkpoint, f"WARNING: {error}. Taking the checkpoint before it, {PREVIOUS}"


def load_states(
    checkpoint: dict[str, Any], method: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any, source: str
) -> None:
    """Load the weights, the moments of the optimiser and the state of the gradient scaler.

    Args:
        checkpoint: The content of a checkpoint of an SSL stage.
        method: The method that gets the weights.
        optimizer: The optimiser of the method's parameters.
        scaler: torch's gradient scaler; None where no scaling is needed.
        source: The name of the checkpoint file, for the message.

    Raises:
        UserError: The states belong to another network.
    """
    try:
        method.load_state_dict(checkpoint["network_weights"])
        optimizer.load_state_dict(checkpoint["optimizer_state"])
        for parameter, moments in optimizer.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                if moments[name].shape != parameter.shape:
                    shapes = f"{list(moments[name].shape)} instead of {list(parameter.shape)}"
                    raise ValueError(f"{name} of a parameter is {shapes}")
        if scaler and checkpoint["grad_scaler_state"]:
            scaler.load_state_dict(checkpoint["grad_scaler_state"])
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{source} does not fit the network of this stage ({type(error).__name__}: {reason}): was it written by another "
            f"version of emim_nnunet? Continue with that one, or move the stage away to start anew"
        ) from error


def _continued(path: Path) -> dict[str, Any]:
    """Load a checkpoint and check that it holds everything that is needed to continue a stage."""
    checkpoint = load_checkpoint(path)
    check_content(checkpoint, CONTINUED, str(path))
    try:
        check_plans(checkpoint["plans"], checkpoint["configuration"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return checkpoint
