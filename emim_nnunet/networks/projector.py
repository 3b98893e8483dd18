"""Projectors on rows of features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from emim_nnunet.distributed import standardise


class RowNorm(nn.Module):
    """Batch normalisation of weighted rows with the statistics of the present rows of all ranks.

    Unlike ``nn.BatchNorm1d`` it keeps no running statistics (a projector is thrown away), ignores rows of weight 0 and
    synchronises over any backend, gloo included.

    Args:
        width: Number of columns D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, rows: Tensor, weight: Tensor) -> Tensor:
        """Normalised rows (N, D) float32, from rows (N, D) and weights (N,) >= 0."""
        with torch.autocast(rows.device.type, enabled=False):
            return standardise(rows.float(), weight.float()) * self.weight + self.bias


class Projector(nn.Module):
    """(Linear, norm, ReLU) x 2, Linear, as in Barlow twins (arXiv 2103.03230).

    Args:
        in_features: Number of columns of the input.
        width: Number of columns of the hidden layers and of the output.
    """

    def __init__(self, in_features: int, width: int) -> None:
        super().__init__()
        self.linear = nn.ModuleList(nn.Linear(size, width, bias=False) for size in (in_features, width))
        self.norm = nn.ModuleList(RowNorm(width) for _ in range(2))
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, rows: Tensor, weight: Tensor) -> Tensor:
        """Projections (N, width), from rows (N, in_features) and weights (N,) >= 0."""
        for linear, norm in zip(self.linear, self.norm, strict=True):
            rows = torch.relu(norm(linear(rows), weight))
        return self.out(rows)


class MLP(nn.Sequential):
    """Linear, ReLU, Linear: the head of MoCo v2 (arXiv 2003.04297).

    Args:
        in_features: Number of columns of the input.
        hidden: Number of columns of the hidden layer.
        out_features: Number of columns of the output.
    """

    def __init__(self, in_features: int, hidden: int, out_features: int) -> None:
        super().__init__(nn.Linear(in_features, hidden), nn.ReLU(), nn.Linear(hidden, out_features))
