"""How every console command of this package starts and ends."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from emim_nnunet.errors import EXIT_USER_ERROR, UserError, describe_memory_error, describe_os_error
from emim_nnunet.storage.locks import take_over_locks

EXIT_INTERRUPT = 130  # 128 + SIGINT, as shells have it


def run(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Call ``main``; a mistake of the user's, what the file system refuses, and too little memory become one line on stderr.

    Args:
        main: The command; takes the arguments (``None``: those of the process).
        argv: Arguments without the program name.

    Returns:
        The exit code: 0, 2 after an error (argparse itself also exits with 2), 130 after Ctrl-C.
    """
    program = Path(sys.argv[0]).name
    _show_log()
    take_over_locks(False)
    try:
        main(argv)
    except UserError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except OSError as error:
        print(f"{program}: error: {describe_os_error(error)}", file=sys.stderr)
        return EXIT_USER_ERROR
    except (MemoryError, RuntimeError) as error:
        which = describe_memory_error(error)
        if which is None:
            raise
        print(f"{program}: error: {which}: close other programs, or use a machine with more", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPT
    return 0


def _show_log() -> None:
    """What this package logs goes to stderr, as plain lines."""
    logging.getLogger("emim_nnunet").setLevel(logging.INFO)
    if logging.lastResort is not None:  # takes what no handler of the embedding program takes
        logging.lastResort.setLevel(logging.INFO)


class _TakeOver(argparse.Action):
    """Holds for the whole process."""

    def __call__(self, *_: object) -> None:
        take_over_locks(True)


def add_take_over(parser: argparse.ArgumentParser) -> None:
    """``--take_over``, for commands that write under a lock."""
    parser.add_argument(
        "--take_over",
        action=_TakeOver,
        nargs=0,
        help="go on where a process of another machine wrote that is gone for certain (otherwise after minutes)",
    )


def add_training_arguments(parser: argparse.ArgumentParser, *, trainer: str) -> None:
    """What names a training, as in nnUNetv2_train: data set, configuration, fold (an int or ``all``), -tr, -p, -device.

    Args:
        parser: Gets them.
        trainer: Default of -tr.
    """
    parser.add_argument("dataset", help="id or name of the data set")
    parser.add_argument("configuration", help="for example 3d_fullres")
    parser.add_argument("fold", type=_fold, help="0 to 4, or all")
    parser.add_argument("-tr", default=trainer, help="trainer (default: %(default)s)")
    parser.add_argument("-p", default="nnUNetEMIMPlans", help="plans (default: %(default)s)")
    add_device_argument(parser)


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """``-device``, of which :func:`emim_nnunet.devices.choose_device` makes a device.

    Args:
        parser: Gets it.
    """
    help_text = "cuda, cpu or mps (default: cuda where there is a GPU, otherwise cpu)"
    parser.add_argument("-device", choices=("cuda", "cpu", "mps"), help=help_text)


def _fold(text: str) -> int | str:
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a number or 'all', not '{text}'")
    return text if text == "all" else int(text)
