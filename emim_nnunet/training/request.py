"""Whether what a command asks for can be trained, before anything is written."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from emim_nnunet.checkpoints.encoder import require_finite
from emim_nnunet.checkpoints.io import read_checkpoint
from emim_nnunet.datasets.folders import preprocessed_folder, read_plans
from emim_nnunet.datasets.preprocessed import case_identifiers, unlabelled_folder
from emim_nnunet.datasets.splits import check_fold, read_splits
from emim_nnunet.errors import UserError
from emim_nnunet.nnunet.paths import nnUNet_preprocessed, nnUNet_results
from emim_nnunet.settings.plans import check_plans, inheritance


def check_request(dataset: str, configuration: str, fold: int | str, plans_name: str) -> None:
    """Look at what nnU-Net would stumble over without a word that helps.

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
    folder = _folder(dataset)
    plans, _ = read_plans(folder, plans_name)
    check_plans(plans, configuration)
    content = {key: value for link in inheritance(plans, configuration) for key, value in link.items()}
    data = folder / content["data_identifier"]
    cases = case_identifiers(data)
    if not cases and not case_identifiers(unlabelled_folder(data)):
        raise UserError(f"no preprocessed case in {data}: run emim_plan_and_preprocess first")
    if fold == "all" or not cases:
        return
    if not str(fold).isdecimal():
        raise UserError(f"fold {fold}: must be a number or 'all'")
    if read_splits(folder):
        check_fold(folder, int(fold), cases)


def check_command(dataset: str, configuration: str, fold: int | str, plans_name: str, weights: str | None) -> None:
    """As :func:`check_request`, for nnU-Net's training command, which may be given weights.

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
    content = read_checkpoint(Path(weights))  # nnU-Net would run what code is in it
    if isinstance(content.get("network_weights"), dict):
        tensors = {k: v for k, v in content["network_weights"].items() if isinstance(v, Tensor)}
        require_finite(tensors, f"-pretrained_weights {weights}")


def _folder(dataset: str) -> Path:
    if dataset.isdecimal():
        return preprocessed_folder(int(dataset))
    if not nnUNet_preprocessed.is_set():
        raise UserError("the environment variable nnUNet_preprocessed is not set: it must name a folder")
    folder = Path(nnUNet_preprocessed) / Path(dataset).name
    if folder.name != dataset or not folder.is_dir():
        raise UserError(f"data set {dataset}: neither a number nor the name of a folder in {nnUNet_preprocessed}")
    return folder
