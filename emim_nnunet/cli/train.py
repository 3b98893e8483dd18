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
    given = list(sys.argv[1:] if argv is None else argv)
    understood = None if {"-h", "--help"} & set(given) else nnunets_parser().parse_args(given)

    from emim_nnunet.nnunet.commands import check_before_training, run_training_entry, search_trainers_with
    from emim_nnunet.training.request import check_command

    enable_search()
    search_trainers_with(own_trainers_first)
    check_before_training(check_command)
    take_over_locks(TAKE_OVER in given)
    show_tracebacks(TRACEBACK in given)
    given = [argument for argument in given if argument not in (TAKE_OVER, TRACEBACK)]
    device = [] if understood is None else ["-device", _device(understood)]
    sys.argv = [sys.argv[0], *given, *device]
    try:
        run_training_entry()
    except SystemExit as end:
        if end.code == 0:  # nnU-Net printed its help
            from emim_nnunet.trainers import __all__ as trainers

            print(HELP.format(trainers=", ".join(trainers), traceback=TRACEBACK_HELP))
        raise


def nnunets_parser() -> argparse.ArgumentParser:
    """A parser that understands what ``nnUNetv2_train`` does, and our two options.

    It tells a mistake at once: nnU-Net's own takes seconds to import before it looks at an argument.
    """
    parser = argparse.ArgumentParser(prog="emim_train", add_help=False)
    for name in ("dataset_name_or_id", "configuration", "fold"):
        parser.add_argument(name)
    for name in ("-tr", "-p", "-pretrained_weights"):
        parser.add_argument(name)
    parser.add_argument("-num_gpus", type=int, default=1)
    for name in ("--npz", "--c", "--val", "--val_best", "--disable_checkpointing", TAKE_OVER, TRACEBACK):
        parser.add_argument(name, action="store_true")
    parser.add_argument("-device", choices=("cuda", "cpu", "mps"))
    return parser


def _device(arguments: argparse.Namespace) -> str:
    """What says to nnU-Net, whose default is cuda, which device is meant by the rule of all our commands."""
    from emim_nnunet.devices import choose_device

    return choose_device(arguments.device or (None if arguments.num_gpus == 1 else "cuda"))


def entry() -> None:
    """Run the command and end the process with its exit code."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
