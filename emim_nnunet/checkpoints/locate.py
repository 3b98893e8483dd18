"""Finding the checkpoint that a command names."""

from __future__ import annotations

import re
from pathlib import Path

from emim_nnunet.errors import UserError

CHECKPOINT_NAMES = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_previous.pth", "checkpoint_best.pth")


HUB = re.compile(r"hf:/{1,2}([\w.-]+/[\w.-]+)/?")  # of two slashes, Path leaves one


def find_checkpoint(path: Path, fold: str | None = None) -> Path:
    """Find a checkpoint: a file, the first of :data:`CHECKPOINT_NAMES` in a fold's folder, or that of a fold of a model.

    Args:
        path: A checkpoint file, nnU-Net's folder of a fold, or its folder of a model; a folder in the layout of Hugging Face's
            Hub, as ``emim_export --hub`` writes it; or ``hf://OWNER/NAME``, which huggingface_hub downloads into its cache.
        fold: The fold of a model, a number or ``all``; None = the only fold that has a checkpoint.

    Returns:
        The path of the checkpoint file.

    Raises:
        UserError: There is no checkpoint, there are several folds to choose from, or the Hub refuses.
    """
    repository = HUB.fullmatch(str(path))
    if repository is not None:
        return _download(repository[1])
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


def _download(repository: str) -> Path:
    """The checkpoint of a repository of the Hub, in the cache of huggingface_hub."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise UserError(
            f"hf://{repository} needs huggingface_hub: pip install emim_nnunet[hub], or name a folder that you downloaded"
        ) from error
    try:
        return Path(hf_hub_download(repo_id=repository, filename=CHECKPOINT_NAMES[0]))
    except Exception as error:  # of requests, of the file system, of its own
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"hf://{repository}: {CHECKPOINT_NAMES[0]} cannot be downloaded ({reason})") from error
