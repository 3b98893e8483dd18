"""``emim_features``: vectors of cases and regions from any encoder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from emim_nnunet.cli._run import CommandParser, add_checkpoint_and_data, add_device_argument, run
from emim_nnunet.errors import UserError

STATISTICS = ("mean", "std", "before")
EPILOG = """
Takes checkpoints of nnU-Net (stock or not), of an SSL stage, exports, and nnssl files with an adaptation plan. Cases are those
that are preprocessed with the plans; the columns are explained in the JSON file that is written beside the table.

Example:
  emim_features RESULTS/.../fold_all/checkpoint_final.pth -d 137 -o features.csv
  emim_features CHECKPOINT -d 137 --regions segmentation -o features.csv
  emim_features CHECKPOINT -d 137 --regions ATLAS.nii.gz --region ventricles=4,43 --region thalami=10,49 -o features.parquet
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse arguments and write the table."""
    arguments = _parser().parse_args(argv)
    named = _named(arguments.region)
    if named and arguments.regions is None:
        raise UserError("--region names values of label maps: say with --regions where those are")
    _write(arguments, named)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="emim_features",
        description="Write what an encoder sees in each case, and in regions of it, as a table of numbers.",
        epilog=EPILOG,
    )
    add_checkpoint_and_data(parser)
    parser.add_argument(
        "-o",
        dest="output",
        type=Path,
        required=True,
        help="table to write: .csv, or .parquet where pyarrow is installed",
    )
    parser.add_argument(
        "--regions",
        metavar="WHAT",
        help="'segmentation', a folder of label maps CASE.nii.gz, or one for all cases, on the grid of the raw images",
    )
    parser.add_argument(
        "--region",
        action="append",
        default=[],
        metavar="NAME=VALUE,...",
        help="values that make a region (default: the classes, or every value for itself)",
    )
    parser.add_argument(
        "--statistic", nargs="+", choices=STATISTICS, default=["mean", "std"], help="(default: mean std)"
    )
    parser.add_argument(
        "--untrained", action="store_true", help="the network of the checkpoint before training: the control"
    )
    add_device_argument(parser)
    return parser


def _named(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Name -> values, of ``NAME=VALUE,...``."""
    named: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        numbers = values.split(",")
        if not name or not all(number.isdecimal() and 0 < int(number) < 1 << 31 for number in numbers):
            raise UserError(f"--region {text}: expected NAME=VALUE,VALUE,... with whole numbers from 1")
        if name in named or name == "body":
            raise UserError(f"--region {name} is there twice; 'body' is always there")
        named[name] = tuple(map(int, numbers))
    return named


def _write(arguments: argparse.Namespace, named: dict[str, tuple[int, ...]]) -> None:
    import torch

    from emim_nnunet.checkpoints.locate import find_checkpoint
    from emim_nnunet.checkpoints.source import read_source
    from emim_nnunet.classification.feature_table import check_table_file, write_features
    from emim_nnunet.classification.regions import Regions
    from emim_nnunet.datasets.dataset import PreprocessedDataset
    from emim_nnunet.devices import choose_device

    check_table_file(arguments.output)
    source = read_source(find_checkpoint(arguments.checkpoint, arguments.fold))
    plans, configuration = arguments.plans or source.plans_name, arguments.configuration or source.configuration
    if plans is None or configuration is None:
        raise UserError(f"{source.path} does not name its plans: say with -p and -c how the data were preprocessed")
    data = PreprocessedDataset.find(arguments.dataset_id, plans, configuration)
    data.require_cases()
    regions = None if arguments.regions is None else Regions(arguments.regions, named, data)
    rows, width, adapted = write_features(
        source,
        data,
        arguments.output,
        regions=regions,
        statistics=list(dict.fromkeys(arguments.statistic)),
        untrained=arguments.untrained,
        device=torch.device(choose_device(arguments.device)),
    )
    print(*adapted, *[f"{rows} rows of {len(data.cases)} cases, {width} features: {arguments.output}"], sep="\n")


def entry() -> None:
    """Run the command and end the process with its exit code."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
