"""``emim_train``: nnUNetv2_train with the search path set."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from emim_nnunet.cli._run import TRACEBACK, CommandParser, run
from emim_nnunet.storage.locks import take_over_locks
from emim_nnunet.trainer_search import enable_search, own_trainers_first

EPILOG = """
These are the arguments of nnUNetv2_train; -device is cuda where there is a GPU, otherwise cpu. nnU-Net's own trainers are found
as well, and without further ado those of emim_nnunet:
{trainers}.

Example:
  emim_train 137 3d_fullres 0 -tr nnUNetTrainerEMIM -p nnUNetEMIMPlans
"""
TAKE_OVER = "--take_over"
HELPS = {
    "dataset_name_or_id": "name or id of a preprocessed data set",
    "configuration": "configuration of its plans",
    "fold": "number of a fold, or all",
    "-tr": "trainer (default: nnUNetTrainer)",
    "-p": "plans (default: nnUNetPlans)",
    "-pretrained_weights": "checkpoint of nnU-Net that a segmentation starts from",
    "--npz": "save the probabilities of the final validation, for nnUNetv2_find_best_configuration",
    "--c": "continue from the newest checkpoint",
    "--val": "only run the final validation",
    "--val_best": "validate checkpoint_best instead of checkpoint_final, into the same folder",
    "--disable_checkpointing": "write no checkpoints",
    TAKE_OVER: "go on where a process of another machine trained that is gone for certain (otherwise after minutes)",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Hand all arguments to nnU-Net."""
    given = list(sys.argv[1:] if argv is None else argv)
    understood = nnunets_parser().parse_args(given)

    from emim_nnunet.devices import keep_to_thread_limit
    from emim_nnunet.nnunet.commands import check_before_training, run_training_entry, search_trainers_with
    from emim_nnunet.training.request import check_command

    def check(*request: Any) -> None:
        check_command(*request)
        keep_to_thread_limit()  # nnU-Net has set the number by now

    enable_search()
    search_trainers_with(own_trainers_first)
    check_before_training(check)
    take_over_locks(TAKE_OVER in given)
    given = [argument for argument in given if argument not in (TAKE_OVER, TRACEBACK)]
    sys.argv = [sys.argv[0], *given, "-device", _device(understood)]
    run_training_entry()


def nnunets_parser() -> argparse.ArgumentParser:
    """A parser that understands what ``nnUNetv2_train`` does, and our two options.

    It tells a mistake, and helps, at once: nnU-Net's own takes seconds to import before it looks at an argument.
    """
    epilog = EPILOG.format(trainers=",\n".join(_trainers()))
    parser = CommandParser(prog="emim_train", description="Train as nnUNetv2_train does.", epilog=epilog)
    for name in ("dataset_name_or_id", "configuration", "fold", "-tr", "-p", "-pretrained_weights"):
        parser.add_argument(name, help=HELPS[name])
    parser.add_argument("-num_gpus", type=int, default=1, help="number of GPUs (default: 1)")
    for name in ("--npz", "--c", "--val", "--val_best", "--disable_checkpointing", TAKE_OVER):
        parser.add_argument(name, action="store_true", help=HELPS[name])
    parser.add_argument("-device", choices=("cuda", "cpu", "mps"), help="device (default: cuda where there is one)")
    return parser


def _trainers() -> list[str]:
    """Trainers that are written, by the names of their files; to import them takes seconds."""
    spec = find_spec("emim_nnunet.trainers")
    places = [] if spec is None else spec.submodule_search_locations or []
    return sorted(file.stem for place in places for file in Path(place).glob("nnUNetTrainer*.py"))


def _device(arguments: argparse.Namespace) -> str:
    """What says to nnU-Net, whose default is cuda, which device is meant by the rule of all our commands."""
    from emim_nnunet.devices import choose_device

    return choose_device(arguments.device or (None if arguments.num_gpus == 1 else "cuda"))


def entry() -> None:
    """Run the command and end the process with its exit code."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
