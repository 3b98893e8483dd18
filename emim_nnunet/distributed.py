"""Several processes for one step: the process group, and reductions over ranks that keep gradients.

A loss over a *sharded* batch must equal the loss of one process over the whole batch. DDP averages gradients over ranks, so a
loss is built from global sums, and the sums are reduced with an operation whose backward pass reduces as well. Without a
process group the reductions do nothing and cost nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import Tensor


@contextmanager
def process_group(kind: str) -> Iterator[torch.device]:
    """Join the process group for which torchrun has started this process; does nothing where it was started alone.

    Args:
        kind: The kind of device: ``cuda``, ``cpu`` or ``mps``.

    Yields:
        The device of this process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield torch.device(kind)
        return
    device = torch.device(kind, int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def is_distributed() -> bool:
    """Whether this process belongs to a group of more than one rank."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """The rank of this process, 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """The number of ranks, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum a tensor over ranks, differentiably: the gradient that reaches each rank is summed over ranks too.

    With DDP, which *averages* parameter gradients, a loss built from these sums and evaluated identically on every rank
    has the parameter gradient of one process over the whole batch.

    Args:
        values: Any float tensor of equal shape on every rank.

    Returns:
        A tensor of the same shape; ``values`` itself without a process group.
    """
    return dist_nn.all_reduce(values) if is_distributed() else values


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """Gather the rows of all ranks in rank order, differentiably like :func:`all_reduce_sum`.

    Args:
        rows: (N, ...) int or float; N may differ between ranks.

    Returns:
        The rows of all ranks (sum of N, ...), and the index of this rank's first row in them; ``rows`` and 0 without a process
        group.
    """
    if not is_distributed():
        return rows, 0
    counts = torch.zeros(dist.get_world_size(), device=rows.device)
    counts[rank()] = len(rows)
    dist.all_reduce(counts)
    ends = counts.long().cumsum(0).tolist()
    first = ends[rank()] - len(rows)
    before, after = rows.new_zeros((first, *rows.shape[1:])), rows.new_zeros((ends[-1] - ends[rank()], *rows.shape[1:]))
    return all_reduce_sum(torch.cat([before, rows, after])), first


def gather_objects(item: object) -> list:
    """Gather picklable objects of all ranks in rank order; ``[item]`` without a process group."""
    if not is_distributed():
        return [item]
    gathered: list = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, item)
    return gathered


def weighted_moments(rows: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute mean and biased variance of weighted rows over all ranks.

    Args:
        rows: (N, D) float; N may differ between ranks.
        weight: (N,) float >= 0; rows of weight 0 do not count.

    Returns:
        The mean (D,), the variance (D,) >= 0, and the total weight (), which is set to at least 1.
    """
    count = all_reduce_sum(weight.sum()).clamp_min(1.0)
    mean = all_reduce_sum((rows * weight[:, None]).sum(0)) / count
    variance = all_reduce_sum(((rows - mean).square() * weight[:, None]).sum(0)) / count
    return mean, variance, count


def standardise(rows: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Standardise weighted rows to mean 0 and variance 1 per column, with the statistics of all ranks.

    Args:
        rows: (N, D) float.
        weight: (N,) float >= 0; rows of weight 0 do not count in the statistics.
        eps: A small number > 0 that is added to the variance.

    Returns:
        (N, D) float; rows of weight 0 are transformed like the others.
    """
    mean, variance, _ = weighted_moments(rows, weight)
    return (rows - mean) * torch.rsqrt(variance + eps)
