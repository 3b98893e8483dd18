"""``emim_plan_and_preprocess``: nnU-Net's planning plus the settings of the SSL stage."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from emim_nnunet.cli._run import CommandParser, add_shards, add_take_over, dataset_id, run
from emim_nnunet.errors import UserError

if TYPE_CHECKING:
    from emim_nnunet.planners.options import Options

EPILOG = """
Example:
  emim_plan_and_preprocess -d 137
  emim_plan_and_preprocess -d 137 -c 3d_fullres -gpu_memory_target 11 -np 4
  emim_plan_and_preprocess -d 137 --shard 1/8    # of what --no_pp has planned; then 2/8 ... 8/8, and --finish

Writes nnUNetEMIMPlans.json: nnU-Net's ResEnc plan with an `emim` block per configuration.
Where several cases are of one patient and were not converted by emim_convert, --patients keeps them in one fold.
Cases without label, in imagesUnlabelled beside imagesTr, are preprocessed for the SSL stage.
Cases that are prepared already are not done again: a run that was interrupted goes on when the command is repeated.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse arguments, then plan and preprocess one data set after the other."""
    arguments = read_arguments(argv)

    from emim_nnunet.datasets.splits import read_patients_csv
    from emim_nnunet.planners.plan_and_preprocess import CasesFailed, plan_and_preprocess

    if arguments.patients and len(arguments.d) > 1:
        raise UserError("--patients goes with one data set: the same ids in another one are other patients")
    patients = read_patients_csv(arguments.patients) if arguments.patients else None
    options = options_of(arguments)
    failures = []
    for number in arguments.d:
        try:
            plan_and_preprocess(number, options, patients)
        except CasesFailed as error:  # the other data sets come all the same
            failures.append(f"data set {number}: {error}")
    if failures:
        raise UserError("; ".join(failures))


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments; a mistake ends the process as argparse does."""
    return _parser().parse_args(argv)


def options_of(arguments: argparse.Namespace) -> Options:
    """What arguments ask for.

    Args:
        arguments: Of :func:`read_arguments`.

    Raises:
        UserError: A value is out of range, two of them contradict each other, or ``--like`` names nothing to plan like.
    """
    from emim_nnunet.planners.options import Options
    from emim_nnunet.planners.transfer import read_like

    like = read_like(arguments.like, arguments.like_plans, arguments.like_configuration) if arguments.like else None
    return Options(
        configurations=arguments.c,
        gpu_memory_target=arguments.gpu_memory_target,
        num_processes_fingerprint=arguments.npfp,
        num_processes=arguments.np,
        plans_name=arguments.overwrite_plans_name,
        target_spacing=arguments.overwrite_target_spacing,
        like=like,
        backbone=arguments.backbone,
        like_spacing=arguments.like_spacing,
        verify_integrity=arguments.verify_dataset_integrity,
        clean=arguments.clean,
        preprocess=not arguments.no_pp,
        body=not arguments.no_body,
        verbose=arguments.verbose,
        keep_going=arguments.keep_going,
        add=arguments.add,
        shard=arguments.shard,
        finish=arguments.finish,
    )


def _parser() -> argparse.ArgumentParser:
    """What the command understands; nnU-Net's letters keep their meaning."""
    parser = CommandParser(
        prog="emim_plan_and_preprocess",
        description="Extract the fingerprint, plan both stages and preprocess.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-d", nargs="+", type=dataset_id, required=True, help="ids or names of data sets")
    parser.add_argument("-c", nargs="+", default=["2d", "3d_fullres", "3d_lowres"], help="configurations to preprocess")
    parser.add_argument(
        "-gpu_memory_target", type=float, default=None, help="GB that both stages must fit (default: 24)"
    )
    parser.add_argument("-np", type=int, default=4, help="workers of the preprocessing (default: 4)")
    parser.add_argument("-npfp", type=int, default=8, help="workers of the fingerprint extraction (default: 8)")
    parser.add_argument("-overwrite_plans_name", default=None, help="other name than nnUNetEMIMPlans")
    parser.add_argument("-overwrite_target_spacing", type=float, nargs=3, default=None, help="of 3d_fullres, in mm")
    parser.add_argument(
        "--backbone",
        choices=["primus_s", "primus_b", "primus_m", "primus_l"],
        help="a transformer of nnU-Net for the 3D configurations (default: its residual U-Net)",
    )
    parser.add_argument(
        "--like", metavar="SOURCE", help="plan like another data set (id) or checkpoint, so that its encoder fits"
    )
    parser.add_argument("--like_plans", default="nnUNetEMIMPlans", help="plans of that data set (default: %(default)s)")
    parser.add_argument(
        "--like_configuration", default="3d_fullres", help="configuration to take over (default: %(default)s)"
    )
    parser.add_argument("--like_spacing", action="store_true", help="take over the spacing too (default: own spacing)")
    parser.add_argument(
        "--patients",
        type=Path,
        metavar="FILE",
        help="CSV with columns case and patient: cases of a patient stay in one fold (where the conversion does not know them)",
    )
    parser.add_argument("--verify_dataset_integrity", action="store_true", help="recommended once per data set")
    parser.add_argument("--clean", action="store_true", help="extract the fingerprint anew after the data changed")
    parser.add_argument("--no_pp", action="store_true", help="only plan")
    parser.add_argument(
        "--no_body", action="store_true", help="count everything as body where the background is not 0, as nnU-Net does"
    )
    parser.add_argument(
        "--keep_going", action="store_true", help="leave out cases that cannot be used, and exit with 2 at the end"
    )
    parser.add_argument("--add", action="store_true", help="take in new cases of the raw data set, keep the plans")
    add_shards(parser, "do only every N-th case, with --no_pp only of the fingerprint")
    parser.add_argument("--verbose", action="store_true", help="nnU-Net's verbose output")
    add_take_over(parser)
    return parser


def entry() -> None:
    """Console script."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
