"""Work on cases by several processes."""

from __future__ import annotations

import gc
import os
import signal
from contextlib import closing
from functools import partial
from multiprocessing import active_children

import pytest

from emim_nnunet.errors import UserError
from emim_nnunet.planners.workers import work_on

JOBS = list(range(6))


@pytest.fixture(autouse=True)
def always_worth_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emim_nnunet.planners.workers.num_cores", lambda: 2)
    monkeypatch.setattr("emim_nnunet.planners.workers.WORKER_START_SECONDS", 0.0)


def process_of(job: int) -> int:
    return os.getpid()


def killed_elsewhere(parent: int, job: int) -> None:
    if os.getpid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def refused(job: int) -> None:
    if job == JOBS[3]:  # the first of this process, once a worker has two
        raise UserError("no")


def test_every_job_is_done_once_here_and_by_the_worker() -> None:
    ended = list(work_on(JOBS, process_of, 2))
    assert sorted(job for job, _ in ended) == JOBS
    processes = {process for _, process in ended}
    assert len(processes) == 2
    assert os.getpid() in processes


def test_one_process_does_them_in_order() -> None:
    assert list(work_on(JOBS, process_of, 1)) == [(job, os.getpid()) for job in JOBS]


def test_a_killed_worker_ends_the_work_in_a_line() -> None:
    with pytest.raises(UserError, match="a preprocessing worker was killed"):
        list(work_on(JOBS, partial(killed_elsewhere, os.getpid()), 2))


def test_what_is_raised_here_and_leaving_early_end_the_worker() -> None:
    with pytest.raises(UserError, match="no"):
        list(work_on(JOBS, refused, 2))
    gc.collect()  # the generator, which the error's traceback held
    with closing(work_on(JOBS, process_of, 2)) as ended:
        assert next(ended) == (0, os.getpid())
        assert next(ended)[0] in JOBS[1:]
        assert active_children()
    assert not active_children()
