"""Peak memory of a training step, counted without taking it.

nnU-Net plans by the number of values that convolutions put out, to which memory is only roughly proportional: weights,
optimiser and losses are left out, and different networks keep different tensors. Here the step itself is run on torch's fake
tensors, in the mixed precision of a GPU, and the storages alive at once are summed: weights, gradients, optimiser, activations,
losses. cuDNN's work space is a share of them (:data:`WORK_SPACE`). Not counted: the CUDA context, gaps between the allocator's
blocks; nor what torch.compile saves.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from emim_nnunet.checkpoints.network import planned_network
from emim_nnunet.methods.base import SSLMethod
from emim_nnunet.networks import PrimusEncoder, is_primus
from emim_nnunet.nnunet.plans import LabelManager
from emim_nnunet.nnunet.training import (
    DC_and_BCE_loss,
    DC_and_CE_loss,
    DeepSupervisionWrapper,
    MemoryEfficientSoftDiceLoss,
)
from emim_nnunet.planners.dry_run import fake_stage

# axes -> factor for what is not a storage of the step: on an H100, steps of 2D networks took 1.01 to 1.04 of their storages, of
# 3D ones 0.89 to 0.97 (benchmarks/results/memory_gpu.md)
WORK_SPACE = {2: 1.05, 3: 1.0}
GRANULE = 512  # bytes: torch's allocator on GPUs hands out multiples of it


class LiveStorages(TorchDispatchMode):
    """While it is active, counts the bytes of the storages that operations make and that are still alive.

    Attributes:
        bytes: Bytes that are alive now.
        peak: Most bytes that were alive at once since the counter was made or set back.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count what it returns."""
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        """Add a storage that is new, until it is freed."""
        key = storage._cdata
        if key in self._alive:  # a view, or changed in place
            return
        size = -(-storage.nbytes() // GRANULE) * GRANULE
        self._alive.add(key)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        """Take off a storage that is freed."""
        self._alive.discard(key)
        self.bytes -= size


def _step_gigabytes(
    live: LiveStorages, network: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor], axes: int
) -> float:
    """Peak of the second training step, when the optimiser has its state.

    Args:
        live: The counter, which is active.
        network: The network, made while the counter was active.
        optimizer: The optimiser of its parameters.
        loss: Makes a batch, runs the network, and returns the loss, a scalar.
        axes: Axes of a patch, 2 or 3.

    Returns:
        Peak in units of 1e9 bytes.
    """
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    live.peak = live.bytes
    with torch.autocast("cpu", dtype=torch.bfloat16):  # of CUDA's two types of half size, the one that CPUs know
        value = loss()
    value.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    return live.peak * WORK_SPACE[axes] / 1e9


def segmentation_gigabytes(plan: dict[str, Any], channels: int, labels: LabelManager) -> float:
    """Peak of a step of nnU-Net's segmentation training, with its optimiser, its loss and deep supervision.

    Args:
        plan: A configuration of the plans; ``architecture``, ``patch_size`` and ``batch_size`` of it are used.
        channels: Number of channels of an image.
        labels: nnU-Net's label manager of the data set.

    Returns:
        Peak in units of 1e9 bytes, of what the head of this file names.
    """
    heads, batch_size = labels.num_segmentation_heads, int(plan["batch_size"])
    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": labels.has_regions, "ddp": False}
    if labels.has_regions:
        criterion = DC_and_BCE_loss({}, dice, use_ignore_label=False, dice_class=MemoryEfficientSoftDiceLoss)
    else:
        criterion = DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss)
    with FakeTensorMode(), LiveStorages() as live:
        network = planned_network(plan["architecture"], channels, heads, deep_supervision=True)
        optimizer: torch.optim.Optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.99, nesterov=True)
        if is_primus(plan["architecture"]):
            optimizer = torch.optim.AdamW(network.parameters(), fused=True)

        def loss() -> Tensor:
            outputs = network(torch.zeros(batch_size, channels, *plan["patch_size"]))
            # CUDA's autocast computes softmax and cross entropy in float32, that of the CPU does not
            outputs = [o.float() for o in (outputs if isinstance(outputs, list) else [outputs])]
            targets = [torch.zeros(batch_size, heads if labels.has_regions else 1, *o.shape[2:]) for o in outputs]
            return DeepSupervisionWrapper(criterion, [1.0] * len(outputs))(outputs, targets)

        return _step_gigabytes(live, network, optimizer, loss, len(plan["patch_size"]))


def ssl_gigabytes(
    method_class: type[SSLMethod], plan: dict[str, Any], block: dict[str, Any], channels: int, *, share: float = 1.0
) -> float:
    """Peak of a step of an SSL stage.

    Args:
        method_class: The SSL method of the stage.
        plan: A configuration of the plans; ``architecture`` and ``patch_size`` of it are used.
        block: Its ``emim`` block, with the batch size of the stage.
        channels: Number of channels of an image.
        share: Share of the tokens of a Primus that masks leave visible; all by default, as no step may take more.

    Returns:
        Peak in units of 1e9 bytes, of what the head of this file names.
    """
    live = LiveStorages()
    fake, method, loss = fake_stage(live, method_class, plan, block, channels)
    if isinstance(method.encoder, PrimusEncoder):
        method.encoder.share_of_dry_run = share
    with fake, live:
        optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], fused=True)
        return _step_gigabytes(live, method, optimizer, loss, len(plan["patch_size"]))
