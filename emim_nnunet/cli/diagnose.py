"""``emim_diagnose``: is this encoder collapsed?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from emim_nnunet.cli._run import (
    CommandParser,
    add_checkpoint_and_data,
    add_device_argument,
    add_take_over,
    run,
)
from emim_nnunet.settings.plans import limit_of

EXIT_WARNING = 1
EPILOG = """
Takes checkpoints of nnU-Net (stock or not), of an SSL stage, exports, and nnssl files with an adaptation plan. The network is
compared with an untrained twin on the same patches: rank alone is no quality, an untrained network has a high one.

Example:
  emim_diagnose RESULTS/Dataset137_X/nnUNetTrainer__nnUNetPlans__3d_fullres -d 137 -f 0
  emim_diagnose RESULTS/.../fold_0/checkpoint_final.pth -d 137 --compare OTHER.pth --probe -o report

Exit code: 0, 1 with --strict and a warning or an error of the network, 2 after a mistake in the arguments.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse arguments and diagnose."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if not 1 <= arguments.patches <= limit_of("patches"):
        parser.error(f"--patches must be at least 1 and at most {limit_of('patches')}")
    if _diagnose(arguments) in ("warning", "error") and arguments.strict:
        raise SystemExit(EXIT_WARNING)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="emim_diagnose",
        description="Measure whether the encoder of a checkpoint has collapsed.",
        epilog=EPILOG,
    )
    add_checkpoint_and_data(parser)
    parser.add_argument("--patches", type=int, default=32, help="patches to look at (default: 32)")
    parser.add_argument("--compare", type=Path, metavar="CHECKPOINT2", help="measure a second network too")
    parser.add_argument("--probe", action="store_true", help="read the labels off the features with ridge regression")
    parser.add_argument("--strict", action="store_true", help="exit with 1 after a warning")
    parser.add_argument("--seed", type=int, default=0, help="of crops and masks (default: 0)")
    parser.add_argument("-o", dest="output", type=Path, default=Path("emim_diagnose"), help="folder of the report")
    add_device_argument(parser)
    add_take_over(parser)
    return parser


def _diagnose(arguments: argparse.Namespace) -> str:
    """Measure, write the report and print it; the level of the verdict."""
    import torch

    from emim_nnunet.checkpoints.locate import find_checkpoint
    from emim_nnunet.checkpoints.source import read_source
    from emim_nnunet.devices import choose_device
    from emim_nnunet.diagnosis.diagnose import diagnose
    from emim_nnunet.diagnosis.probe_data import choose_cases
    from emim_nnunet.storage.locks import acquire

    device = choose_device(arguments.device)
    source = read_source(find_checkpoint(arguments.checkpoint, arguments.fold))
    compare = None if arguments.compare is None else read_source(find_checkpoint(arguments.compare))
    data = choose_cases(source, arguments.dataset_id, arguments.plans, arguments.configuration)
    held_out = {True: "held out in training", False: "NOT held out in training", None: "held out or not: unknown"}
    epochs = f"{source.epochs} epochs" if source.epochs else "epochs unknown"
    print(f"{source.path}: {source.kind}, {source.trainer or 'trainer unknown'}, {epochs}")
    print(
        f"{len(data.cases)} cases ({held_out[data.held_out]}), {arguments.patches} patches of {list(source.patch_size)}"
    )
    with acquire(arguments.output, f"the report {arguments.output}"):
        verdict, lines = diagnose(
            source,
            data,
            arguments.output,
            compare=compare,
            probe=arguments.probe,
            num_patches=arguments.patches,
            seed=arguments.seed,
            device=torch.device(device),
        )
    print(*lines, sep="\n")
    print(f"Verdict: {verdict.line}")
    print(f"Report: {arguments.output}")
    return verdict.level


def entry() -> None:
    """Run the command and end the process with its exit code."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
