"""``emim_compare``: several SSL methods under one protocol."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from emim_nnunet.cli._run import (
    CommandParser,
    add_configuration_arguments,
    add_device_argument,
    add_take_over,
    dataset_id,
    run,
)

if TYPE_CHECKING:
    from emim_nnunet.compare import Protocol

EPILOG = """
Example:
  emim_compare 137 3d_fullres -o comparison --labelled 2 4 --seeds 0 1 2 --arms scratch mim emim moco moco_zca
  emim_compare 137 3d_fullres -o comparison --labelled 1 2 4 8 16 --draws 16 --arms scratch emim 'openmind=file:model.pth'
  emim_compare 137 3d_fullres -o comparison --arms scratch emim 'no_pbt=EMIM,barlow_weight=0'

With each seed, every arm pretrains on the same cases (all without label, and the labelled ones that are not for the test) with
as many floating point operations as the reference arm would spend by the plans. Its encoder is fine-tuned with the same number
of steps (at the peak rate for pretrained encoders or that for scratch) and evaluated with frozen weights on the same few
labelled cases, and is tested on the same cases. The seed chooses the test cases. With --draws the encoders of the seeds are
fine-tuned in turn on other labelled cases, which is what differences need most: pretrain seldom, fine-tune often. The emim
block of the configuration sets the budgets; give the fine-tuning at least 1,000 steps (it has 250,000 without).
A comparison that was interrupted goes on where it was when the command is repeated, with more draws too. On a cluster,
--list_jobs lists its parts, --only runs one, and the command without either collects them. With nnUNet_n_proc_DA=0 the
fine-tuning is exactly seeded.
"""

EVALUATE = ("finetune", "linear", "linear_first")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse arguments and run the comparison."""
    arguments = read_arguments(argv)

    from emim_nnunet.compare import compare, list_jobs, run_job
    from emim_nnunet.devices import choose_device

    protocol = protocol_of(arguments, choose_device(arguments.device))
    if arguments.list_jobs:
        for number, (job, finished) in enumerate(list_jobs(protocol, arguments.output)):
            print(number, job.name, "finished" if finished else "open")
    elif arguments.only is not None:
        print(f"Finished: {run_job(protocol, arguments.output, arguments.only).name}")
    else:
        page = compare(protocol, arguments.output, arguments.json)
        print(page.read_text())
        print(f"Written to {arguments.output}")


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse and check the arguments; a mistake ends the process as argparse does."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    for name in ("labelled", "seeds"):
        values = getattr(arguments, name)
        if min(values) < (name == "labelled") or len(set(values)) < len(values):
            parser.error(f"--{name}: different whole numbers, at least {int(name == 'labelled')}")
    if arguments.jobs < 1:
        parser.error("--jobs must be at least 1")
    _check_draws(parser, arguments)

    return arguments


def protocol_of(arguments: argparse.Namespace, device: str) -> Protocol:
    """The protocol that arguments ask for.

    Args:
        arguments: Of :func:`read_arguments`.
        device: The device to train on.

    Raises:
        UserError: An arm is not as it must be.
    """
    from emim_nnunet.compare import Protocol
    from emim_nnunet.compare.arms import DEFAULT_ARMS, parse_arms

    return Protocol(
        dataset_id=arguments.dataset,
        configuration=arguments.configuration,
        plans_name=arguments.p,
        arms=parse_arms(arguments.arms or DEFAULT_ARMS),
        counts=sorted(arguments.labelled),
        seeds=arguments.seeds,
        num_draws=arguments.draws or len(arguments.seeds),
        evaluations=arguments.evaluate,
        num_test=arguments.num_test,
        reference=arguments.reference,
        until=arguments.until,
        device=device,
        jobs=arguments.jobs,
    )


def _check_draws(parser: CommandParser, arguments: argparse.Namespace) -> None:
    if arguments.draws is not None and arguments.draws < len(arguments.seeds):
        parser.error(f"--draws must be at least the number of --seeds, {len(arguments.seeds)}")
    if arguments.until is not None and not 0 < arguments.until < 1:
        parser.error("--until must be a difference of Dice above 0 and below 1, such as 0.03")
    if arguments.until is not None and arguments.draws is None:
        parser.error("--until needs --draws, the largest number of draws")


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="emim_compare",
        description="Compare SSL methods and training from scratch under one protocol.",
        epilog=EPILOG,
    )
    parser.add_argument("dataset", type=dataset_id, help="id or name of a preprocessed data set")
    add_configuration_arguments(parser)
    parser.add_argument("-o", dest="output", type=Path, required=True, help="folder for everything that is written")
    parser.add_argument("--json", type=Path, help="another place for the results; a .md is written beside it")
    parser.add_argument(
        "--arms",
        nargs="+",
        help="names, NAME=METHOD,KEY=VALUE,... or NAME=file:CHECKPOINT (default: the six of the papers)",
    )
    parser.add_argument(
        "--labelled", type=int, nargs="+", default=[2, 4], help="labelled cases to learn from (default: 2 4)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the pretraining (default: 0 1 2)")
    parser.add_argument(
        "--draws", type=int, help="draws of labelled cases, for which the seeds take turns (default: one per seed)"
    )
    parser.add_argument(
        "--until",
        type=float,
        metavar="DIFFERENCE",
        help="end the draws once the first pretrained arm is known to differ from scratch, or to differ by less than this",
    )
    parser.add_argument(
        "--evaluate",
        nargs="*",
        default=EVALUATE[:2],
        choices=EVALUATE,
        help="with weights trained or frozen (default: both), or both parts of nnUNetTrainerLinearFirst, scratch too",
    )
    parser.add_argument(
        "--num_test", type=int, help="labelled cases for the test (default: validation cases of the seed's fold)"
    )
    parser.add_argument("--reference", help="arm whose planned schedule is the compute budget (default: the first)")
    add_device_argument(parser)
    parser.add_argument("--jobs", type=int, default=1, help="commands at the same time (default: 1)")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--list_jobs", action="store_true", help="list the parts that --only can run, and run nothing")
    part.add_argument(
        "--only", metavar="JOB", help="run one part, a name or number of --list_jobs, and write no report"
    )
    add_take_over(parser)
    return parser


def entry() -> None:
    """Run the command and end the process with its exit code."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
