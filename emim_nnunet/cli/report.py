"""``emim_report``: one self-contained HTML page about runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from emim_nnunet.cli._run import CommandParser, run

EPILOG = """
Example:
  emim_report RESULTS/Dataset137_X/nnUNetTrainerEMIMPretrain__nnUNetEMIMPlans__3d_fullres/fold_0 -o report.html
  emim_report RESULTS/Dataset137_X comparison classifier/fold_0 -o report.html --anonymous

RUN is the folder of a fold (an SSL stage or a segmentation training), what emim_compare, emim_classify or emim_diagnose wrote,
a JSON file of nnU-Net's evaluation, or a folder that holds some of these. The page is one file: it holds its pictures, loads
nothing from anywhere and runs no script, so it opens from a mail. It shows slices of the images: with --anonymous cases are
numbered, but a picture stays a picture.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse arguments and write the report."""
    parser = CommandParser(prog="emim_report", description="Show runs on one self-contained HTML page.", epilog=EPILOG)
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="folder of a run, or one that holds runs")
    parser.add_argument("-o", dest="output", type=Path, required=True, help="HTML file to write")
    parser.add_argument("--anonymous", action="store_true", help="number cases instead of naming them")
    arguments = parser.parse_args(argv)

    from emim_nnunet.report import write_report

    write_report(arguments.runs, arguments.output, anonymous=arguments.anonymous)
    print(f"Written to {arguments.output}")


def entry() -> None:
    """Run the command and end the process with its exit code."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
