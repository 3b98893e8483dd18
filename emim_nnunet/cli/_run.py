"""How every console command of this package starts and ends."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emim_nnunet.errors import EXIT_USER_ERROR, UserError, describe_memory_error, describe_os_error
from emim_nnunet.storage.locks import take_over_locks

if TYPE_CHECKING:
    from emim_nnunet.datasets.shards import Shard

EXIT_INTERRUPT = 130  # 128 + SIGINT, as shells have it
PLANS_NAME = "nnUNetEMIMPlans"
TRACEBACK = "--traceback"
TRACEBACK_HELP = "after an error, show where in the code it comes from as well"
_tracebacks_shown = False


def run(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Call ``main``; a mistake of the user's, what the file system refuses, and too little memory become one line on stderr.

    Args:
        main: The command, which takes the arguments (``None``: those of the process).
        argv: The arguments without the program name.

    Returns:
        The exit code: 0, 2 after an error (argparse itself also exits with 2), 130 after Ctrl-C.
    """
    program = Path(sys.argv[0]).name
    _show_log()
    take_over_locks(False)
    show_tracebacks(False)
    try:
        main(argv)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPT
    except Exception as error:
        line = _explanation(error)
        if line is None:
            raise
        if _tracebacks_shown:
            traceback.print_exception(error)
        print(f"{program}: error: {line}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


def _explanation(error: Exception) -> str | None:
    """The line that stands for an error; None where it is nothing that the user can mend."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        return describe_os_error(error)
    which = describe_memory_error(error)
    return None if which is None else f"{which}: close other programs, or use a machine with more"


def show_tracebacks(on: bool) -> None:
    """Say whether :func:`run` shows where an error comes from, besides its line.

    Args:
        on: True for showing it.
    """
    global _tracebacks_shown
    _tracebacks_shown = on


def _show_log() -> None:
    """What this package logs goes to stderr, as plain lines."""
    logging.getLogger("emim_nnunet").setLevel(logging.INFO)
    if logging.lastResort is not None:  # takes what no handler of the embedding program takes
        logging.lastResort.setLevel(logging.INFO)


class CommandParser(argparse.ArgumentParser):
    """A parser whose help keeps the lines of its epilog, with the option that every command has: ``--traceback``.

    Args:
        prog: The name of the command.
        description: What it does, in a sentence.
        epilog: Examples and remarks, in lines as they shall be shown.
        options: Further options of argparse.
    """

    def __init__(
        self, prog: str | None = None, description: str | None = None, epilog: str | None = None, **options: Any
    ) -> None:
        options = {"formatter_class": argparse.RawDescriptionHelpFormatter} | options
        super().__init__(prog=prog, description=description, epilog=epilog, **options)
        self.add_argument(TRACEBACK, action=_ShowTracebacks, nargs=0, help=TRACEBACK_HELP)


class _ShowTracebacks(argparse.Action):
    """An option without value that holds for the whole process."""

    def __call__(self, *_: object) -> None:
        show_tracebacks(True)


class _TakeOver(argparse.Action):
    """An option without value that holds for the whole process."""

    def __call__(self, *_: object) -> None:
        take_over_locks(True)


def add_take_over(parser: argparse.ArgumentParser) -> None:
    """Add ``--take_over``, for commands that write under a lock.

    Args:
        parser: The one that gets it.
    """
    parser.add_argument(
        "--take_over",
        action=_TakeOver,
        nargs=0,
        help="go on where a process of another machine wrote that is gone for certain (otherwise after minutes)",
    )


def add_checkpoint_and_data(parser: argparse.ArgumentParser) -> None:
    """Add a checkpoint and the preprocessed data that it is shown: ``checkpoint``, -d, -p, -c, -f.

    Args:
        parser: The one that gets them.
    """
    parser.add_argument("checkpoint", type=Path, help="checkpoint, folder of a fold, or nnU-Net's folder of a model")
    parser.add_argument(
        "-d", dest="dataset_id", type=dataset_id, required=True, help="id or name of a preprocessed data set"
    )
    parser.add_argument("-p", dest="plans", help="plans of the data (default: those of the checkpoint)")
    parser.add_argument("-c", dest="configuration", help="configuration (default: that of the checkpoint)")
    parser.add_argument("-f", dest="fold", help="fold of a model (default: the only one)")


def add_shards(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--shard`` and ``--finish``.

    Args:
        parser: The one that gets them.
        what: What a shard does, for the help.
    """
    parser.add_argument("--shard", type=_shard, metavar="i/N", help=what)
    parser.add_argument("--finish", action="store_true", help="put together what all shards have done, and check it")


def _shard(text: str) -> Shard:
    """For argparse, as :func:`read_shard`, whose package takes a while to import."""
    from emim_nnunet.datasets.shards import read_shard

    try:
        return read_shard(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_training_arguments(parser: argparse.ArgumentParser, *, trainer: str) -> None:
    """Add what names a training, as in nnUNetv2_train: data set, configuration, fold (an int or ``all``), -tr, -p, -device.

    Args:
        parser: The one that gets them.
        trainer: The default of -tr.
    """
    parser.add_argument("dataset", help="id or name of the data set")
    add_configuration_arguments(parser)
    parser.add_argument("fold", type=_fold, help="0 to 4, or all")
    parser.add_argument("-tr", default=trainer, help="trainer (default: %(default)s)")
    add_device_argument(parser)


def add_configuration_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the configuration, and the plans that it is of (-p).

    Args:
        parser: The one that gets them.
    """
    parser.add_argument("configuration", help="for example 3d_fullres")
    parser.add_argument("-p", default=PLANS_NAME, help="plans (default: %(default)s)")


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``-device``, of which :func:`emim_nnunet.devices.choose_device` makes a device.

    Args:
        parser: The one that gets it.
    """
    help_text = "cuda, cpu or mps (default: cuda where there is a GPU, otherwise cpu)"
    parser.add_argument("-device", choices=("cuda", "cpu", "mps"), help=help_text)


def dataset_id(text: str) -> int:
    """The number of a data set, for argparse.

    Args:
        text: The number, or the name of its folder in nnUNet_preprocessed or nnUNet_raw.

    Raises:
        argparse.ArgumentTypeError: It is neither.
    """
    if text.isdecimal():
        return int(text)
    name = re.fullmatch(r"Dataset(\d{3})_.+", text)
    folders = [os.environ.get(variable) for variable in ("nnUNet_preprocessed", "nnUNet_raw")]
    if name is None or not any(folder and Path(folder, text).is_dir() for folder in folders):
        raise argparse.ArgumentTypeError(
            f"must be the id of a data set, or its name in nnUNet_preprocessed or nnUNet_raw, not '{text}'"
        )
    return int(name[1])


def _fold(text: str) -> int | str:
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a number or 'all', not '{text}'")
    return text if text == "all" else int(text)
