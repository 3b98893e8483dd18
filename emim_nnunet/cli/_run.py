"""How every console command of this package starts and ends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from emim_nnunet.errors import UserError

EXIT_USER_ERROR = 2


def run(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Call ``main`` and turn a :class:`UserError` into one line on stderr.

    Args:
        main: The command; takes the arguments (``None``: those of the process).
        argv: Arguments without the program name.

    Returns:
        The exit code: 0, or 2 after a user error (argparse itself also exits with 2).
    """
    try:
        main(argv)
    except UserError as error:
        program = Path(sys.argv[0]).name
        print(f"{program}: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0
