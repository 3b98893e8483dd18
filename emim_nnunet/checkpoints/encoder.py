"""Moving a pretrained encoder into another network: what must match, what is adapted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from emim_nnunet.errors import UserError

WRAPPERS = ("_orig_mod.", "module.")
ENCODER_SETTINGS = (
    "n_stages",
    "features_per_stage",
    "conv_op",
    "kernel_sizes",
    "strides",
    "n_blocks_per_stage",
    "n_conv_per_stage",
    "conv_bias",
    "norm_op",
    "nonlin",
)
MAX_LISTED = 10


def encoder_state(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """Weights of the encoder in a checkpoint, without any prefix.

    Args:
        checkpoint: With ``network_weights``, whose encoder keys start with ``encoder.`` (after the prefixes of
            torch.compile and DDP).

    Returns:
        State dict of the encoder module.

    Raises:
        UserError: There is no encoder in it.
    """
    state = {}
    for key, value in checkpoint["network_weights"].items():
        while key.startswith(WRAPPERS):
            key = key.removeprefix(WRAPPERS[0]).removeprefix(WRAPPERS[1])
        if key.startswith("encoder."):
            state[key.removeprefix("encoder.")] = value
    if not state:
        raise UserError("the checkpoint holds no encoder (no key of network_weights starts with 'encoder.')")
    return state


def stem_keys(encoder: nn.Module) -> list[str]:
    """All state-dict keys of the weight of the first convolution (nnU-Net's modules list it more than once)."""
    first = next(m for m in encoder.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d))
    return [key for key, value in encoder.state_dict(keep_vars=True).items() if value is first.weight]


def adapt_stem(weight: Tensor, num_channels: int) -> Tensor:
    """Filters for another number of input channels.

    Every new filter is the mean of the old ones, scaled so that an input whose channels are all equal gives the same
    response: repeated (and scaled down) from few to many channels, averaged (and scaled up) from many to few.

    Args:
        weight: (O, C, *kernel).
        num_channels: Wanted.

    Returns:
        (O, num_channels, *kernel); ``weight`` itself where the number is right already.
    """
    old = weight.shape[1]
    if old == num_channels:
        return weight
    mean = weight.mean(1, keepdim=True) * (old / num_channels)
    return mean.expand(-1, num_channels, *[-1] * (weight.ndim - 2)).clone()


def load_encoder(encoder: nn.Module, state: dict[str, Tensor], *, source: str) -> list[str]:
    """Load weights strictly, the stem adapted to the number of channels.

    Args:
        encoder: nnU-Net's encoder.
        state: Of :func:`encoder_state`.
        source: Name of the checkpoint, for messages.

    Returns:
        A line of text for each adaptation.

    Raises:
        UserError: Keys or shapes differ; lists them. The encoder is unchanged then.
    """
    target = encoder.state_dict()
    stems = [key for key in stem_keys(encoder) if key in state]
    adapted = []
    if stems and state[stems[0]].shape[1] != target[stems[0]].shape[1]:
        old, new = state[stems[0]].shape[1], target[stems[0]].shape[1]
        state = state | {key: adapt_stem(state[key], new) for key in stems}
        adapted.append(f"stem adapted from {old} to {new} input channels (mean filter, scaled by {old}/{new})")
    differences = [f"missing {k}" for k in target if k not in state]
    differences += [f"unexpected {k}" for k in state if k not in target]
    differences += [
        f"{k} is {list(state[k].shape)}, needed {list(target[k].shape)}"
        for k in target
        if k in state and state[k].shape != target[k].shape
    ]
    if differences:
        raise UserError(f"the encoder in {source} does not fit the planned one: {_listed(differences)}")
    encoder.load_state_dict(state)
    return adapted


def compare_topology(source: dict[str, Any], target: dict[str, Any]) -> list[str]:
    """Differences between two encoders that their plans describe; strides do not show in the shapes of weights.

    Args:
        source: ``architecture`` of a configuration.
        target: Another one.

    Returns:
        A line per difference; empty when an encoder can be moved from one to the other.
    """
    differences = []
    names = [a["network_class_name"].rsplit(".", 1)[-1] for a in (source, target)]
    if names[0] != names[1]:
        differences.append(f"network {names[0]} -> {names[1]}")
    for key in ENCODER_SETTINGS:
        old, new = (_normal(a["arch_kwargs"].get(key), a) for a in (source, target))
        if old != new:
            differences.append(f"{key} {old} -> {new}")
    return differences


def _normal(value: Any, architecture: dict[str, Any]) -> Any:
    """JSON lists and Python tuples, 3 and [3, 3, 3] alike."""
    if isinstance(value, list | tuple):
        items = [_normal(v, architecture) for v in value]
        return items[0] if items and all(i == items[0] and not isinstance(i, list) for i in items) else items
    return value


def _listed(lines: Sequence[str]) -> str:
    more = f" and {len(lines) - MAX_LISTED} more" if len(lines) > MAX_LISTED else ""
    return "; ".join(lines[:MAX_LISTED]) + more
