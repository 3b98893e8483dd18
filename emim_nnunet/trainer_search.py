"""How nnU-Net finds our trainers, and how its commands end when the user made a mistake."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from emim_nnunet.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError

SEARCH_VARIABLE = "nnUNet_extTrainer"

# Modules of this folder are searched by name and before its sub-packages: after nnUNetTrainer.py, so the stock trainer is found
# without importing us, and before primus/, so ours are found without importing timm.
REGISTERED_MODULE = "nnUNetTrainer_emim_nnunet.py"
REGISTERED_SOURCE = '''"""Lets nnUNetv2_* find the trainers of emim_nnunet; written by emim_register (--remove deletes it)."""

import warnings

try:
    from emim_nnunet.trainer_search import report_user_errors
    from emim_nnunet.trainers import *

    report_user_errors()
except Exception as error:  # nnU-Net imports this on the way to its own trainers too: they must stay found
    if getattr(error, "name", None) not in {"emim_nnunet", "emim_nnunet.trainer_search"}:  # those: not installed any more
        warnings.warn(f"the trainers of emim_nnunet cannot be imported: {error!r}", stacklevel=1)
'''


def trainers_path() -> Path:
    """The folder that ``nnUNet_extTrainer`` must name; it holds nothing but the plugin module."""
    return Path(__file__).resolve().parent / "nnunet_plugin"


def enable_search() -> None:
    """Put our folder first into ``nnUNet_extTrainer`` for this process and the ones it starts; other entries stay."""
    ours = str(trainers_path())
    others = [folder for folder in os.environ.get(SEARCH_VARIABLE, "").split(os.pathsep) if folder]
    os.environ[SEARCH_VARIABLE] = os.pathsep.join(dict.fromkeys([ours, *others]))


def own_trainers_first(trainer_name: str, nnunets_search: Callable[[str], type | None]) -> type | None:
    """A trainer of ours without a search, any other as nnU-Net finds it.

    nnU-Net's search imports timm and torchvision before it comes to external folders: a second, and every external trainer is
    lost where that import fails.

    Args:
        trainer_name: The value of ``-tr``.
        nnunets_search: nnU-Net's own search, which raises RuntimeError for an unknown name.

    Raises:
        UserError: There is no such trainer.
    """
    trainers = importlib.import_module("emim_nnunet.trainers")
    if trainer_name in trainers.__all__:
        return getattr(trainers, trainer_name)
    try:
        return nnunets_search(trainer_name)
    except RuntimeError as error:
        known = ", ".join(trainers.__all__)
        raise UserError(f"-tr {trainer_name}: there is no such trainer; those of this package are {known}") from error


def registered_module() -> Path:
    """Where :func:`register` writes.

    Raises:
        UserError: nnunetv2 is not installed.
    """
    spec = importlib.util.find_spec("nnunetv2")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("nnunetv2 is not installed in this environment: pip install 'nnunetv2>=2.8,<3'")
    return Path(next(iter(spec.submodule_search_locations))) / "training" / "nnUNetTrainer" / REGISTERED_MODULE


def register() -> Path:
    """Write the guarded re-export module into the installed nnunetv2.

    Returns:
        The file.

    Raises:
        UserError: The folder is not writable.
    """
    path = registered_module()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(REGISTERED_SOURCE)
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise UserError(
            f"cannot write {path} ({error.strerror}): use emim_train, or set {SEARCH_VARIABLE} to the folder that "
            f"emim_trainers_path prints"
        ) from error
    return path


def unregister() -> bool:
    """Remove the module that :func:`register` wrote.

    Returns:
        Whether there was one.

    Raises:
        UserError: It cannot be removed.
    """
    path = registered_module()
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UserError(f"cannot remove {path} ({error.strerror})") from error
    return True


def report_user_errors() -> None:
    """Let nnU-Net's own commands end with one line and exit code 2 after a :class:`UserError`; idempotent.

    With ``-num_gpus`` the error comes from a process that nnU-Net started, and its exit code is passed on likewise.
    """
    previous = sys.excepthook
    if getattr(previous, "reports_user_errors", False):
        return

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        # CPython (3.10 to 3.13) ends with the code of a SystemExit that the hook raises; sys.exit after a hook would be 1
        if kind.__name__ == "ProcessExitedException" and getattr(error, "exit_code", None) == EXIT_INTERRUPTED:
            raise SystemExit(EXIT_INTERRUPTED)
        message = str(error) if issubclass(kind, UserError) else _user_error_of_child(kind, error)
        if message is None:
            previous(kind, error, traceback)
            return
        sys.stderr.write(f"{Path(sys.argv[0]).name}: error: {message}\n")
        raise SystemExit(EXIT_USER_ERROR)

    hook.reports_user_errors = True  # type: ignore[attr-defined]  # a mark of our own on a function
    sys.excepthook = hook


def _user_error_of_child(kind: type[BaseException], error: BaseException) -> str | None:
    """The message, where a process that torch.multiprocessing started died of a UserError."""
    last = next(iter(str(error).strip().splitlines()[::-1]), "")
    name = f"{UserError.__module__}.{UserError.__name__}: "
    return last.removeprefix(name) if kind.__name__ == "ProcessRaisedException" and last.startswith(name) else None
