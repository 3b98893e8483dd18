"""Locks: two processes never write the same data set, prepared folder, stage, comparison or report at once.

A lock is a file that only one process can create (O_EXCL, which holds on network file systems too). It says whose it is and is
touched every few seconds. What an owner left behind is taken over: at once where it was a process of this machine that is
gone, or an earlier start of the same SLURM job; after minutes without a touch where it was on another machine.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import socket
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

from emim_nnunet.errors import UserError

HEARTBEAT_SECONDS = 20.0
STALE_SECONDS = 300.0  # without a touch, on another machine
TRIES, PAUSE_SECONDS = 5, 2.0
UNKNOWN = -1
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Owner:
    """Who holds a lock.

    Attributes:
        host: Name, for people.
        machine: Equal where process numbers mean the same: host, boot and namespace.
        pid: Process number.
        start: When the process started, in ticks after the boot; -1 where the system does not tell.
        command: What it runs.
        since: When it took the lock, UTC.
        job: SLURM job; empty = none.
        restart: How often SLURM has started that job again.
        token: Of this lock alone.
    """

    host: str
    machine: str
    pid: int
    start: int
    command: str
    since: str
    job: str
    restart: int
    token: str

    def __str__(self) -> str:
        return f"{self.command} (process {self.pid} on {self.host}, since {self.since} UTC)"


class Lock:
    """A lock that this process holds; made by :func:`acquire`. As a context manager it is released at the end."""

    def __init__(self, path: Path, what: str, owner: Owner) -> None:
        self._path, self._what, self._owner = path, what, owner
        self._count = 0
        self._end = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def check(self) -> None:
        """Whether it is still held: before something is replaced that cannot be brought back.

        Raises:
            UserError: It was taken over, by force or because this process stood still for minutes.
        """
        text, owner = _read(self._path)
        if text is None:
            with suppress(OSError):  # somebody removed the file: it is ours still, if nobody is faster
                _create(self._path, self._owner)
            text, owner = _read(self._path)
        for _ in range(TRIES):  # a network file system that stumbles is no reason to end a training
            if text is None or owner is not None:
                break
            time.sleep(PAUSE_SECONDS)
            text, owner = _read(self._path)
        if text is not None and owner != self._owner:
            raise UserError(f"{self._what} was taken over by {owner or 'another process'}: this process ends")

    def release(self) -> None:
        """Give it back; after as many releases as acquisitions the file is removed."""
        with _guard:
            if self._owner.pid != os.getpid():  # a fork of the process that holds it
                return
            self._count -= 1
            if self._count != 0:
                return
            _held.pop(self._path, None)
            self._end.set()
            with suppress(OSError):  # what stays is taken over by the next process
                if _read(self._path)[1] == self._owner:
                    self._path.unlink()

    def _beat(self) -> None:
        while not self._end.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):
                if _read(self._path)[1] == self._owner:
                    os.utime(self._path)


_held: dict[Path, Lock] = {}
_guard = threading.RLock()
_by_force = False


def lock_of(target: Path) -> Path:
    """Where the lock of a file or folder is: beside it, hidden."""
    target = target.absolute()
    return target.with_name(f".{target.name}.lock")


def take_over_locks(by_force: bool) -> None:
    """Whether this process takes locks that other machines hold, whatever their age (``--take_over``)."""
    global _by_force
    _by_force = by_force


def acquire(target: Path, what: str) -> Lock:
    """Take the lock of something, which this process may hold already.

    Args:
        target: File or folder that will be written; need not exist. Missing folders above are made.
        what: Name of it, for the message.

    Returns:
        The lock, to be released.

    Raises:
        UserError: Another process holds it, which is named; or its folder cannot be written.
    """
    path = lock_of(target)
    with _guard:
        lock = _held.get(path)
        if lock is None or lock._owner.pid != os.getpid():
            lock = _held[path] = Lock(path, what, _take(path, what))
        lock._count += 1
        return lock


def _take(path: Path, what: str) -> Owner:
    owner = _this_process()
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _create(path, owner)
            return owner
        except FileExistsError:
            text, other = _read(path)
        except OSError as error:
            raise UserError(f"{path.parent} cannot be written ({error.strerror}), so {what} cannot be") from error
        if text is None:
            continue  # released meanwhile
        reason = _why_abandoned(path, other)
        if reason is None:
            here = other is not None and other.machine == owner.machine
            advice = ", or end it" if here else f". If it is gone for certain, give --take_over or remove {path}"
            raise UserError(f"{what} is being written by {other or 'another process'}: wait until it has ended{advice}")
        logger.info("taking over the lock of %s from %s: %s", what, other or "another process", reason)
        _remove_abandoned(path, text, what)


def _create(path: Path, owner: Owner) -> None:
    """Create the file as a whole; FileExistsError where there is one."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(asdict(owner), file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _read(path: Path) -> tuple[str | None, Owner | None]:
    """Text of a lock (None = there is none) and its owner (None = not known: it is just being written, or was not)."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None, None
    except OSError:  # another user's, perhaps
        return "", None
    try:
        return text, Owner(**json.loads(text))
    except (ValueError, TypeError):
        return text, None


def _why_abandoned(path: Path, owner: Owner | None) -> str | None:
    """Why a lock may be taken over; None = it may not."""
    if owner is not None:
        this = _this_process()
        if owner.machine == this.machine:
            start = _start_of(owner.pid)
            if start != owner.start:
                return "its process is gone"
            if start != UNKNOWN:
                return None
        elif owner.job and owner.job == this.job and owner.restart < this.restart:
            return "it is of an earlier start of this job"
        elif _by_force:
            return "--take_over"
    silent = _seconds_since_touched(path)
    return f"not touched for {silent / 60:.0f} minutes" if silent > STALE_SECONDS else None


def _remove_abandoned(path: Path, text: str, what: str) -> None:
    """Remove a lock, unless it has changed since it was read: of several processes that found it abandoned, one takes it."""
    only_one = path.with_name(f"{path.name}.take_over")
    try:
        os.close(os.open(only_one, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError as error:
        raise UserError(
            f"another process is taking over {what}: wait until it has ended. If there is none, remove {only_one}"
        ) from error
    try:
        if _read(path)[0] == text:
            path.unlink()
    finally:
        only_one.unlink()


def _seconds_since_touched(path: Path) -> float:
    """By the clock of the file system, which may be another machine's."""
    with suppress(OSError), tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.") as now:
        return os.stat(now.name).st_mtime - path.stat().st_mtime
    return 0.0


def _this_process() -> Owner:
    cluster, job = (os.environ.get(f"SLURM_{name}", "") for name in ("CLUSTER_NAME", "JOB_ID"))
    restart = os.environ.get("SLURM_RESTART_COUNT", "")
    return Owner(
        host=socket.gethostname(),
        machine=" ".join([socket.gethostname(), *_identity_of_boot()]),
        pid=os.getpid(),
        start=_start_of(os.getpid()) or UNKNOWN,
        command=Path(sys.argv[0]).name or "python",
        since=time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        job=f"{cluster} {job}" if job else "",
        restart=int(restart) if restart.isdecimal() else 0,
        token=uuid4().hex,
    )


def _identity_of_boot() -> list[str]:
    """What tells containers and boots apart whose hosts have one name; where there is no such thing, nothing."""
    found = []
    with suppress(OSError):
        found.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        found.append(os.readlink("/proc/self/ns/pid"))
    return found


def _start_of(pid: int) -> int | None:
    """When a process of this machine started, in ticks after the boot; -1 = it lives, None = it does not."""
    if os.name == "nt":  # a signal of number 0 would end it there
        return UNKNOWN
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else int(fields[19])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:  # somebody else's
        pass
    return UNKNOWN


@atexit.register
def _release_all() -> None:
    for lock in list(_held.values()):
        if lock._owner.pid == os.getpid():
            lock._count = 1
            lock.release()
