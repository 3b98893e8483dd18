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
    """A flag on the device, to be read without waiting for work that is queued after this call.

    Args:
        flag: () bool.

    Returns:
        Gives its value; waits for the work before this call only.
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
        folder: Where the crops and masks of such steps are saved.
        limit: How many an epoch may have.
        draw: Draws the masks and other random inputs of a step again, from what is known ``about`` it.
    """

    def __init__(self, folder: Path, limit: int, draw: Callable[[dict[str, Any]], dict[str, Tensor]]) -> None:
        self.folder, self.limit, self.draw = folder, limit, draw
        self.count = self.unsaved = 0
        self.cases: list[str] = []
        self._gradients: list[tuple[Tensor, dict[str, Any]]] = []

    def start_epoch(self, count: int = 0) -> None:
        """Forget the epoch before.

        Args:
            count: Steps skipped already, in an epoch that is continued.
        """
        self.count, self.unsaved, self.cases, self._gradients = count, 0, [], []

    def add(self, what: str, about: dict[str, Any]) -> None:
        """Note a step and save what repeats it, where there is space.

        Args:
            what: ``loss`` or ``gradient``.
            about: ``epoch``, ``step``, ``rank``, ``cases`` and what ``draw`` needs.
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
        """Note later, see :meth:`read_gradients`, if ``broken`` () bool is True: reading it now would wait for the device."""
        self._gradients.append((broken, about))

    def read_gradients(self) -> None:
        """Note all watched steps whose gradient was broken; waits for the device."""
        watched, self._gradients = self._gradients, []
        flags = torch.stack([flag for flag, _ in watched]).tolist() if watched else []
        for flag, (_, about) in zip(flags, watched, strict=True):
            if flag:
                self.add("gradient", about)

    def too_many(self) -> bool:
        """Whether the epoch has more of them than allowed."""
        return self.count > self.limit

    def describe(self, epoch: int) -> str:
        """One line for a log."""
        cases = f" (cases {', '.join(self.cases)})" if self.cases else ""
        unsaved = f"; {self.unsaved} not in {self.folder.name}/, because the disk is full" if self.unsaved else ""
        return f"loss or gradient not finite in {self.count} steps of epoch {epoch}{cases}{unsaved}"


class GuardedStep:
    """Forward and backward pass in mixed precision, clipping, and a step of the optimiser where everything is finite.

    bfloat16 where the GPU has it; float16 with a gradient scaler on older ones; float32 elsewhere.

    Args:
        optimizer: Of the network's parameters.
        network: With DDP around it in a process group.
        device: Where it is.
        gradient_clip: Largest gradient norm.
        skipped: Gets the steps that changed nothing.
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
        """One step.

        Args:
            forward: Gives an output with a ``loss``.
            about: What repeats the step, see :meth:`SkippedSteps.add`.

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
        """Mixed precision on a GPU; nothing elsewhere."""
        dtype = torch.float16 if self.scaler else torch.bfloat16
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.device.type == "cuda")

    def _backward(self, loss: Tensor) -> None:
        (self.scaler.scale(loss) if self.scaler else loss).backward()

    def _optimise(self, about: dict[str, Any]) -> None:
        """Change the weights, unless the gradient is not finite."""
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.gradient_clip)
        if self.scaler:  # looks at the gradient itself: with float16, an overflow now and then is normal
            self.scaler.step(self.optimizer)
            self.scaler.update()
            return
        broken = ~norm.isfinite()
        self.skipped.watch_gradient(broken, about)
        if self.optimizer.defaults.get("fused"):
            # fused AdamW then does nothing, without a word to the host
            self.optimizer.found_inf = broken.float()  # type: ignore[attr-defined]  # torch's own GradScaler sets it
            self.optimizer.step()
        elif not broken:
            self.optimizer.step()
