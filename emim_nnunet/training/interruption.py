"""Being asked to stop, by Ctrl-C or by a cluster that needs the machine: a stage ends at the next step, with a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from emim_nnunet.distributed import is_distributed

SIGNALS = (signal.SIGTERM, signal.SIGINT)
WORKER_SECONDS = 30


class Interruption:
    """Remembers SIGTERM and SIGINT while it is open (as a context manager); the loop asks for them between steps.

    In a process group all processes get the same answer at the same step, whichever of them got the signal. The answers
    travel over a gloo group of their own, so no GPU is waited for.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._process = os.getpid()
        self._group: dist.ProcessGroup | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        self.signal, self._process = None, os.getpid()
        group = dist.new_group(backend="gloo") if is_distributed() else None
        assert not isinstance(group, int)  # torch's number for a process that is not in it
        self._group = group
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._previous = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
        if self._group is not None and error[0] is None:
            dist.destroy_process_group(self._group)
        self._group = None

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a child that was forked meanwhile, such as nnU-Net's workers
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal = signal.Signals(number).name  # nothing else: a handler must not print

    def asked(self) -> bool:
        """Whether any process was asked to stop; a collective operation in a process group."""
        if self._group is None:
            return self.signal is not None
        flag = torch.tensor([self.signal is not None], dtype=torch.int32)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group)
        return bool(flag.item())

    def wait_for_all(self) -> None:
        """Wait until all processes are here: one that ends earlier makes the launcher end the others."""
        if self._group is not None:
            dist.barrier(group=self._group)


def outlive_signals(worker: int = 0) -> None:
    """For data-loading workers, to which a cluster's signal goes too: live on until the parent has written its checkpoint.

    Normally the parent ends them before; SIGALRM ends them where it does not.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_SECONDS))
