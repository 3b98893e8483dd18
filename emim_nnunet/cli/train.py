"""``emim_train``: nnUNetv2_train with the search path set."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from emim_nnunet.cli._run import TRACEBACK, TRACEBACK_HELP, run, show_tracebacks
from emim_nnunet.storage.locks import take_over_locks
from emim_nnunet.trainer_search import enable_search, own_trainers_first

HELP = """
emim_train takes exactly the arguments of nnUNetv2_train (above); -device is cuda where there is a GPU, otherwise cpu.
It finds the trainers of emim_nnunet without further ado:
{trainers}.

Example:
  emim_train 137 3d_fullres 0 -tr nnUNetTrainerEMIM -p nnUNetEMIMPlans

Besides, --take_over: go on where a process of another machine trained that is gone for certain (otherwise after minutes);
and --traceback: {traceback}.
"""
TAKE_OVER = "--take_over"


def main(argv: Sequence[str] | None = None) -> None:
    """Hand all arguments to nnU-Net."""
    from emim_nnunet.nnunet.commands import check_before_training, run_training_entry, search_trainers_with
    from emim_nnunet.training.request import check_command

    given = list(sys.argv[1:] if argv is None else argv)
    enable_search()
    search_trainers_with(own_trainers_first)
    check_before_training(check_command)
    take_over_locks(TAKE_OVER in given)
    show_tracebacks(TRACEBACK in given)
    given = [argument for argument in given if argument not in (TAKE_OVER, TRACEBACK)]
    sys.argv = [sys.argv[0], *given, *_device_arguments(given)]
    try:
        run_training_entry()
    except SystemExit as end:
        if end.code == 0:  # nnU-Net printed its help
            from emim_nnunet.trainers import __all__ as trainers

            print(HELP.format(trainers=", ".join(trainers), traceback=TRACEBACK_HELP))
        raise


def _device_arguments(given: Sequence[str]) -> list[str]:
    """What says to nnU-Net, whose default is cuda, which device the user's arguments mean by the rule of all our commands."""
    from emim_nnunet.devices import choose_device

    if {"-h", "--help"} & set(given):
        return []
    parser = argparse.ArgumentParser(add_help=False)  # takes -dev and -device=cpu too, as nnU-Net's does
    parser.add_argument("-device")
    parser.add_argument("-num_gpus", default="1")
    known, _ = parser.parse_known_args(given)
    return ["-device", choose_device(known.device or (None if known.num_gpus == "1" else "cuda"))]


def entry() -> None:
    """Run the command and end the process with its exit code."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
