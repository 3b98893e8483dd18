"""The one exception that means: the user can mend this. And words for what the file system refuses."""

from __future__ import annotations

import errno

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: a stage wrote a checkpoint after SIGTERM or SIGINT; repeat with --c
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class UserError(ValueError):
    """A mistake in a file, an option or a plan that the user can mend.

    The message is one line: it names the file or option, says what was expected and how to mend it. Console commands print
    it without a traceback and exit with code 2.
    """


def describe_os_error(error: OSError) -> str:
    """One line: the file, the reason, and for a full disk what to do."""
    if error.strerror is None:  # not of the operating system
        return " ".join(str(error).split())
    advice = " (free some space, then repeat the command)" if error.errno in DISK_FULL else ""
    return f"{error.filename}: {error.strerror}{advice}" if error.filename else f"{error.strerror}{advice}"
