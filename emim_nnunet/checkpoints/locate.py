"""Finding the checkpoint that a command names."""

from __future__ import annotations

from pathlib import Path

from emim_nnunet.errors import UserError

CHECKPOINT_NAMES = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_previous.pth", "checkpoint_best.pth")


def find_checkpoint(path: Path, fold: str | None = None) -> Path:
    """Find a checkpoint: a file, the first of :data:`CHECKPOINT_NAMES` in a fold's folder, or that of a fold of a model.

    Args:
        path: A checkpoint file, nnU-Net's folder of a fold, or its folder of a model.
        fold: The fold of a model, a number or ``all``; None = the only fold that has a checkpoint.

    Returns:
        The path of the checkpoint file.

    Raises:
        UserError: There is no checkpoint, or there are several folds to choose from.
    """
    if path.is_file():
        return path
    folds = [path / f"fold_{fold}"] if fold is not None else [path, *sorted(path.glob("fold_*"))]
    per_fold = [next((f / name for name in CHECKPOINT_NAMES if (f / name).is_file()), None) for f in folds]
    found = [file for file in per_fold if file is not None]
    if len(found) == 1 or (found and found[0].parent == path):
        return found[0]
    if found:
        raise UserError(
            f"{path} holds several folds ({', '.join(file.parent.name for file in found)}): choose with -f, or name one of them"
        )
    raise UserError(f"CHECKPOINT {path}: neither a file nor a folder with {' or '.join(CHECKPOINT_NAMES)}")
