"""``emim_evaluate_modalities``: the Dice of a trained model for every subset of the modalities."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from emim_nnunet.cli._run import CommandParser, add_take_over, run
from emim_nnunet.cli.predict import add_model_arguments, add_prediction_arguments, chosen_model, chosen_settings
from emim_nnunet.errors import UserError

EPILOG = """
Example:
  emim_evaluate_modalities -d 137 -c 3d_fullres -f 0
  emim_evaluate_modalities -m MODELFOLDER -f 0 1 2 3 4 --disable_tta --subsets Flair T1+Flair T1+T1ce+T2+Flair

Each fold's network predicts that fold's validation cases, zeros in place of what a subset lacks. modality_subsets.md, .json and
.png are written into the model's folder, where emim_predict finds them and warns of subsets that are worth little. A command
that was interrupted goes on when it is repeated.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse arguments and measure."""
    parser = CommandParser(
        prog="emim_evaluate_modalities",
        description="Measure Dice and surface distance of a model for every subset of the modalities.",
        epilog=EPILOG,
    )
    add_model_arguments(parser, folds=["0", "1", "2", "3", "4"])
    parser.add_argument(
        "--subsets", nargs="+", metavar="NAME+NAME", help="the subsets to measure (default: all, of up to 6 modalities)"
    )
    add_prediction_arguments(parser)
    add_take_over(parser)
    arguments = parser.parse_args(argv)

    from emim_nnunet.prediction.evaluate import evaluate
    from emim_nnunet.prediction.report import markdown
    from emim_nnunet.prediction.subsets import TABLE, subsets_of

    model = chosen_model(parser, arguments, arguments.folds)
    channels = model.channels
    asked = arguments.subsets
    subsets = subsets_of(channels) if asked is None else [_subset(text, channels) for text in asked]
    measured = evaluate(model, list(dict.fromkeys(subsets)), chosen_settings(arguments))
    print("\n".join(markdown(model, measured)))
    print(f"\n{model.folder / TABLE}, .md and .png")


def _subset(text: str, channels: Sequence[str]) -> tuple[str, ...]:
    """``T1+Flair`` in the order of the channels."""
    from emim_nnunet.datasets.channel_names import standard_name

    known = {standard_name(channel): channel for channel in channels}
    names = [known.get(standard_name(name)) for name in text.split("+")]
    if None in names:
        raise UserError(f"--subsets {text}: the modalities are {', '.join(channels)}, joined by +")
    return tuple(channel for channel in channels if channel in names)


def entry() -> None:
    """Run the command and end the process with its exit code."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
