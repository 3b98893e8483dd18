"""Requests to stop, by Ctrl-C or by a cluster that needs the machine: a stage ends at the next step, with a checkpoint."""

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
    """Remembers SIGTERM and SIGINT while it is open (as a context manager); the training loop asks for them between steps.

    In a process group all processes get the same answer at the same step, whichever of them got the signal. The answers are
    exchanged in a separate gloo group, so that no process waits for its GPU.
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
        """Whether any process was asked to stop. In a process group this is a collective operation."""
        if self._group is None:
            return self.signal is not None
        flag = torch.tensor([self.signal is not None], dtype=torch.int32)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group)
        return bool(flag.item())

    def wait_for_all(self) -> None:
        """Wait until all processes have called this: a process that ends earlier makes the launcher end the others."""
        if self._group is not None:
            dist.barrier(group=self._group)


def outlive_signals(worker: int = 0) -> None:
    """Make a data-loading worker ignore a cluster's signals until the parent process has written its checkpoint.

    Normally the parent ends the worker; otherwise SIGALRM ends it :data:`WORKER_SECONDS` after SIGTERM.

    Args:
        worker: The number of the worker, which torch's loader passes; unused.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_SECONDS))
