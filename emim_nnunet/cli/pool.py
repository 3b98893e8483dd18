"""``emim_pool``: several data sets for one SSL stage."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from emim_nnunet.cli._run import CommandParser, add_take_over, dataset_id, run

EPILOG = """
Example:
  emim_pool -d 137 138 -o 300 --name BrainMRI
  emim_plan_and_preprocess -d 300
  nnUNetv2_train 300 3d_fullres all -tr nnUNetTrainerEMIMPretrain -p nnUNetEMIMPlans
  emim_plan_and_preprocess -d 137 --like 300
  emim_export RESULTS/fold_all -d 137 -p nnUNetEMIMPlans_like_dataset300 -c 3d_fullres -o weights.pth

Channels are matched by name (T1w, T1 and t1n are the same); a case that lacks a channel gets zeros, which every SSL method
treats as masked. Labels are not used. Crops are balanced over the data sets, whatever their sizes. Images are linked.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse arguments and pool."""
    parser = CommandParser(
        prog="emim_pool",
        description="Make one data set without labels out of several raw ones.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-d", nargs="+", type=dataset_id, required=True, help="ids or names of raw data sets")
    parser.add_argument("-o", type=int, required=True, help="id of the new one")
    parser.add_argument("--name", default="Pool", help="NAME in DatasetXXX_NAME (default: Pool)")
    parser.add_argument("--channels", nargs="+", help="names of the channels to keep (default: all that occur)")
    add_take_over(parser)
    arguments = parser.parse_args(argv)

    from emim_nnunet.dataset_conversion.pool import pool

    target, lines = pool(arguments.d, arguments.o, arguments.name, arguments.channels)
    print("\n".join(lines))
    print(f"{target}: next, emim_plan_and_preprocess -d {arguments.o}")


def entry() -> None:
    """Console script."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
