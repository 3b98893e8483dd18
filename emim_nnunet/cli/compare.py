"""``emim_compare``: several SSL methods under one protocol."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from emim_nnunet.cli._run import (
    CommandParser,
    add_configuration_arguments,
    add_device_argument,
    add_take_over,
    dataset_id,
    run,
)

EPILOG = """
Example:
  emim_compare 137 3d_fullres -o comparison --labelled 2 4 --seeds 0 1 2 --arms scratch mim emim moco moco_zca
  emim_compare 137 3d_fullres -o comparison --arms scratch emim 'no_pbt=EMIM,barlow_weight=0'

With each seed, every arm pretrains on the same cases (all without label, and the labelled ones that are not for the test) with
as many floating point operations as the reference arm would spend by the plans, is fine-tuned with the same number of steps
(at the peak rate for pretrained encoders or that for scratch) and evaluated with a frozen encoder on the same few labelled
cases, and is tested on the same cases. The seed chooses test cases and labelled cases. The emim block of the configuration sets
the budgets; give the fine-tuning at least 1,000 steps (it has 250,000 where the block says nothing). A comparison that was
interrupted goes on where it was when the command is repeated. With nnUNet_n_proc_DA=0 the fine-tuning is exactly seeded.
"""

EVALUATE = ("finetune", "linear")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse arguments and run the comparison."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    for name in ("labelled", "seeds"):
        values = getattr(arguments, name)
        if min(values) < (name == "labelled") or len(set(values)) < len(values):
            parser.error(f"--{name}: different whole numbers, at least {int(name == 'labelled')}")
    if arguments.jobs < 1:
        parser.error("--jobs must be at least 1")

    from emim_nnunet.compare import Protocol, compare
    from emim_nnunet.compare.arms import DEFAULT_ARMS, parse_arms
    from emim_nnunet.devices import choose_device

    protocol = Protocol(
        dataset_id=arguments.dataset,
        configuration=arguments.configuration,
        plans_name=arguments.p,
        arms=parse_arms(arguments.arms or DEFAULT_ARMS),
        counts=sorted(arguments.labelled),
        seeds=arguments.seeds,
        evaluations=arguments.evaluate,
        num_test=arguments.num_test,
        reference=arguments.reference,
        device=choose_device(arguments.device),
        jobs=arguments.jobs,
    )
    page = compare(protocol, arguments.output, arguments.json)
    print(page.read_text())
    print(f"Written to {arguments.output}")


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
        "--arms", nargs="+", help="names, or NAME=METHOD,KEY=VALUE,... (default: the six of the papers)"
    )
    parser.add_argument(
        "--labelled", type=int, nargs="+", default=[2, 4], help="labelled cases to learn from (default: 2 4)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument(
        "--evaluate",
        nargs="*",
        default=EVALUATE,
        choices=EVALUATE,
        help="with weights trained or frozen (default: both)",
    )
    parser.add_argument(
        "--num_test", type=int, help="labelled cases for the test (default: validation cases of the seed's fold)"
    )
    parser.add_argument("--reference", help="arm whose planned schedule is the compute budget (default: the first)")
    add_device_argument(parser)
    parser.add_argument("--jobs", type=int, default=1, help="commands at the same time (default: 1)")
    add_take_over(parser)
    return parser


def entry() -> None:
    """Run the command and end the process with its exit code."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
