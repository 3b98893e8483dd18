"""``emim_register``: let plain nnUNetv2_* commands find the trainers."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from emim_nnunet.cli._run import CommandParser, run
from emim_nnunet.trainer_search import register, unregister

EPILOG = """
Example:
  emim_register
  nnUNetv2_train 137 3d_fullres 0 -tr nnUNetTrainerEMIM -p nnUNetEMIMPlans
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse arguments and register."""
    parser = CommandParser(
        prog="emim_register",
        description="Write one small, guarded module into the installed nnunetv2, so that its commands find our trainers. "
        "Needed once per environment, and again after nnunetv2 was installed anew.",
        epilog=EPILOG,
    )
    parser.add_argument("--remove", action="store_true", help="remove the module again")
    if parser.parse_args(argv).remove:
        print("removed" if unregister() else "nothing was registered")
    else:
        print(f"registered: {register()}")


def entry() -> None:
    """Run the command and end the process with its exit code."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
