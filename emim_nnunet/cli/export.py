"""``emim_export``: pretrained weights for the stock nnUNetTrainer."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from emim_nnunet.cli._run import PLANS_NAME, CommandParser, dataset_id, run

if TYPE_CHECKING:
    from emim_nnunet.checkpoints.export import ExportSummary

EPILOG = """
Example:
  emim_export RESULTS/nnUNetTrainerEMIMPretrain__nnUNetEMIMPlans__3d_fullres/fold_all \\
      -d 137 -p nnUNetEMIMPlans -c 3d_fullres -o weights.pth
  nnUNetv2_train 137 3d_fullres 0 -p nnUNetEMIMPlans -pretrained_weights weights.pth

-d, -p and -c name the data set, plans and configuration that will be fine-tuned. To keep or share the encoder alone, in half
precision a sixth of a checkpoint (emim_export takes that file again, for any target):

  emim_export RESULTS/.../fold_all --encoder_only --half -o encoder.pth

To publish it, as a folder for Hugging Face's Hub with a model card, which nnU-Net's newer commands take:

  emim_export RESULTS/.../fold_all --hub DIR --licence cc-by-4.0
  hf upload OWNER/NAME DIR
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse arguments and export."""
    parser = CommandParser(
        prog="emim_export",
        description="Write the encoder of an SSL checkpoint as weights that any nnU-Net trainer loads.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "checkpoint",
        type=Path,
        help="SSL checkpoint, the folder of its fold, an exported encoder, a folder of --hub, or hf://OWNER/NAME",
    )
    parser.add_argument("-d", dest="dataset_id", type=dataset_id, help="id or name of the target data set")
    parser.add_argument("-p", dest="plans", default=PLANS_NAME, help="plans of the target (default: %(default)s)")
    parser.add_argument("-c", dest="configuration", default="3d_fullres", help="configuration (default: 3d_fullres)")
    parser.add_argument("-o", dest="output", type=Path, help="file to write")
    parser.add_argument("--hub", type=Path, metavar="DIR", help="write a folder to share instead, with a model card")
    parser.add_argument("--licence", help="with --hub: licence of the weights, as the Hub writes it (cc-by-4.0)")
    parser.add_argument(
        "--encoder_only", action="store_true", help="write the encoder alone, for no target in particular"
    )
    parser.add_argument("--half", action="store_true", help="with --encoder_only or --hub: in float16")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    arguments = parser.parse_args(argv)
    _check_options(parser, arguments)
    if arguments.hub is not None:
        _write_hub(arguments)
        return

    from emim_nnunet.checkpoints.export import export, export_encoder
    from emim_nnunet.checkpoints.locate import find_checkpoint
    from emim_nnunet.datasets.dataset import PreprocessedDataset
    from emim_nnunet.errors import UserError

    if arguments.output.exists() and not arguments.overwrite:
        raise UserError(f"-o {arguments.output} exists: choose another name, or --overwrite")
    if not arguments.output.absolute().parent.is_dir():
        raise UserError(f"-o {arguments.output}: its folder does not exist")
    checkpoint = find_checkpoint(arguments.checkpoint)
    if arguments.encoder_only:
        summary = export_encoder(checkpoint, arguments.output, half=arguments.half)
    else:
        target = PreprocessedDataset.find(arguments.dataset_id, arguments.plans, arguments.configuration)
        summary = export(checkpoint, target.plans, target.configuration, target.dataset_json, arguments.output)
    _describe(checkpoint, summary)
    size = f"{arguments.output.stat().st_size / 1e6:.1f} MB"
    if arguments.encoder_only:
        print(f"wrote {arguments.output}: {summary.num_tensors} encoder tensors, {size}")
        return
    print(f"wrote {arguments.output}: {summary.num_tensors} encoder tensors, the decoder is fresh, {size}. Use it with")
    print(
        f"  nnUNetv2_train {arguments.dataset_id} {arguments.configuration} FOLD -p {arguments.plans} "
        f"-pretrained_weights {arguments.output}"
    )


def _check_options(parser: CommandParser, arguments: argparse.Namespace) -> None:
    alone = arguments.encoder_only or arguments.hub is not None
    if arguments.hub is not None and (arguments.output is not None or arguments.encoder_only):
        parser.error("--hub goes without -o and --encoder_only: it writes a folder with the encoder alone")
    if arguments.hub is None and arguments.output is None:
        parser.error("-o is needed: the file to write (or --hub)")
    if not alone and arguments.dataset_id is None:
        parser.error("-d is needed: the id of the data set that will be fine-tuned (or --encoder_only)")
    if arguments.half and not alone:
        parser.error("--half goes with --encoder_only or --hub")
    if arguments.licence is not None and arguments.hub is None:
        parser.error("--licence goes with --hub")


def _describe(checkpoint: Path, summary: ExportSummary) -> None:
    states = {True: " (finished)", False: " (NOT finished)", None: ""}
    cases = "" if summary.num_cases is None else f", {summary.num_cases} cases"
    print(f"{checkpoint}: {summary.method}, {summary.epochs} epochs{states[summary.finished]}{cases}")
    for line in summary.adaptations:
        print(line)


def _write_hub(arguments: argparse.Namespace) -> None:
    from emim_nnunet.checkpoints.hub import export_hub
    from emim_nnunet.checkpoints.locate import find_checkpoint

    checkpoint = find_checkpoint(arguments.checkpoint)
    summary = export_hub(checkpoint, arguments.hub, half=arguments.half, licence=arguments.licence)
    _describe(checkpoint, summary)
    print(f"wrote {arguments.hub}: read its README.md, complete what it cannot know, then share it with")
    print(f"  hf upload OWNER/NAME {arguments.hub}")


def entry() -> None:
    """Run the command and end the process with its exit code."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
