"""Network and optimiser of an SSL stage, as a checkpoint holds them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from emim_nnunet.errors import UserError


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
