"""One step of an optimiser that changes nothing where loss or gradient is not finite; for every training loop of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from emim_nnunet.checkpoints.io import FAULT_FORMAT, FORMAT_VERSION, save_checkpoint
from emim_nnunet.errors import DISK_FULL


class _HasLoss(Protocol):
    @property
    def loss(self) -> Tensor: ...


Output = TypeVar("Output", bound=_HasLoss)


def read_later(flag: Tensor) -> Callable[[], bool]:
    """Prepare to read a flag on the device without waiting for work that is queued after this call.

    Args:
        flag: () bool tensor.

    Returns:
        A function that returns the value of the flag; it waits only for work that was queued before this call.
    """
    if flag.device.type != "cuda":
        return lambda: bool(flag)
    copy = flag.to("cpu", non_blocking=True)
    done = torch.cuda.Event()
    done.record()

    def value() -> bool:
        done.synchronize()
        return bool(copy)

    return value


class SkippedSteps:
    """Steps of an epoch that changed nothing, because their loss or their gradient was not finite.

    Args:
        folder: Folder in which a file is saved for each such step, with its crops and masks; it is made when needed.
        limit: Largest number of skipped steps that an epoch may have.
        draw: Draws the masks and other random inputs of a step again, from what :meth:`add` is told ``about`` it.
    """

    def __init__(self, folder: Path, limit: int, draw: Callable[[dict[str, Any]], dict[str, Tensor]]) -> None:
        self.folder, self.limit, self.draw = folder, limit, draw
        self.count = self.unsaved = 0
        self.cases: list[str] = []
        self._gradients: list[tuple[Tensor, dict[str, Any]]] = []

    def start_epoch(self, count: int = 0) -> None:
        """Forget the epoch before.

        Args:
            count: Number of steps that were skipped already, in an epoch that is continued.
        """
        self.count, self.unsaved, self.cases, self._gradients = count, 0, [], []

    def add(self, what: str, about: dict[str, Any]) -> None:
        """Count a skipped step and save what is needed to repeat it, if there is space on the disk.

        Args:
            what: What was not finite: ``loss`` or ``gradient``.
            about: ``epoch``, ``step``, ``rank``, ``cases`` (case ids) and the keys that ``draw`` needs.
        """
        self.count += 1
        self.cases += [case for case in about["cases"] if case not in self.cases]
        name = "epoch_{epoch:04d}_step_{step:04d}_rank_{rank}.pth".format(**about)
        content = {"format": FAULT_FORMAT, "format_version": FORMAT_VERSION, "not_finite": what}
        content |= about | {"draws": self.draw(about)}
        try:
            self.folder.mkdir(exist_ok=True)
            save_checkpoint(content, self.folder / name)
        except OSError as error:  # no reason to wait within a step, for which other ranks wait in turn
            if error.errno not in DISK_FULL:
                raise
            self.unsaved += 1

    def watch_gradient(self, broken: Tensor, about: dict[str, Any]) -> None:
        """Count the step in :meth:`read_gradients` if ``broken`` () bool is True; reading it now would wait for the device."""
        self._gradients.append((broken, about))

    def read_gradients(self) -> None:
        """Count all watched steps whose gradient was not finite; waits for the device."""
        watched, self._gradients = self._gradients, []
        flags = torch.stack([flag for flag, _ in watched]).tolist() if watched else []
        for flag, (_, about) in zip(flags, watched, strict=True):
            if flag:
                self.add("gradient", about)

    def too_many(self) -> bool:
        """Whether more steps of the epoch were skipped than ``limit`` allows."""
        return self.count > self.limit

    def describe(self, epoch: int) -> str:
        """A line for a log: how many steps of the epoch were skipped, and of which cases."""
        cases = f" (cases {', '.join(self.cases)})" if self.cases else ""
        unsaved = f"; {self.unsaved} not in {self.folder.name}/, because the disk is full" if self.unsaved else ""
        return f"loss or gradient not finite in {self.count} steps of epoch {epoch}{cases}{unsaved}"


class GuardedStep:
    """Forward and backward pass in mixed precision, clipping, and a step of the optimiser where everything is finite.

    bfloat16 where the GPU has it; float16 with a gradient scaler on older ones; float32 elsewhere.

    Args:
        optimizer: The optimiser of the network's parameters.
        network: The network that is trained, with DDP around it in a process group.
        device: The device of the network.
        gradient_clip: Largest norm of the gradient over all parameters; larger ones are scaled down to it.
        skipped: Counts the steps that changed nothing.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        network: nn.Module,
        device: torch.device,
        *,
        gradient_clip: float,
        skipped: SkippedSteps,
    ) -> None:
        self.optimizer, self.network, self.device = optimizer, network, device
        self.gradient_clip, self.skipped = gradient_clip, skipped
        needs_scaler = device.type == "cuda" and not torch.cuda.is_bf16_supported()
        self.scaler = torch.amp.GradScaler("cuda") if needs_scaler else None

    def take(self, forward: Callable[[], Output], about: dict[str, Any]) -> Output | None:
        """Take one step.

        Args:
            forward: Runs the forward pass and returns an output with a ``loss`` () float.
            about: What is needed to repeat the step, see :meth:`SkippedSteps.add`.

        Returns:
            The output; None where its loss was not finite. (Whether the gradient was is known later, without waiting for the
            device: see :meth:`SkippedSteps.read_gradients`.)
        """
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            output = forward()
        is_finite = read_later(output.loss.isfinite())
        self._backward(output.loss)
        if is_finite():  # waits for the forward pass, while the device is busy with the backward one
            self._optimise(about)
            return output
        self.skipped.add("loss", about)
        return None

    def autocast(self) -> torch.autocast:
        """A context of mixed precision on a GPU; it does nothing on other devices."""
        dtype = torch.float16 if self.scaler else torch.bfloat16
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.device.type == "cuda")

    def _backward(self, loss: Tensor) -> None:
        (self.scaler.scale(loss) if self.scaler else loss).backward()

    def _optimise(self, about: dict[str, Any]) -> None:
        """Change the weights, unless the gradient is not finite."""
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.gradient_clip)
        if self.scaler:  # checks the gradient itself: with float16, a rare overflow is normal
            self.scaler.step(self.optimizer)
            self.scaler.update()
            return
        broken = ~norm.isfinite()
        self.skipped.watch_gradient(broken, about)
        if self.optimizer.defaults.get("fused"):
            # fused AdamW then does nothing, and the host need not wait to know it
            self.optimizer.found_inf = broken.float()  # type: ignore[attr-defined]  # torch's own GradScaler sets it
            self.optimizer.step()
        elif not broken:
            self.optimizer.step()
