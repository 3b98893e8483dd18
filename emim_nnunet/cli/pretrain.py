"""An SSL stage on several machines: ``torchrun ... -m emim_nnunet.cli.pretrain``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from emim_nnunet.cli._run import CommandParser, add_take_over, add_training_arguments, run

EPILOG = """
Example:
  emim_pretrain 137 3d_fullres all                                # one process
  torchrun --standalone --nproc-per-node 4 -m emim_nnunet.cli.pretrain 137 3d_fullres all
  torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
      -m emim_nnunet.cli.pretrain 137 3d_fullres all

All machines need the same nnUNet_preprocessed and nnUNet_results. The batch size of the plans is that of all processes
together, so the result does not depend on their number, and --c may continue with another one.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse arguments, join the process group, train."""
    parser = CommandParser(
        prog="emim_pretrain",
        description="Run the SSL stage of a trainer alone, on as many processes as torchrun starts.",
        epilog=EPILOG,
    )
    add_training_arguments(parser, trainer="nnUNetTrainerEMIMPretrain")
    parser.add_argument("--c", action="store_true", help="continue")
    add_take_over(parser)
    arguments = parser.parse_args(argv)

    from emim_nnunet.devices import choose_device
    from emim_nnunet.distributed import process_group

    with process_group(choose_device(arguments.device)) as device:
        _train(arguments, device)


def _train(arguments: argparse.Namespace, device: object) -> None:
    from emim_nnunet.errors import UserError
    from emim_nnunet.nnunet.commands import get_trainer_from_args, maybe_load_checkpoint, search_trainers_with
    from emim_nnunet.trainer_search import own_trainers_first
    from emim_nnunet.training.request import check_request
    from emim_nnunet.training.ssl_trainer import SSLTrainer

    check_request(arguments.dataset, arguments.configuration, arguments.fold, arguments.p)
    search_trainers_with(own_trainers_first)
    trainer = get_trainer_from_args(
        arguments.dataset, arguments.configuration, arguments.fold, arguments.tr, arguments.p, arguments.c, device
    )
    if not isinstance(trainer, SSLTrainer):
        raise UserError(f"-tr {arguments.tr} is not the trainer of an SSL stage: use emim_train or nnUNetv2_train")
    maybe_load_checkpoint(trainer, arguments.c, False)
    trainer.run_training()


def entry() -> None:
    """Run the command and end the process with its exit code."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
