"""``emim_export``: pretrained weights for the stock nnUNetTrainer."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from emim_nnunet.cli._run import run

EPILOG = """
Example:
  emim_export RESULTS/nnUNetTrainerEMIMPretrain__nnUNetEMIMPlans__3d_fullres/fold_all \\
      -d 137 -p nnUNetEMIMPlans -c 3d_fullres -o weights.pth
  nnUNetv2_train 137 3d_fullres 0 -p nnUNetEMIMPlans -pretrained_weights weights.pth

-d, -p and -c name the data set, plans and configuration that will be fine-tuned.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse arguments and export."""
    parser = argparse.ArgumentParser(
        prog="emim_export",
        description="Write the encoder of an SSL checkpoint as weights that any nnU-Net trainer loads.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help="SSL checkpoint, or the folder of its fold")
    parser.add_argument("-d", dest="dataset_id", type=int, required=True, help="id of the target data set")
    parser.add_argument(
        "-p", dest="plans", default="nnUNetEMIMPlans", help="plans of the target (default: nnUNetEMIMPlans)"
    )
    parser.add_argument("-c", dest="configuration", default="3d_fullres", help="configuration (default: 3d_fullres)")
    parser.add_argument("-o", dest="output", type=Path, required=True, help="file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    arguments = parser.parse_args(argv)

    from emim_nnunet.checkpoints.export import export
    from emim_nnunet.checkpoints.locate import find_checkpoint, read_target
    from emim_nnunet.errors import UserError

    if arguments.output.exists() and not arguments.overwrite:
        raise UserError(f"-o {arguments.output} exists: choose another name, or --overwrite")
    if not arguments.output.absolute().parent.is_dir():
        raise UserError(f"-o {arguments.output}: its folder does not exist")
    checkpoint = find_checkpoint(arguments.checkpoint)
    plans, dataset_json = read_target(arguments.dataset_id, arguments.plans)
    summary = export(checkpoint, plans, arguments.configuration, dataset_json, arguments.output)
    state = "finished" if summary.finished else "NOT finished"
    print(f"{checkpoint}: {summary.method}, {summary.epochs} epochs ({state}), {summary.num_cases} cases")
    for line in summary.adaptations:
        print(line)
    print(f"wrote {arguments.output}: {summary.num_tensors} encoder tensors, the decoder is fresh. Use it with")
    print(
        f"  nnUNetv2_train {arguments.dataset_id} {arguments.configuration} FOLD -p {arguments.plans} "
        f"-pretrained_weights {arguments.output}"
    )


def entry() -> None:
    """Console script."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
