"""Checks of what a command asks to train, before anything is written."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from emim_nnunet.checkpoints.encoder import require_finite
from emim_nnunet.checkpoints.io import read_checkpoint
from emim_nnunet.datasets.dataset import PreprocessedDataset
from emim_nnunet.datasets.splits import check_fold
from emim_nnunet.errors import UserError
from emim_nnunet.nnunet.paths import nnUNet_results
from emim_nnunet.settings.plans import check_plans


def check_request(dataset: str, configuration: str, fold: int | str, plans_name: str) -> None:
    """Check what would make nnU-Net fail without a helpful message.

    Args:
        dataset: The id or name of a preprocessed data set.
        configuration: The name of a configuration of the plans.
        fold: The number of a fold, or ``all``.
        plans_name: The name of the plans.

    Raises:
        UserError: Variables, data set, plans, configuration, preprocessed cases or fold are missing or not as they must be.
    """
    if not nnUNet_results.is_set():
        raise UserError("the environment variable nnUNet_results is not set: it must name the folder of results")
    data = PreprocessedDataset.find(dataset, plans_name, configuration)
    check_plans(data.plans, configuration)
    data.require_cases()
    if fold == "all" or not data.labelled:
        return
    if not str(fold).isdecimal():
        raise UserError(f"fold {fold}: must be a number or 'all'")
    if data.splits:
        check_fold(data.folder, int(fold), data.labelled_ids)


def check_command(dataset: str, configuration: str, fold: int | str, plans_name: str, weights: str | None) -> None:
    """Do the checks of :func:`check_request` for nnU-Net's training command, and check the weights that it is given.

    Args:
        dataset: The id or name of a preprocessed data set.
        configuration: The name of a configuration of the plans.
        fold: The number of a fold, or ``all``.
        plans_name: The name of the plans.
        weights: The file of ``-pretrained_weights``; None = not given.

    Raises:
        UserError: The request or the file is not as it must be; code in the file is not run.
    """
    check_request(dataset, configuration, fold, plans_name)
    if weights is None:
        return
    content = read_checkpoint(Path(weights))  # nnU-Net would run any code in it
    if isinstance(content.get("network_weights"), dict):
        tensors = {k: v for k, v in content["network_weights"].items() if isinstance(v, Tensor)}
        require_finite(tensors, f"-pretrained_weights {weights}")
