"""``emim_trainers_path``: the folder for nnUNet_extTrainer."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from emim_nnunet.cli._run import CommandParser, run
from emim_nnunet.trainer_search import trainers_path

EPILOG = """
Example:
  export nnUNet_extTrainer=$(emim_trainers_path)
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Print the folder."""
    CommandParser(
        prog="emim_trainers_path",
        description="Print the folder that the variable nnUNet_extTrainer must name, for those who do not use emim_register.",
        epilog=EPILOG,
    ).parse_args(argv)
    print(trainers_path())


def entry() -> None:
    """Run the command and end the process with its exit code."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
