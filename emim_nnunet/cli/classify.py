"""``emim_classify``: train, predict and evaluate classifiers and regressions of whole cases."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
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
from emim_nnunet.errors import UserError
from emim_nnunet.settings.plans import limit_of
from emim_nnunet.storage.locks import acquire

if TYPE_CHECKING:  # seconds, for which --help need not wait
    import torch

EPILOG = """
Example:
  emim_classify train 137 3d_fullres 0 labels.csv --checkpoint RESULTS/fold_0/checkpoint_final.pth -o classifier/fold_0
  torchrun --standalone --nproc-per-node 4 -m emim_nnunet.cli.classify train ...   # on several GPUs
  emim_classify predict classifier/fold_0/classifier.pth 138 -o predictions.csv
  emim_classify evaluate classifier/fold_*/validation_predictions.csv --labels labels.csv -o classifier/evaluation
  emim_classify train 137 3d_fullres 0 ages.csv --number age --frozen --checkpoint ... -o ages/fold_0   # regression
  emim_classify evaluate ages/fold_*/validation_predictions.csv --labels ages.csv --number age -o ages/evaluation

labels.csv has a column 'case', perhaps 'patient', and one or several columns of classes or numbers; an empty cell is unknown.
Folds are those of nnU-Net's splits_final.json; no patient is in two parts. Cases must have been preprocessed with the plans.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse arguments and do one of the three."""
    parser = CommandParser(
        prog="emim_classify",
        description="Classify whole cases, or predict a number of each, with a pretrained encoder.",
        epilog=EPILOG,
    )
    parts = parser.add_subparsers(dest="what", required=True)
    _add_train(
        parts.add_parser("train", help="train on the training cases of a fold, predict and score its validation cases")
    )
    _add_predict(parts.add_parser("predict", help="predict preprocessed cases"))
    _add_evaluate(parts.add_parser("evaluate", help="score predictions"))
    arguments = parser.parse_args(argv)
    if arguments.what == "predict":  # one file, written as a whole
        _predict(arguments)
        return
    is_first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun starts; it writes for all of them
    with acquire(arguments.output, f"the folder {arguments.output}") if is_first else nullcontext():
        {"train": _train, "evaluate": _evaluate}[arguments.what](arguments)


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", type=dataset_id, help="id or name of a preprocessed data set")
    add_configuration_arguments(parser)
    parser.add_argument("fold", help="0 to 4, or all")
    parser.add_argument("labels", type=Path, help="CSV file")
    parser.add_argument("-o", dest="output", type=Path, required=True, help="folder to write")
    encoder = parser.add_mutually_exclusive_group(required=True)
    encoder.add_argument(
        "--checkpoint",
        type=Path,
        help="encoder: SSL stage, export, nnU-Net's or nnssl's; file, or folder of a fold",
    )
    encoder.add_argument("--scratch", action="store_true", help="an untrained encoder: the control")
    _add_columns(parser)
    parser.add_argument("--frozen", action="store_true", help="fit linear layers only")
    parser.add_argument("--no_class_weights", action="store_true", help="let frequent classes count more")
    parser.add_argument("--steps", type=int, default=1000, help="of fine-tuning (default: 1000)")
    parser.add_argument("--batch_size", type=int, default=2, help="crops per step (default: 2)")
    parser.add_argument("--lr", type=float, default=1e-4, help="peak rate for the encoder (default: 1e-4)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--c", action="store_true", help="continue an interrupted training")
    add_device_argument(parser)
    add_take_over(parser)


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="classifier.pth")
    parser.add_argument(
        "dataset", type=dataset_id, help="id or name of a data set that was preprocessed with the plans of the model"
    )
    parser.add_argument("-o", dest="output", type=Path, required=True, help="CSV file to write")
    add_device_argument(parser)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "predictions", type=Path, nargs="+", help="CSV files of emim_classify, for example of all folds"
    )
    parser.add_argument("--labels", type=Path, required=True, help="CSV file with the true classes")
    _add_columns(parser)
    parser.add_argument("-o", dest="output", type=Path, required=True, help="folder to write")
    add_take_over(parser)


def _add_columns(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--column", nargs="+", help="columns of classes (default: all, or none with --number)")
    parser.add_argument("--number", nargs="+", default=[], help="columns of numbers, such as ages or volumes")


def _train(arguments: argparse.Namespace) -> None:
    from emim_nnunet.devices import choose_device
    from emim_nnunet.distributed import process_group

    with process_group(choose_device(arguments.device)) as device:
        _train_on(device, arguments)


def _train_on(device: torch.device, arguments: argparse.Namespace) -> None:
    from emim_nnunet.checkpoints.locate import find_checkpoint
    from emim_nnunet.classification.evaluate import evaluate, write_predictions
    from emim_nnunet.classification.settings import Settings
    from emim_nnunet.classification.table import check_cases, read_table, split
    from emim_nnunet.classification.train import predict, train
    from emim_nnunet.datasets.dataset import PreprocessedDataset
    from emim_nnunet.distributed import rank

    if arguments.fold != "all" and not arguments.fold.isdecimal():
        raise UserError(f"fold {arguments.fold}: must be a number or 'all'")
    for name in ("steps", "batch_size"):
        if not 1 <= getattr(arguments, name) <= limit_of(name):
            raise UserError(f"--{name} must be at least 1 and at most {limit_of(name)}")
    checkpoint = None if arguments.checkpoint is None else find_checkpoint(arguments.checkpoint)
    data = PreprocessedDataset.find(arguments.dataset, arguments.p, arguments.configuration)
    data.require_cases()
    table = read_table(arguments.labels, arguments.column, data.patients, arguments.number)
    check_cases(table, list(data.cases), data.name)
    fold = arguments.fold if arguments.fold == "all" else int(arguments.fold)
    training, validation = split(table, data.folder, fold)
    settings = Settings(
        frozen=arguments.frozen,
        class_weights=not arguments.no_class_weights,
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        initial_lr=arguments.lr,
        seed=arguments.seed,
    )
    say = print if rank() == 0 else lambda line: None
    say(f"Learning from {len(training)} cases, validating on {len(validation)}; targets: {', '.join(table.targets)}")
    left_out = len(table.rows) - len(training) - len(validation)
    if left_out:
        say(f"{left_out} more cases are of patients of the validation set: they are left out of the training")
    model = train(
        data,
        table,
        training,
        arguments.output,
        settings,
        checkpoint=checkpoint,
        device=device,
        fold=fold,
        resume=arguments.c,
    )
    if not validation:
        return
    predicted = predict(model, data, validation, table.targets, device)
    if rank() != 0:
        return
    predictions = arguments.output / "validation_predictions.csv"
    write_predictions(predictions, validation, table.classes, predicted, table.means(training))
    print("\n".join(evaluate(table, [predictions], arguments.output)))


def _predict(arguments: argparse.Namespace) -> None:
    import torch

    from emim_nnunet.classification.evaluate import write_predictions
    from emim_nnunet.classification.model import load_classifier
    from emim_nnunet.classification.train import predict
    from emim_nnunet.datasets.dataset import PreprocessedDataset
    from emim_nnunet.devices import choose_device

    device = torch.device(choose_device(arguments.device))
    model, about = load_classifier(arguments.model)
    data = PreprocessedDataset.find(arguments.dataset, about["plans"]["plans_name"], about["configuration"])
    data.require_cases()
    cases = sorted(data.cases)
    predicted = predict(model, data, cases, about["targets"], device)
    write_predictions(arguments.output, cases, about["classes"], predicted, about.get("means"))
    print(f"{len(cases)} cases predicted: {arguments.output}")


def _evaluate(arguments: argparse.Namespace) -> None:
    from emim_nnunet.classification.evaluate import evaluate
    from emim_nnunet.classification.table import read_table

    table = read_table(arguments.labels, arguments.column, numeric=arguments.number)
    print("\n".join(evaluate(table, arguments.predictions, arguments.output)))


def entry() -> None:
    """Run the command and end the process with its exit code."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
