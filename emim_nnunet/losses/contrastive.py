"""InfoNCE (arXiv 1807.03748) against stored keys or against the other rows of a batch, and cosine alignment."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from emim_nnunet.distributed import all_reduce_sum, gather_rows


def info_nce(positive: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Mean over the rows of all ranks of -log(e^(p/t) / (e^(p/t) + sum_j e^(n_j/t))).

    Args:
        positive: (N,) float, cosine similarity of each query with its own key.
        negatives: (N, K) float, similarities with other keys; -inf where a key does not count.
        temperature: The temperature t > 0.

    Returns:
        () float32 >= 0.
    """
    with torch.autocast(positive.device.type, enabled=False):
        logits = torch.cat([positive[:, None], negatives], dim=1).float() / temperature
        losses = logits.logsumexp(1) - logits[:, 0]
        return _weighted_mean(losses, torch.ones_like(losses))


def info_nce_rows(queries: Tensor, keys: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """InfoNCE in which the negatives of a row are the other rows of the batch, of all ranks.

    Args:
        queries: (N, D) float, each of length 1.
        keys: (N, D) float, each of length 1; row i belongs to query i.
        weight: (N,) float >= 0; rows of weight 0 count neither as a query nor as a negative.
        temperature: The temperature, > 0.

    Returns:
        () float32 >= 0; 0 when nothing counts.
    """
    with torch.autocast(queries.device.type, enabled=False):
        all_keys, first = gather_rows(keys.float())
        usable, _ = gather_rows(weight.float())
        logits = queries.float() @ all_keys.T / temperature
        own = first + torch.arange(len(keys), device=keys.device)[:, None]
        positive = logits.gather(1, own)
        # a row that does not count keeps its own key, so that its loss, which gets weight 0, is finite
        logits = logits.masked_fill(usable == 0, -torch.inf).scatter(1, own, positive)
        losses = logits.logsumexp(1) - positive[:, 0]
        return _weighted_mean(losses, weight.float())


def cosine_alignment(rows_a: Tensor, rows_b: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of 2 - 2 cos over the rows of all ranks (BYOL, arXiv 2006.07733).

    Args:
        rows_a: (N, D) float, features of view a.
        rows_b: (N, D) float, the same rows in view b.
        weight: (N,) float >= 0; rows of weight 0 do not count.

    Returns:
        () float32 in [0, 4]; 0 when nothing counts.
    """
    with torch.autocast(rows_a.device.type, enabled=False):
        return _weighted_mean(2 - 2 * F.cosine_similarity(rows_a.float(), rows_b.float()), weight.float())


def _weighted_mean(losses: Tensor, weight: Tensor) -> Tensor:
    total, count = all_reduce_sum(torch.stack([(losses * weight).sum(), weight.sum()])).unbind()
    return total / count.clamp_min(1.0)
