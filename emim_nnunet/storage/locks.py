"""Locks: two processes never write the same data set, prepared folder, stage, comparison or report at once.

A lock is a file that only one process can create (O_EXCL, which works on network file systems too). It names its owner, who
touches it every few seconds. A lock that its owner left behind is taken over: at once if the owner was a process of this
machine that is gone, or an earlier start of the same SLURM job; after minutes without a touch if it was on another machine.
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
STALE_SECONDS = 300.0  # a lock of another machine counts as abandoned after so long without a touch
TRIES, PAUSE_SECONDS = 5, 2.0
UNKNOWN = -1
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock.

    Attributes:
        host: Name of its machine, for people.
        machine: Host, boot and process namespace; equal for two processes if process numbers mean the same to both.
        pid: Process number.
        start: Time at which the process started, in clock ticks after the boot; -1 where the system does not tell.
        command: Name of the command that it runs.
        since: UTC time at which it took the lock, ``YYYY-MM-DD HH:MM``.
        job: Cluster and number of its SLURM job; empty = none.
        restart: How often SLURM has started that job again.
        token: A random text that no other lock has.
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
    """A lock that this process holds, made by :func:`acquire`. As a context manager it is released at the end."""

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
        """Check that this process still holds the lock, before it replaces something that cannot be brought back.

        Raises:
            UserError: The lock was taken over, by force or because this process stood still for minutes.
        """
        text, owner = _read(self._path)
        if text is None:
            with suppress(OSError):  # somebody removed the file: the lock is still ours, if no other process is faster
                _create(self._path, self._owner)
            text, owner = _read(self._path)
        for _ in range(TRIES):  # a short fault of a network file system is no reason to end a training
            if text is None or owner is not None:
                break
            time.sleep(PAUSE_SECONDS)
            text, owner = _read(self._path)
        if text is not None and owner != self._owner:
            raise UserError(f"{self._what} was taken over by {owner or 'another process'}: this process ends")

    def release(self) -> None:
        """Release the lock once; the file is removed after as many releases as acquisitions."""
        with _guard:
            if self._owner.pid != os.getpid():  # a fork of the process that holds it
                return
            self._count -= 1
            if self._count != 0:
                return
            _held.pop(self._path, None)
            self._end.set()
            with suppress(OSError):  # a file that stays is taken over by the next process
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
    """Path of the lock of a file or folder: a hidden file beside it."""
    target = target.absolute()
    return target.with_name(f".{target.name}.lock")


def take_over_locks(by_force: bool) -> None:
    """Set whether this process takes over locks that other machines hold, whatever their age (``--take_over``)."""
    global _by_force
    _by_force = by_force


def acquire(target: Path, what: str, patience: float = 0.0) -> Lock:
    """Take the lock of a file or folder; this process may hold it already.

    Args:
        target: File or folder that will be written. It need not exist; missing folders above it are made.
        what: Name of the target, for the message.
        patience: Seconds to wait for another process that holds the lock, for locks that are held shortly.

    Returns:
        The lock, which the caller must release.

    Raises:
        UserError: Another process, which the message names, holds the lock; or the folder above the target cannot be written.
    """
    path = lock_of(target)
    with _guard:
        lock = _held.get(path)
        if lock is None or lock._owner.pid != os.getpid():
            lock = _held[path] = Lock(path, what, _take(path, what, patience))
        lock._count += 1
        return lock


def holder(target: Path) -> str:
    """Which other process holds the lock of a file or folder; empty where none does, or where it left the lock behind."""
    path = lock_of(target)
    text, owner = _read(path)
    ours = owner is not None and owner.token in {lock._owner.token for lock in _held.values()}
    return "" if text is None or ours or _why_abandoned(path, owner) else str(owner or "another process")


def _take(path: Path, what: str, patience: float) -> Owner:
    owner, end = _this_process(), time.monotonic() + patience
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
        if reason is None and time.monotonic() < end:
            time.sleep(min(PAUSE_SECONDS, patience))
            continue
        if reason is None:
            here = other is not None and other.machine == owner.machine
            advice = ", or end it" if here else f". If it is gone for certain, give --take_over or remove {path}"
            raise UserError(f"{what} is being written by {other or 'another process'}: wait until it has ended{advice}")
        logger.info("taking over the lock of %s from %s: %s", what, other or "another process", reason)
        _remove_abandoned(path, text, what)


def _create(path: Path, owner: Owner) -> None:
    """Create the lock file with its content; FileExistsError where there is one already."""
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
    """Text of a lock (None = there is no file) and its owner (None = unknown, because the file is not completely written)."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None, None
    except OSError:  # perhaps the file of another user
        return "", None
    try:
        return text, Owner(**json.loads(text))
    except (ValueError, TypeError):
        return text, None


def _why_abandoned(path: Path, owner: Owner | None) -> str | None:
    """The reason why a lock may be taken over; None = it may not."""
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
    """Remove a lock, unless it has changed since it was read, so that only one of several processes takes it over."""
    only_one = path.with_name(f"{path.name}.take_over")
    try:
        _create(only_one, _this_process())
    except FileExistsError as error:
        other_text, other = _read(only_one)
        if other_text is None or _why_abandoned(only_one, other):  # it was killed while it took the lock over
            only_one.unlink(missing_ok=True)
            return
        raise UserError(
            f"another process is taking over {what}: wait until it has ended. If there is none, remove {only_one}"
        ) from error
    try:
        if _read(path)[0] == text:
            path.unlink()
    finally:
        only_one.unlink(missing_ok=True)


def _seconds_since_touched(path: Path) -> float:
    """Seconds since a lock was touched, by the clock of the file system, which may be that of another machine."""
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
    """What distinguishes containers and boots whose hosts have the same name; empty where the system does not tell."""
    found = []
    with suppress(OSError):
        found.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        found.append(os.readlink("/proc/self/ns/pid"))
    return found


def _start_of(pid: int) -> int | None:
    """When a process of this machine started, in clock ticks after the boot; -1 = unknown, but it lives; None = it is gone."""
    if os.name == "nt":  # signal 0 would end the process there
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
    except PermissionError:  # the process of another user
        pass
    return UNKNOWN


@atexit.register
def _release_all() -> None:
    for lock in list(_held.values()):
        if lock._owner.pid == os.getpid():
            lock._count = 1
            lock.release()
