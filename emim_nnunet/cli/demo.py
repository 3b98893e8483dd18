"""``emim_demo``: the whole way on brains that are drawn by code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from emim_nnunet.cli._run import CommandParser, add_device_argument, run

EPILOG = """
Example:
  emim_demo -o demo

Draws brains with gliomas, converts, plans, preprocesses, pretrains and segments; measures what a missing modality
costs, with and without modality dropout; compares pretrained and scratch with few labels; predicts; and ends with a report:
demo/report/report.html. All commands are printed, so that you can use them on your own data.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse arguments and run the demo."""
    parser = CommandParser(
        prog="emim_demo",
        description="The main job from raw MRI to a report, on brains drawn by code, in minutes on a CPU.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "-o", dest="output", type=Path, default=Path("emim_demo"), help="folder to write (default: emim_demo)"
    )
    add_device_argument(parser)
    parser.add_argument("--seed", type=int, default=0, help="seed of the brains and of all training (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace the result of an earlier demo")
    arguments = parser.parse_args(argv)

    from emim_nnunet.demo import run_demo
    from emim_nnunet.devices import choose_device

    device = choose_device(arguments.device)
    run_demo(arguments.output, device=device, seed=arguments.seed, overwrite=arguments.overwrite)


def entry() -> None:
    """Run the command and end the process with its exit code."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
