"""``emim_estimate``: what will this run cost, here?"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from emim_nnunet.cli._run import CommandParser, add_training_arguments, run

EPILOG = """
Example:
  emim_estimate 137 3d_fullres 0                                     # SSL stage and segmentation
  emim_estimate 137 3d_fullres all -tr nnUNetTrainerEMIMPretrain --json cost.json

Trains a few real steps on the preprocessed data in a temporary results folder, and leaves nothing there.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse arguments, measure, print."""
    parser = CommandParser(
        prog="emim_estimate",
        description="Hours, memory and disk of a planned run on this machine, from a few measured steps.",
        epilog=EPILOG,
    )
    add_training_arguments(parser, trainer="nnUNetTrainerEMIM")
    parser.add_argument("--steps", type=int, default=5, help="training steps to measure per stage (default: 5)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args(argv)
    if arguments.steps < 1:
        parser.error("--steps must be at least 1")
    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        parser.error(f"--json {arguments.json}: its folder does not exist")

    with tempfile.TemporaryDirectory(prefix="emim_estimate_") as results:
        os.environ["nnUNet_results"] = results
        _estimate(arguments)


def _estimate(arguments: argparse.Namespace) -> None:
    import torch

    from emim_nnunet.devices import choose_device
    from emim_nnunet.estimate import estimate
    from emim_nnunet.nnunet.commands import get_trainer_from_args, search_trainers_with
    from emim_nnunet.storage.files import write_json
    from emim_nnunet.trainer_search import own_trainers_first
    from emim_nnunet.training.request import check_request

    device = choose_device(arguments.device)
    check_request(arguments.dataset, arguments.configuration, arguments.fold, arguments.p)
    search_trainers_with(own_trainers_first)
    trainer = get_trainer_from_args(
        arguments.dataset,
        arguments.configuration,
        arguments.fold,
        arguments.tr,
        arguments.p,
        False,
        torch.device(device),
    )
    stages = []
    for stage in estimate(trainer, arguments.steps):
        stages.append(stage)
        print("\n".join(stage.lines()), flush=True)
    if len(stages) > 1:
        print(f"together: {sum(stage.hours for stage in stages):.1f} h")
    if arguments.json is not None:
        write_json(arguments.json, [stage.to_dict() for stage in stages])


def entry() -> None:
    """Run the command and end the process with its exit code."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
