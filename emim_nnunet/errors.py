"""The one exception that means: the user can mend this."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in a file, an option or a plan that the user can mend.

    The message is one line: it names the file or option, says what was expected and how to mend it. Console commands print
    it without a traceback and exit with code 2.
    """
