"""The one exception that means: the user can mend this. Words for what the file system refuses, for numbers of things and for
long lists; tracebacks for a log.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from traceback import TracebackException

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: a stage wrote a checkpoint after SIGTERM or SIGINT; repeat with --c
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class UserError(ValueError):
    """A mistake in a file, an option or a plan that the user can mend.

    The message is one line: it names the file or option, says what was expected and how to mend it. Console commands print
    it without a traceback and exit with code 2.
    """


@contextmanager
def causes_logged(log: Callable[[str], object]) -> Iterator[None]:
    """Log where an error that became a :class:`UserError` comes from; the error itself goes on.

    Args:
        log: It is given a text of several lines. A :class:`UserError` that explains no other error is not logged.
    """
    try:
        yield
    except UserError as error:
        if error.__cause__ is not None:
            log(chained_traceback(error))
        raise


def chained_traceback(error: BaseException) -> str:
    """The traceback of an error and of those that it explains, as Python prints it.

    Args:
        error: The error.

    Returns:
        Several lines; files are named from the folder on that they are imported from, because a log may be shown to others.
    """
    own = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # an editable installation is not on the path
    folders = sorted((os.path.join(os.path.abspath(folder), "") for folder in [own, *sys.path]), key=len, reverse=True)
    told = TracebackException.from_exception(error)
    part: TracebackException | None = told
    while part is not None:
        for frame in part.stack:
            folder = next((folder for folder in folders if frame.filename.startswith(folder)), "")
            frame.filename = frame.filename.removeprefix(folder)
        part = part.__cause__ or part.__context__
    return "".join(told.format())


def describe_memory_error(error: BaseException) -> str | None:
    """One line that says which memory ran out; None where the error is another one."""
    text = str(error)
    first = next(iter(text.strip().splitlines()), type(error).__name__)
    if type(error).__name__ == "OutOfMemoryError":  # torch's; this module does not import it
        return f"the memory of the GPU ran out ({first})"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in text):
        return "the memory of this machine ran out"
    return None


def describe_os_error(error: OSError) -> str:
    """One line: the file, the reason, and for a full disk and a folder that was taken away what to do."""
    if error.strerror is None:  # not of the operating system
        return " ".join(str(error).split())
    if error.errno == errno.ENOENT and error.filename and (gone := _missing_folder(error.filename)):
        return f"{gone}: this folder does not exist, or no longer: was it moved or deleted meanwhile?"
    advice = " (free some space, then repeat the command)" if error.errno in DISK_FULL else ""
    return f"{error.filename}: {error.strerror}{advice}" if error.filename else f"{error.strerror}{advice}"


def _missing_folder(filename: str | bytes) -> str | None:
    """The folder of a file that is not there, the highest of several; None where the file itself is missing."""
    folder = os.path.dirname(os.path.abspath(os.fsdecode(filename)))
    missing = None
    while not os.path.isdir(folder):
        missing, folder = folder, os.path.dirname(folder)
    return missing


def counted(number_of: int, what: str) -> str:
    """A number of things in words: ``1 case``, ``2 cases``."""
    return f"{number_of} {what}{'' if number_of == 1 else 's'}"


def listed(names: Sequence[str], most: int = 5, *, separator: str = ", ", where: str = "") -> str:
    """The first names of a list, and how many more there are: ``a, b and 3 more``.

    Args:
        names: All of them.
        most: So many are named.
        separator: Between two names.
        where: Said after the number of those that are not named: where they can be found.
    """
    more = f" and {len(names) - most} more{where}" if len(names) > most else ""
    return separator.join(names[:most]) + more
