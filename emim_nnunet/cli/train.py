"""``emim_train``: nnUNetv2_train with the search path set."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from emim_nnunet.cli._run import run
from emim_nnunet.registration import enable_search, look_up_own_trainers_first

HELP = """
emim_train takes exactly the arguments of nnUNetv2_train (above) and finds the trainers of emim_nnunet without further ado:
{trainers}.

Example:
  emim_train 137 3d_fullres 0 -tr nnUNetTrainerEMIM -p nnUNetEMIMPlans
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Hand all arguments to nnU-Net."""
    from nnunetv2.run import run_training

    from emim_nnunet.training.request import check_requests_of

    enable_search()
    look_up_own_trainers_first(run_training)
    check_requests_of(run_training)
    if argv is not None:
        sys.argv = [sys.argv[0], *argv]
    try:
        run_training.run_training_entry()
    except SystemExit as end:
        if end.code == 0:  # nnU-Net printed its help
            from emim_nnunet.trainers import __all__ as trainers

            print(HELP.format(trainers=", ".join(trainers)))
        raise


def entry() -> None:
    """Console script."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
