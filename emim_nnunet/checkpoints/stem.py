"""Adapting a pretrained stem to other channels: which of its filters goes to which modality."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from emim_nnunet.datasets.channel_names import standard_name


def adapt_stem(weight: Tensor, num_channels: int) -> Tensor:
    """Adapt the stem to another number of input channels, where no channel name is known.

    Every new filter is the mean of the old ones, scaled so that an input whose channels are all equal gives the same
    response: repeated (and scaled down) from few to many channels, averaged (and scaled up) from many to few.

    Args:
        weight: (O, C, *kernel), the weight of the first convolution.
        num_channels: The wanted number of input channels.

    Returns:
        (O, num_channels, *kernel); ``weight`` itself where the number is right already.
    """
    old = weight.shape[1]
    if old == num_channels:
        return weight
    mean = weight.mean(1, keepdim=True) * (old / num_channels)
    return mean.expand(-1, num_channels, *[-1] * (weight.ndim - 2)).clone()


def stem_by_name(weight: Tensor, old: Sequence[str], new: Sequence[str]) -> Tensor:
    """Adapt the stem by channel names: a known channel keeps its filter, an unknown one gets the mean of all filters.

    Args:
        weight: (O, len(old), *kernel), the weight of the first convolution.
        old: Names of the channels that it was trained with.
        new: Names of the wanted channels.

    Returns:
        (O, len(new), *kernel).
    """
    places = {standard_name(name): place for place, name in enumerate(old)}
    mean = weight.mean(1)
    filters = [weight[:, places[n]] if (n := standard_name(name)) in places else mean for name in new]
    return torch.stack(filters, dim=1)


def explain(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """Lines of text that say which filter each new channel gets.

    Args:
        old: Names of the pretrained channels.
        new: Names of the wanted channels.

    Returns:
        A line for each new channel; empty where both lists name the same channels in the same order.
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
