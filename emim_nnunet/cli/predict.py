"""``emim_predict``: nnU-Net's prediction of images as they are, whatever modalities they lack."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from emim_nnunet.cli._run import PLANS_NAME, CommandParser, add_device_argument, add_take_over, run
from emim_nnunet.cli.convert import pair

if TYPE_CHECKING:
    from emim_nnunet.prediction.model import Settings, TrainedModel

EPILOG = """
Example:
  emim_predict -i IMAGES -o OUT -d 137 -c 3d_fullres -f 0
  emim_predict -i IMAGES -o OUT -m RESULTS/Dataset137_X/nnUNetTrainerEMIM__nnUNetEMIMPlans__3d_fullres -f 0 1 2 3 4
  emim_predict -i HOSPITAL -o OUT -d 137 -c 3d_fullres -f 0 --channel T1={case}/T1.nii.gz --channel Flair={case}/FLAIR.nii.gz
  emim_predict -i IMAGES -o FILLED -d 137 -c 3d_fullres --missing     # then: nnUNetv2_predict -i FILLED ...

Images are found in all folders below IMAGES: CASE_0000.nii.gz as nnU-Net names them, CASE_T1.nii.gz, or CASE/T1.nii.gz.
Zeros stand for a modality that a case lacks; missing_modalities.csv says what each one lacked. A command that was
interrupted goes on when it is repeated.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse arguments and predict."""
    parser = CommandParser(
        prog="emim_predict", description="Segment with what the patient has: nnU-Net's prediction.", epilog=EPILOG
    )
    parser.add_argument("-i", dest="source", type=Path, required=True, metavar="FOLDER", help="images, as they are")
    parser.add_argument("-o", dest="output", type=Path, required=True, metavar="OUT", help="folder to write")
    add_model_arguments(parser, folds=["0", "1", "2", "3", "4"])
    parser.add_argument(
        "--channel",
        action="append",
        default=[],
        metavar="NAME=PATTERN",
        help="which files are a modality, as for `emim_convert folders`; other files are left alone",
    )
    parser.add_argument(
        "--resample-to", "--resample_to", metavar="CHANNEL", help="put images on other grids onto that of this modality"
    )
    parser.add_argument(
        "--missing", action="store_true", help="only write the input of plain nnUNetv2_predict, zeros filled in"
    )
    parser.add_argument("--save_probabilities", action="store_true", help="write class probabilities too")
    parser.add_argument("-npp", type=int, default=3, help="processes that preprocess (default: 3)")
    parser.add_argument("-nps", type=int, default=3, help="processes that write (default: 3)")
    add_prediction_arguments(parser)
    add_take_over(parser)
    arguments = parser.parse_args(argv)

    from emim_nnunet.prediction.predict import fill, predict

    model = chosen_model(parser, arguments, arguments.folds)
    how = {"patterns": [pair("--channel", text) for text in arguments.channel], "resample_to": arguments.resample_to}
    if arguments.missing:
        rows = fill(model, arguments.source, arguments.output, num_threads=arguments.npp, **how)
    else:
        rows = predict(
            model,
            arguments.source,
            arguments.output,
            chosen_settings(arguments),
            save_probabilities=arguments.save_probabilities,
            num_preprocessing=arguments.npp,
            num_export=arguments.nps,
            **how,
        )
    incomplete = sum(bool(row["lacks"]) for row in rows)
    print(f"{len(rows)} cases, {incomplete} of them lack modalities: {arguments.output}")


def add_model_arguments(parser: argparse.ArgumentParser, *, folds: list[str]) -> None:
    """Add what names a trained model, as in nnUNetv2_predict: -d, -c, -p, -tr or -m, and -f and -chk.

    Args:
        parser: The one that gets them.
        folds: The default of -f.
    """
    parser.add_argument("-d", dest="dataset", help="id or name of the data set of the model")
    parser.add_argument("-c", dest="configuration", help="configuration, for example 3d_fullres")
    parser.add_argument("-p", dest="plans", default=PLANS_NAME, help="plans (default: %(default)s)")
    parser.add_argument("-tr", dest="trainer", default="nnUNetTrainerEMIM", help="trainer (default: %(default)s)")
    parser.add_argument(
        "-m", dest="model", type=Path, metavar="MODELFOLDER", help="folder of the model, instead of -d -c -p -tr"
    )
    shown = " ".join(folds)
    parser.add_argument("-f", dest="folds", nargs="+", default=folds, help=f"folds (default: {shown})")
    parser.add_argument("-chk", dest="checkpoint", default="checkpoint_final.pth", help="default: %(default)s")


def add_prediction_arguments(parser: argparse.ArgumentParser) -> None:
    """Add how nnU-Net predicts, as in nnUNetv2_predict.

    Args:
        parser: The one that gets them.
    """
    parser.add_argument("-step_size", type=float, default=0.5, help="step of the sliding window (default: 0.5)")
    parser.add_argument("--disable_tta", action="store_true", help="no mirroring")
    parser.add_argument("--not_on_device", action="store_true", help="for large cases: keep less on the GPU")
    parser.add_argument("--disable_progress_bar", action="store_true", help="show no bars")
    parser.add_argument("--verbose", action="store_true", help="let nnU-Net say what it does")
    add_device_argument(parser)


def chosen_model(parser: argparse.ArgumentParser, arguments: argparse.Namespace, folds: Sequence[str]) -> TrainedModel:
    """The model that the arguments of :func:`add_model_arguments` name.

    Args:
        parser: For what is wrong with them.
        arguments: As it parsed them.
        folds: Names of the folds.
    """
    from emim_nnunet.prediction.model import TrainedModel, model_folder

    if (arguments.model is None) == (arguments.dataset is None):
        parser.error("name the model with -d and -c, or its folder with -m")
    if arguments.model is None and arguments.configuration is None:
        parser.error("-d needs -c, the configuration of the model")
    wrong = [fold for fold in folds if fold != "all" and not fold.isdecimal()]
    if wrong:
        parser.error(f"-f {wrong[0]}: must be a number or 'all'")
    folder = arguments.model or model_folder(
        arguments.dataset, arguments.trainer, arguments.plans, arguments.configuration
    )
    return TrainedModel(folder, tuple(dict.fromkeys(folds)), arguments.checkpoint)


def chosen_settings(arguments: argparse.Namespace) -> Settings:
    """How nnU-Net predicts, by the arguments of :func:`add_prediction_arguments`."""
    from emim_nnunet.devices import choose_device
    from emim_nnunet.prediction.model import Settings

    return Settings(
        device=choose_device(arguments.device),
        step_size=arguments.step_size,
        mirroring=not arguments.disable_tta,
        on_device=not arguments.not_on_device,
        verbose=arguments.verbose,
        progress=not arguments.disable_progress_bar,
    )


def entry() -> None:
    """Run the command and end the process with its exit code."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
