"""Work on cases by as many processes as pay."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from queue import SimpleQueue
from time import perf_counter
from typing import Any, TypeVar

from emim_nnunet.errors import UserError

WORKER_START_SECONDS = 4.0  # a worker imports torch and nnunetv2 before its first case: 3 to 7
Job = TypeVar("Job")
Result = TypeVar("Result")


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_workers(num_cases: int, seconds_per_case: float, limit: int) -> int:
    """How many workers beside this process, which goes on, make the remaining cases fastest.

    Args:
        num_cases: Number of cases that remain.
        seconds_per_case: Seconds that a case takes in this process; 0 = not known.
        limit: The most processes that are allowed, this one included.

    Returns:
        Number of workers to start, 0 or more; none where this process is done before they have begun.
    """
    pays = num_cases * seconds_per_case > WORKER_START_SECONDS
    return max(0, min(limit, num_cases, num_cores()) - 1) if pays else 0


def work_on(
    jobs: Sequence[Job], work: Callable[[Job], Result], limit: int
) -> Generator[tuple[Job, Result], None, None]:
    """Do every job, the first in this process to see how long it takes, the others with workers where that is faster.

    Args:
        jobs: The jobs.
        work: Does one; it, the jobs and the results go from process to process. What it raises ends the whole.
        limit: The most processes that work, this one included; never more than cores or jobs.

    Yields:
        Each job with what ``work`` returned, in the order in which they end. Close the generator where it is left early: that
        ends the workers.

    Raises:
        UserError: A worker was killed.
    """
    begin = perf_counter()
    for number, job in enumerate(jobs):
        seconds = (perf_counter() - begin) / number if number else 0.0
        workers = num_workers(len(jobs) - number, seconds, limit)
        if workers:
            yield from _with_workers(jobs[number:], work, workers)
            return
        yield job, work(job)


def _with_workers(
    jobs: Sequence[Job], work: Callable[[Job], Result], workers: int
) -> Generator[tuple[Job, Result], None, None]:
    """Each worker gets a job and a second that waits; while all are busy, or still import torch, this process does the next."""
    left, running = deque(jobs), dict[Future[Result], Job]()
    done: SimpleQueue[Future[Result]] = SimpleQueue()
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin, (work,)) as pool:
        try:
            while left or running:
                while left and len(running) < 2 * workers:
                    future = pool.submit(_call, left[0])
                    running[future] = left.popleft()
                    future.add_done_callback(done.put)
                if left and done.empty():
                    job = left.popleft()
                    yield job, work(job)
                else:
                    future = done.get()
                    yield running.pop(future), future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a preprocessing worker was killed, probably for memory: repeat the command with fewer processes, -np or -npfp "
                "(cases that are finished are kept)"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


_work: Callable[[Any], Any]  # of a worker, which is sent it once and not with each job


def _begin(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work


def _call(job: Any) -> Any:
    return _work(job)
