"""Locks against real processes; owners on other machines are stood in for by the files that they would have written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emim_nnunet.errors import UserError
from emim_nnunet.storage import locks
from emim_nnunet.storage.locks import acquire, lock_of, take_over_locks

HOLD = """
import sys
from pathlib import Path
from emim_nnunet.storage.locks import acquire
with acquire(Path(sys.argv[1]), "the thing"):
    print("taken", flush=True)
    sys.stdin.read()
"""
CONTEND = """
import sys, time
from pathlib import Path
from emim_nnunet.errors import UserError
from emim_nnunet.storage.locks import acquire
print("ready", flush=True)
sys.stdin.readline()
try:
    acquire(Path(sys.argv[1]), "the thing")
except UserError as error:
    print("refused", error)
else:
    print("taken", flush=True)
    sys.stdin.readline()
"""


def start(code: str, target: Path, **options: Any) -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code, str(target)], **pipes, **options)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "below" / "Dataset007"


@pytest.fixture
def holder(target: Path) -> Iterator[subprocess.Popen[str]]:
    with start(HOLD, target) as process:
        assert process.stdout.readline() == "taken\n"
        yield process
        process.kill()


def left_by(target: Path, seconds_ago: float = 0.0, **changes: Any) -> str:
    """Write the lock of another owner; returns its text."""
    target.parent.mkdir(parents=True, exist_ok=True)
    owner = replace(locks._this_process(), host="node7", machine="node7 its-boot", **changes)
    text = json.dumps(owner.__dict__)
    lock_of(target).write_text(text)
    then = time.time() - seconds_ago
    os.utime(lock_of(target), (then, then))
    return text


def test_a_second_process_is_refused_until_the_first_ends(target: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(UserError, match=rf"the thing is being written by -c \(process {holder.pid} on .* or end it$"):
        acquire(target, "the thing")
    holder.stdin.close()
    assert holder.wait() == 0
    assert not lock_of(target).exists()
    with acquire(target, "the thing"):
        assert lock_of(target).is_file()
    assert list(target.parent.iterdir()) == []


def test_patience_waits_for_the_other_process_so_long_and_no_longer(
    target: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "PAUSE_SECONDS", 0.02)
    begin = time.monotonic()
    with pytest.raises(UserError, match="is being written by"):
        acquire(target, "the thing", patience=0.1)
    assert 0.1 <= time.monotonic() - begin < 20
    holder.stdin.close()  # it ends and releases the lock while we wait
    with acquire(target, "the thing", patience=30):
        assert holder.wait() == 0


def test_a_killed_owner_is_taken_over_and_a_stopped_one_is_not(target: Path, holder: subprocess.Popen[str]) -> None:
    os.kill(holder.pid, 19)  # SIGSTOP: it may go on at any time
    then = time.time() - 10 * locks.STALE_SECONDS
    os.utime(lock_of(target), (then, then))
    with pytest.raises(UserError, match="is being written by"):
        acquire(target, "the thing")
    holder.kill()
    while holder.poll() is None:  # not even while it is a zombie
        time.sleep(0.01)
    with acquire(target, "the thing") as lock:
        lock.check()


def test_a_process_that_was_killed_while_it_took_over_is_in_nobodys_way(
    target: Path, holder: subprocess.Popen[str]
) -> None:
    guard = lock_of(target).with_name(f"{lock_of(target).name}.take_over")
    holder.kill()
    holder.wait()
    guard.write_text(lock_of(target).read_text())  # of the same process, which is gone
    with acquire(target, "the thing"):
        assert not guard.exists()


def test_one_process_may_take_it_several_times(target: Path) -> None:
    outer = acquire(target, "the thing")
    with acquire(target, "the thing"):
        pass
    outer.check()
    assert lock_of(target).is_file()
    outer.release()
    assert not lock_of(target).exists()


def test_a_fork_does_not_hold_what_its_parent_holds(target: Path) -> None:
    with acquire(target, "the thing") as lock:
        child = os.fork()
        if not child:
            lock.release()  # as at the end of a with block that the fork leaves
            try:
                acquire(target, "the thing")
            except UserError:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert lock_of(target).is_file()


@pytest.mark.parametrize(
    ("environment", "arrange", "taken"),
    [
        ({}, lambda t: left_by(t, 0), False),
        ({}, lambda t: left_by(t, locks.STALE_SECONDS - 30), False),
        ({}, lambda t: left_by(t, locks.STALE_SECONDS + 30), True),
        ({}, lambda t: left_by(t, locks.STALE_SECONDS + 30, job="c 17"), True),
        ({"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "1"}, lambda t: left_by(t, job="c 17", restart=0), True),
        ({"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "1"}, lambda t: left_by(t, job="c 17", restart=1), False),
        ({"SLURM_JOB_ID": "18", "SLURM_RESTART_COUNT": "1"}, lambda t: left_by(t, job="c 17"), False),
        ({"SLURM_RESTART_COUNT": "1"}, lambda t: left_by(t), False),
    ],
    ids=[
        "fresh",
        "silent for a while",
        "silent for long",
        "of a job",
        "earlier start",
        "same start",
        "other job",
        "none",
    ],
)
def test_locks_of_other_machines(
    environment: dict[str, str],
    arrange: Callable[[Path], str],
    taken: bool,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"SLURM_CLUSTER_NAME": "c", **environment}.items():
        monkeypatch.setenv(name, value)
    text = arrange(target)
    if taken:
        acquire(target, "the thing").release()
        assert not lock_of(target).exists()
        return
    with pytest.raises(UserError, match=r"process \d+ on node7, .*--take_over or remove"):
        acquire(target, "the thing")
    assert lock_of(target).read_text() == text


def test_take_over(target: Path, holder: subprocess.Popen[str]) -> None:
    take_over_locks(True)
    try:
        with pytest.raises(UserError, match=r"or end it$"):  # a process of this machine can be ended, and must be
            acquire(target, "the thing")
        other = target.with_name("other")
        left_by(other)
        acquire(other, "the other").release()
    finally:
        take_over_locks(False)


def test_the_owner_notices_that_it_was_taken_over(target: Path) -> None:
    with acquire(target, "the thing") as lock:
        lock_of(target).unlink()
        lock.check()  # nobody took it: it is made again
        assert lock_of(target).is_file()
        text = left_by(target)
        with pytest.raises(UserError, match=r"the thing was taken over by .* on node7"):
            lock.check()
    assert lock_of(target).read_text() == text, "the lock of another owner must stay"


def test_a_lock_that_cannot_be_read_for_a_moment_is_no_loss(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "PAUSE_SECONDS", 0.0)
    read = locks._read
    with acquire(target, "the thing") as lock:
        answers = iter([("", None)] * 3)
        monkeypatch.setattr(locks, "_read", lambda path: next(answers, None) or read(path))
        lock.check()
        monkeypatch.setattr(locks, "_read", lambda path: ("", None))
        with pytest.raises(UserError, match="was taken over by another process"):
            lock.check()
        monkeypatch.setattr(locks, "_read", read)
    assert not lock_of(target).exists()


def test_a_lock_that_is_just_being_written_counts(target: Path) -> None:
    target.parent.mkdir(parents=True)
    lock_of(target).touch()
    with pytest.raises(UserError, match="is being written by another process"):
        acquire(target, "the thing")


def test_the_lock_is_touched(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.01)
    with acquire(target, "the thing"):
        os.utime(lock_of(target), (0, 0))
        end = time.monotonic() + 10
        while lock_of(target).stat().st_mtime == 0 and time.monotonic() < end:
            time.sleep(0.01)
        assert lock_of(target).stat().st_mtime > 0


def test_of_many_that_find_an_abandoned_lock_one_takes_it(target: Path) -> None:
    left_by(target, locks.STALE_SECONDS + 30)
    processes = [start(CONTEND, target) for _ in range(6)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.stdout.readline() for process in processes]
    for process in processes:
        process.communicate("\n")
    assert sum(answer == "taken\n" for answer in answers) == 1, answers
    assert sum(answer.startswith("refused") for answer in answers) == 5, answers


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"/proc cannot be written .* so the thing cannot be"):
        acquire(Path("/proc/Dataset007"), "the thing")
