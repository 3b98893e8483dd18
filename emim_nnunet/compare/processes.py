"""Commands in processes of their own that stop when this one is asked to."""

from __future__ import annotations

import logging
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO

from emim_nnunet.errors import EXIT_INTERRUPTED

logger = logging.getLogger(__name__)


class Processes:
    """Runs commands, several at a time if called from several threads.

    A cluster that wants the machine may send SIGTERM to this process alone: without :meth:`stopped_together` it would leave
    behind commands that go on computing.
    """

    def __init__(self) -> None:
        self._running: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        self._stopping = False

    @contextmanager
    def stopped_together(self) -> Iterator[None]:
        """While open, SIGTERM goes to every command that runs, and no other one starts.

        In another thread than the main one nothing is done: Python allows handlers nowhere else.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.signal(signal.SIGTERM, lambda *_: self._stop())
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _stop(self) -> None:
        self._stopping = True  # no lock: the main thread, where handlers run, may hold it
        logger.warning("asked to stop: what trains writes a checkpoint first; repeat the command to go on")
        for process in list(self._running):
            process.terminate()

    def call(self, line: Sequence[str], env: Mapping[str, str], stdout: IO[str]) -> int:
        """Run a command to its end.

        Args:
            line: The command.
            env: Its environment.
            stdout: Where its output goes, errors included.

        Returns:
            Its exit code.

        Raises:
            SystemExit: SIGTERM came, before or during the command; the code is :data:`EXIT_INTERRUPTED`.
        """
        with self._lock:
            if self._stopping:
                raise SystemExit(EXIT_INTERRUPTED)
            process = subprocess.Popen(line, env=env, stdout=stdout, stderr=subprocess.STDOUT)
            self._running.add(process)
        if self._stopping:  # came in between
            process.terminate()
        try:
            code = process.wait()
        finally:
            self._running.discard(process)
        if self._stopping:
            raise SystemExit(EXIT_INTERRUPTED)
        return code
