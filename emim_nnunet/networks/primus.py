"""nnU-Net's Primus (arXiv 2503.01835) as an encoder of stages, into which visible tokens alone may enter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

NUM_STAGES = 4  # the embedding, and the blocks in three parts
PARTS = ("down_projection", "eva")  # of a Primus that are its encoder


def primus_geometry(arguments: dict[str, Any]) -> tuple[list[list[int]], list[int]]:
    """Strides and channels of the stages of :class:`PrimusEncoder`, from the arguments of its Primus in plans."""
    token = [int(size) for size in arguments["patch_embed_size"]]
    return [token] + [[1] * len(token)] * (NUM_STAGES - 1), [arguments["embed_dim"]] * NUM_STAGES


class PrimusEncoder(nn.Module):
    """The patch embedding and the blocks of a Primus, under their names in it: its decoder is left behind.

    The stages are the embedding and the outputs of equal parts of the blocks. All have the grid of the tokens: they differ in
    depth alone, and are no pyramid.

    Args:
        primus: A ``Primus`` of dynamic_network_architectures, without register tokens; its parts are shared, not copied.

    Attributes:
        output_channels: Of each stage, as :class:`~emim_nnunet.networks.PlannedEncoder`.
        strides: Of each stage: the token for the first, 1 for the others.
        conv_op: ``nn.Conv3d``; Primus is 3D only.
        share_of_dry_run: Share of the tokens that enters in a dry run, whose masks have no values, where a mask hides some; all
            by default: no mask takes more memory than one that hides nothing.
    """

    conv_op = nn.Conv3d
    share_of_dry_run = 1.0

    def __init__(self, primus: nn.Module) -> None:
        super().__init__()
        source: Any = primus
        assert source.register_tokens is None
        self.down_projection = source.down_projection
        self.eva = source.eva
        depth = len(self.eva.blocks)
        assert depth >= NUM_STAGES - 1
        self.ends = [round(depth * part / (NUM_STAGES - 1)) for part in range(1, NUM_STAGES)]
        arguments = {"patch_embed_size": self.down_projection.proj.stride, "embed_dim": source.embed_dim}
        self.strides, self.output_channels = primus_geometry(arguments)

    def forward(self, image: Tensor, *, visible: Tensor | None = None, count: int = NUM_STAGES) -> list[Tensor]:
        """The output of the first stages.

        Args:
            image: (B, C, *P) float, P divisible by the token.
            visible: (B, 1, *G) bool, True = the token enters the blocks; None = all do. The others cost nothing there, tell the
                visible ones nothing, and are 0 in every stage.
            count: Number of stages; what is behind them is not computed.

        Returns:
            (B, D, *G) float per stage; the last is normalised as in Primus.
        """
        embedded = self.down_projection(image)
        grid = embedded.shape[2:]
        x = embedded.flatten(2).transpose(1, 2)
        keep = None if visible is None else _Visible(visible.flatten(1), self.share_of_dry_run)
        outputs = [x if keep is None else keep.dense(keep.of(x))]
        if self.eva.pos_embed is not None:
            x = x + self.eva.pos_embed
        x = self.eva.pos_drop(x if keep is None else keep.of(x))
        rope = None if self.eva.rope is None else self.eva.rope.get_embed()
        if rope is not None and keep is not None:
            rope = keep.of(rope.expand(len(x), *rope.shape))[:, None]  # one axis for the heads
        first = 0
        for end in self.ends[: count - 1]:
            for block in self.eva.blocks[first:end]:
                x = block(x, rope=rope, attn_mask=None if keep is None else keep.attended)
            first = end
            x = self.eva.norm(x) if end == self.ends[-1] else x
            outputs.append(x if keep is None else keep.dense(x))
        return [output.transpose(1, 2).unflatten(2, grid) for output in outputs]


class _Visible:
    """The visible tokens of each sample, in the order of the sequence; as many as the sample with the most has.

    Args:
        visible: (B, N) bool.
        share_of_dry_run: See :class:`PrimusEncoder`.

    Attributes:
        attended: (B, 1, 1, K) bool, True = a visible token, False = one that only fills up; None where there are none of these.
    """

    def __init__(self, visible: Tensor, share_of_dry_run: float) -> None:
        self.length = visible.shape[1]
        longest = (
            max(round(self.length * share_of_dry_run), 1) if is_fake(visible) else max(int(visible.sum(1).max()), 1)
        )
        self.indices = torch.argsort((~visible).to(torch.uint8), dim=1, stable=True)[:, :longest]
        self.real = torch.gather(visible, 1, self.indices)
        # a sample without any visible token attends to what fills it up: a softmax over nothing is not a number
        attended = self.real | ~visible.any(1, keepdim=True)
        self.attended = None if not is_fake(visible) and bool(attended.all()) else attended[:, None, None]

    def of(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, K, D)."""
        return torch.gather(x, 1, self.indices[..., None].expand(-1, -1, x.shape[2]))

    def dense(self, x: Tensor) -> Tensor:
        """(B, K, D) -> (B, N, D), 0 where no token is visible."""
        empty = x.new_zeros(len(x), self.length, x.shape[2])
        return empty.scatter(1, self.indices[..., None].expand_as(x), x * self.real[..., None].to(x.dtype))
