"""Makes one HTML file of a report: style and pictures are in it, nothing is loaded, no script runs."""

from __future__ import annotations

from datetime import datetime, timezone

from jinja2 import Environment, PackageLoader, StrictUndefined

from emim_nnunet import __version__
from emim_nnunet.report.collect import Report

FIRST_CARDS = 12  # cases that are shown at once


def html_of(report: Report) -> str:
    """The page of a report.

    Args:
        report: What :func:`emim_nnunet.report.collect.collect` gathered.

    Returns:
        A whole HTML document.
    """
    environment = Environment(
        loader=PackageLoader("emim_nnunet.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["first_cards"] = FIRST_CARDS
    pages = report.pages
    title = f"{pages[0].kind} report" if len(pages) == 1 else f"Report of {len(pages)} runs"
    written = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return environment.get_template("report.html.j2").render(
        report=report, title=title, version=__version__, written=written
    )
