"""The momentum branch of MoCo (arXiv 1911.05722): a slowly following copy of a network, and a queue of its outputs."""

from __future__ import annotations

from copy import deepcopy
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NOBODY = -1
Network = TypeVar("Network", bound=nn.Module)


def momentum_copy(online: Network) -> Network:
    """Copy a network without gradients; :func:`momentum_update_` changes the copy.

    Args:
        online: Any module; it is not changed.
    """
    copy = deepcopy(online)
    for parameter in copy.parameters():
        parameter.requires_grad_(False)
    return copy


@torch.no_grad()
def momentum_update_(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """target = momentum * target + (1 - momentum) * online, for every parameter; in place.

    Args:
        target: The copy, made by :func:`momentum_copy`.
        online: The network that the copy follows.
        momentum: Share of the old value that is kept, in [0, 1].
    """
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), 1.0 - momentum)


class KeyQueue(nn.Module):
    """The newest keys with the subject that each comes from, first in, first out; part of the state dict.

    Args:
        size: Number of keys K. The queue starts with random directions that belong to no subject, as in MoCo.
        width: Number of columns of a key.
    """

    keys: Tensor
    subjects: Tensor
    position: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, width), dim=1))
        self.register_buffer("subjects", torch.full((size,), NOBODY))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    def similarities(self, queries: Tensor, subjects: Tensor) -> Tensor:
        """Cosine similarity of queries with all keys; keys of the same subject do not count.

        Args:
            queries: (N, width) float, each of length 1.
            subjects: (N,) int64 >= 0, the subject of each query.

        Returns:
            (N, K) float32, -inf for keys of the query's own subject.
        """
        with torch.autocast(queries.device.type, enabled=False):
            similarities = queries.float() @ self.keys.T
        return similarities.masked_fill(subjects[:, None] == self.subjects, -torch.inf)

    @torch.no_grad()
    def push(self, keys: Tensor, subjects: Tensor) -> None:
        """Replace the oldest keys.

        Args:
            keys: (N, width) float, each of length 1; of more than K keys the last K are kept.
            subjects: (N,) int64 >= 0, the subject of each key.
        """
        size = len(self.keys)
        keys, subjects = keys[-size:].to(self.keys.dtype), subjects[-size:]
        places = (self.position + torch.arange(len(keys), device=keys.device)) % size
        self.keys.index_copy_(0, places, keys)
        self.subjects.index_copy_(0, places, subjects)
        self.position.copy_((self.position + len(keys)) % size)
