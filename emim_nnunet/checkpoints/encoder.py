"""Moving a pretrained encoder into another network: what must match and what is adapted."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import Tensor, nn

from emim_nnunet.checkpoints.stem import adapt_stem, explain, stem_by_name
from emim_nnunet.datasets.channel_names import any_known, standard_name
from emim_nnunet.errors import UserError, listed
from emim_nnunet.networks.primus import PARTS

WRAPPERS = ("_orig_mod.", "module.")
ENCODER, PRIMUS_ENCODER = "encoder.", tuple(f"{part}." for part in PARTS)  # beginnings of keys
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
    # of a Primus
    "embed_dim",
    "patch_embed_size",
    "eva_depth",
    "eva_numheads",
    "use_rot_pos_emb",
    "use_abs_pos_embed",
)
POSITIONS = "eva.pos_embed"  # (1, tokens, D), of a Primus
MAX_LISTED = 10


def encoder_state(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """Weights of the encoder in a checkpoint, without any prefix.

    Args:
        checkpoint: Content of a checkpoint with ``network_weights``: of an SSL stage or a U-Net, whose encoder keys start with
            ``encoder.``, or of a Primus, whose encoder is in two parts (after the prefixes of torch.compile and DDP).

    Returns:
        The state dict of the encoder module.

    Raises:
        UserError: The checkpoint holds no encoder.
    """
    weights = checkpoint["network_weights"]
    if not isinstance(weights, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in weights.items()
    ):
        raise UserError("the 'network_weights' of the checkpoint are no tensors by name")
    weights = {_without_wrappers(key): value for key, value in weights.items()}
    state = {key.removeprefix(ENCODER): value for key, value in weights.items() if key.startswith(ENCODER)}
    # of a Primus, nnssl's trainers keep the two parts inside an encoder or not, as nnU-Net does
    state = {key: value for key, value in (state or weights).items() if key.startswith(PRIMUS_ENCODER)} or state
    if not state:
        raise UserError(f"the checkpoint holds no encoder (no key of network_weights starts with '{ENCODER}')")
    return state


def without_decoder(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of the weights of a network of nnU-Net those of its encoder, under the names that they have there."""
    return {key: value for key, value in weights.items() if key.startswith((ENCODER, *PRIMUS_ENCODER))}


def _without_wrappers(key: str) -> str:
    while key.startswith(WRAPPERS):
        key = key.removeprefix(WRAPPERS[0]).removeprefix(WRAPPERS[1])
    return key


def require_finite(state: dict[str, Tensor], source: str) -> None:
    """Refuse weights that are NaN or infinite, with which nothing can be computed any more.

    Args:
        state: Tensors by name.
        source: Where the tensors come from, for the message.

    Raises:
        UserError: Some values are NaN or infinite; the message names the first tensor that holds one.
    """
    broken = [key for key, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if broken:
        raise UserError(
            f"{source} holds NaN or infinite weights in {len(broken)} of {len(state)} tensors ({broken[0]}): its training "
            f"diverged; take an earlier checkpoint, or train anew with a lower initial_lr"
        )


def stem_keys(encoder: nn.Module) -> list[str]:
    """All state-dict keys of the weight of the first convolution (nnU-Net's modules list it more than once)."""
    first = next(m for m in encoder.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d))
    return [key for key, value in encoder.state_dict(keep_vars=True).items() if value is first.weight]


def load_encoder(
    encoder: nn.Module,
    state: dict[str, Tensor],
    *,
    source: str,
    names: tuple[Sequence[str] | None, Sequence[str] | None] = (None, None),
    finite: bool = True,
) -> list[str]:
    """Load weights strictly; the stem is adapted to the channels by name, or by number where no name is known.

    Args:
        encoder: nnU-Net's encoder.
        state: The weights, as :func:`encoder_state` returns them.
        source: Name of the checkpoint, for the message.
        names: Names of the channels that the weights belong to, and of those that the encoder gets; None = unknown.
        finite: Whether to refuse NaN and infinite weights.

    Returns:
        A line of text for each adaptation.

    Raises:
        UserError: Keys or shapes differ, or weights are not finite; the message lists them. The encoder is unchanged then.
    """
    target = encoder.state_dict()
    stems = [key for key in stem_keys(encoder) if key in state]
    adapted: list[str] = []
    if stems:
        stem, adapted = _adapted_stem(state[stems[0]], target[stems[0]].shape[1], names)
        state = state | dict.fromkeys(stems, stem)
    differences = [f"missing {k}" for k in target if k not in state]
    differences += [f"unexpected {k}" for k in state if k not in target]
    differences += [
        f"{k} is {list(state[k].shape)}, needed {list(target[k].shape)}"
        for k in target
        if k in state and state[k].shape != target[k].shape
    ]
    if differences:
        found = listed(differences, MAX_LISTED, separator="; ")
        raise UserError(f"the encoder in {source} does not fit the planned one: {found}")
    if finite:
        require_finite(state, f"the encoder in {source}")
    encoder.load_state_dict(state)
    return adapted


def fit_positions(
    state: dict[str, Tensor], old: Sequence[int] | None, new: Sequence[int] | None
) -> tuple[dict[str, Tensor], list[str]]:
    """The state of a Primus for patches of another size: its learned positions, trilinear between those that it has.

    Args:
        state: As of :func:`encoder_state`.
        old: Tokens per axis that it was trained with; None = no Primus.
        new: Tokens per axis of the network that it is for; None = no Primus.

    Returns:
        The state, and a line of text where it changed.

    Raises:
        UserError: The state has positions for another number of tokens.
    """
    if old is None or new is None or list(old) == list(new) or POSITIONS not in state:
        return state, []
    if state[POSITIONS].shape[1] != prod(old):
        raise UserError(
            f"the checkpoint has positions for {state[POSITIONS].shape[1]} tokens, but says that its grid is {old}"
        )
    positions = state[POSITIONS].transpose(1, 2).unflatten(2, list(old))
    positions = nn.functional.interpolate(positions.float(), list(new), mode="trilinear").to(positions.dtype)
    line = f"positions interpolated from {list(old)} to {list(new)} tokens"
    return state | {POSITIONS: positions.flatten(2).transpose(1, 2)}, [line]


def _adapted_stem(
    weight: Tensor, num_channels: int, names: tuple[Sequence[str] | None, Sequence[str] | None]
) -> tuple[Tensor, list[str]]:
    """The weight of the stem for the wanted channels, and a line of text for each change."""
    old, new = names
    num_old = weight.shape[1]
    if old and new and len(old) == num_old and len(new) == num_channels and any_known(old, new):
        lines = explain(old, new)
        return (stem_by_name(weight, old, new) if lines else weight), lines
    if num_old != num_channels:
        line = f"stem adapted from {num_old} to {num_channels} input channels (mean filter, scaled by {num_old}/{num_channels})"
        return adapt_stem(weight, num_channels), [line]
    if old and new and [standard_name(n) for n in old] != [standard_name(n) for n in new]:
        return weight, [f"no channel name is known ({', '.join(old)} -> {', '.join(new)}): filters go by position"]
    return weight, []


def compare_topology(source: dict[str, Any], target: dict[str, Any]) -> list[str]:
    """Differences between two encoders that their plans describe; strides do not show in the shapes of weights.

    Args:
        source: The ``architecture`` of a configuration.
        target: The ``architecture`` of another one.

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
    """A value in a form in which JSON lists equal Python tuples, and 3 equals [3, 3, 3]."""
    if isinstance(value, list | tuple):
        items = [_normal(v, architecture) for v in value]
        return items[0] if items and all(i == items[0] and not isinstance(i, list) for i in items) else items
    return value
