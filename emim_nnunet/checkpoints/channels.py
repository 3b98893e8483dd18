"""Input channels by name: which filter of a pretrained stem goes to which modality."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# names of the same contrast; everything else is compared as it is, without case and punctuation
ALIASES = {
    "t1": ("t1w", "t1n", "t1pre", "t1native"),
    "t1ce": ("t1c", "t1gd", "t1post", "t1cw", "t1wce", "t1wgd"),
    "t2": ("t2w",),
    "flair": ("t2f", "t2flair", "flairw"),
}
STANDARD = {alias: name for name, aliases in ALIASES.items() for alias in aliases}


def channel_names(dataset_json: dict[str, Any]) -> list[str]:
    """Names of the channels in nnU-Net's order (``modality`` is the name of the key in old data sets)."""
    names: Any = dataset_json.get("channel_names", dataset_json.get("modality"))
    return [names[key] for key in sorted(names, key=int)]


def standard_name(name: str) -> str:
    """The name by which a modality is recognised: ``T1w``, ``T1`` and ``t1n`` are the same one."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return STANDARD.get(plain, plain)


def adapt_stem(weight: Tensor, num_channels: int) -> Tensor:
    """Filters for another number of input channels of which no name is known.

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


def stem_by_name(weight: Tensor, old: Sequence[str], new: Sequence[str]) -> Tensor:
    """Filters for channels with names: of a known name its own filter, of an unknown one the mean of all.

    Args:
        weight: (O, len(old), *kernel).
        old: Names of its channels.
        new: Names wanted.

    Returns:
        (O, len(new), *kernel).
    """
    places = {standard_name(name): place for place, name in enumerate(old)}
    mean = weight.mean(1)
    filters = [weight[:, places[n]] if (n := standard_name(name)) in places else mean for name in new]
    return torch.stack(filters, dim=1)


def explain(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """A line for each new channel: whose filter it gets.

    Args:
        old: Names of the pretrained channels.
        new: Names wanted.

    Returns:
        Empty where both are the same in the same order.
    """
    names = [[standard_name(name) for name in side] for side in (old, new)]
    if names[0] == names[1]:
        return []
    places = {name: place for place, name in enumerate(names[0])}
    return [
        f"channel {number} '{name}': filter of '{old[places[key]]}'"
        if key in places
        else f"channel {number} '{name}': mean filter"
        for number, (name, key) in enumerate(zip(new, names[1], strict=True))
    ]


def any_known(old: Sequence[str], new: Sequence[str]) -> bool:
    """Whether some name is the same on both sides."""
    return bool({standard_name(name) for name in old} & {standard_name(name) for name in new})
