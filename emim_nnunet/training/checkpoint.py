"""The checkpoints of an SSL stage: which there are, what is in one, and going on from it."""

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
    """Refuse to begin an SSL stage where there is one.

    Args:
        folder: Output folder of the stage.
        asked_to_continue: Whether ``--c`` was given (and no checkpoint was found).

    Returns:
        What to tell the user, if anything.

    Raises:
        UserError: There are checkpoints, or results whose checkpoints are gone.
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
    """A checkpoint of an SSL stage; where it is damaged, the one before it.

    The damaged one gets another name: later ones must not push the good one out.

    Args:
        path: File; :data:`PREVIOUS` lies beside it.

    Returns:
        The checkpoint, and what to tell the user, if anything.

    Raises:
        UserError: Neither can be read.
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
    """Load weights, moments of the optimiser and scale of the gradients.

    Args:
        checkpoint: Of an SSL stage.
        method: Gets the weights.
        optimizer: Of its parameters.
        scaler: torch's gradient scaler; None = there is none.
        source: Name of the checkpoint, for the message.

    Raises:
        UserError: They are of another network.
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
    """A checkpoint that holds all that a stage goes on from."""
    checkpoint = load_checkpoint(path)
    check_content(checkpoint, CONTINUED, str(path))
    try:
        check_plans(checkpoint["plans"], checkpoint["configuration"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return checkpoint
