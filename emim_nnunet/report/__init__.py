"""One self-contained HTML page about runs: gathered from the files that they leave (``collect``), then rendered."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from emim_nnunet.errors import UserError
from emim_nnunet.report.collect import collect
from emim_nnunet.report.render import html_of
from emim_nnunet.storage.files import write_text

REPORT = "report.html"
logger = logging.getLogger(__name__)


def write_report(runs: Sequence[Path], output: Path, *, anonymous: bool = False) -> None:
    """Write the report of some runs.

    Args:
        runs: Folders of runs, or folders that hold some.
        output: The HTML file to write; an earlier one is replaced.
        anonymous: Whether cases are numbered instead of named.

    Raises:
        UserError: A path holds no run, or the file cannot be written there; nothing has been written then.
    """
    if output.is_dir():
        raise UserError(f"-o {output} is a folder: name the file to write, such as {output / REPORT}")
    if not output.absolute().parent.is_dir():
        raise UserError(f"-o {output}: the folder {output.absolute().parent} does not exist")
    write_text(output, html_of(collect(runs, anonymous=anonymous)))


def leave_report(run: Path, say: Callable[[str], object] = logger.info) -> None:
    """Write ``report.html`` into the folder of a run that is over; whatever goes wrong is one line, and harms nothing.

    Args:
        run: Its folder.
        say: Called with a line of text.
    """
    try:
        write_report([run], run / REPORT)
    except Exception as error:  # a page about a training must never be the reason that it fails
        reason = " ".join(str(error).split())[:300]
        say(f"No {REPORT} was written ({type(error).__name__}: {reason}); emim_report can be tried again")
    else:
        say(f"{REPORT}: the whole run on one page")
