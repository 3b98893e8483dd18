"""Another SSL stage whose losses are drawn beside those of a run."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from emim_nnunet.errors import UserError, describe_os_error
from emim_nnunet.nnunet.paths import nnUNet_results

LOG = "ssl_log.csv"
COLUMNS = ("val/reconstruction", "val/reconstruction_1")  # of methods with one reconstruction, and of MiM


@dataclass(frozen=True)
class Reference:
    """Reconstruction losses of another stage.

    Attributes:
        name: Its trainer, plans and configuration, and its fold.
        epochs: Numbers of epochs done.
        losses: The reconstruction loss on its probe set after each of them.
    """

    name: str
    epochs: tuple[int, ...]
    losses: tuple[float, ...]

    def __str__(self) -> str:
        return f"Reference {self.name}: reconstruction loss {self.losses[-1]:.4f} after {self.epochs[-1]} epochs"


def read_reference(path: str | None) -> Reference | None:
    """The reference that the key ``collapse_reference`` names.

    Args:
        path: The ``ssl_log.csv`` of a stage or its folder, relative to ``nnUNet_results`` or absolute; None = no reference.

    Raises:
        UserError: There is no such log, or it holds no losses of a reconstruction.
    """
    if path is None:
        return None
    file = Path(nnUNet_results) / path
    try:
        file = file / LOG if file.is_dir() else file
        if file.exists() and not file.is_file():  # a pipe would be waited for
            raise ValueError
        with file.open(newline="", encoding="utf-8") as opened:
            rows = list(csv.DictReader(opened))
        column = next((name for name in COLUMNS if rows and name in rows[0]), None)
        read = [(int(row["epoch"]) + 1, float(row[column])) for row in rows if column]
    except OSError as error:
        raise _refused(path, describe_os_error(error)) from error
    except (ValueError, KeyError, TypeError, csv.Error) as error:  # text that is no log, and what is no text
        raise _refused(path, f"not the {LOG} of an SSL stage") from error
    read = [(epoch, loss) for epoch, loss in read if isfinite(loss)]
    if not read:
        raise _refused(path, f"no reconstruction losses in it (column {COLUMNS[0]})")
    epochs, losses = zip(*read, strict=True)
    return Reference("/".join(file.resolve().parts[-3:-1]), epochs, losses)


def _refused(path: str, reason: str) -> UserError:
    return UserError(f"collapse_reference {path}: {reason}; name the folder of another SSL stage, or set it to null")
