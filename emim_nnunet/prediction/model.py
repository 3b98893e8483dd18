"""A trained segmentation model in nnU-Net's folder: what it takes, what it was trained for, and nnU-Net's predictor of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from emim_nnunet.checkpoints.io import read_checkpoint
from emim_nnunet.datasets.channel_names import channel_names, standard_name
from emim_nnunet.datasets.folders import read_dataset_json
from emim_nnunet.errors import UserError, listed
from emim_nnunet.nnunet.inference import nnUNetPredictor
from emim_nnunet.nnunet.paths import nnUNet_results
from emim_nnunet.nnunet.plans import ConfigurationManager, PlansManager
from emim_nnunet.settings.plans import check_plans, is_folder_name, planned
from emim_nnunet.storage.files import read_json, sha256_of
from emim_nnunet.trainer_search import enable_search
from emim_nnunet.training.modality_dropout import RECORD

FINAL = "checkpoint_final.pth"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How nnU-Net's predictor works; the same as the options of ``nnUNetv2_predict``.

    Attributes:
        device: ``cuda``, ``cpu`` or ``mps``.
        step_size: Step of the sliding window in windows, above 0 to 1.
        mirroring: Whether predictions of mirrored images are averaged.
        on_device: Whether all is kept on the device, which must be a GPU.
        verbose: Whether nnU-Net says what it does.
        progress: Whether bars are shown.

    Raises:
        UserError: The step is out of range.
    """

    device: str = "cuda"
    step_size: float = 0.5
    mirroring: bool = True
    on_device: bool = True
    verbose: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.step_size <= 1:
            raise UserError(f"-step_size must be above 0 and at most 1, not {self.step_size}")


def model_folder(dataset: str, trainer: str, plans: str, configuration: str) -> Path:
    """Find the folder of a model in ``nnUNet_results``.

    Args:
        dataset: Id of the data set, or the name of its folder.
        trainer: Name of the trainer.
        plans: Name of the plans.
        configuration: Name of the configuration.

    Raises:
        UserError: The variable is not set, or there is no such model, or several data sets have the id.
    """
    if not nnUNet_results.is_set():
        raise UserError(
            "the environment variable nnUNet_results is not set: set it, or name the model's folder with -m"
        )
    pattern = f"Dataset{int(dataset):03d}_*" if dataset.isdecimal() else dataset
    if not dataset.isdecimal() and not is_folder_name(dataset):
        raise UserError(f"-d {dataset}: must be the id of a data set, or the name of its folder in nnUNet_results")
    folders = [folder for folder in sorted(Path(nnUNet_results).glob(pattern)) if folder.is_dir()]
    if len(folders) != 1:
        raise UserError(f"-d {dataset}: expected one folder of that data set in {nnUNet_results}, found {len(folders)}")
    name = f"{trainer}__{plans}__{configuration}"
    if not (folders[0] / name).is_dir():
        known = sorted(path.name for path in folders[0].iterdir() if path.name.count("__") == 2)
        raise UserError(f"{folders[0]} has no model {name} (-tr, -p, -c); it has {listed(known) or 'none'}")
    return folders[0] / name


@dataclass(frozen=True)
class TrainedModel:
    """A model as nnU-Net stores it.

    Attributes:
        folder: nnU-Net's folder ``TRAINER__PLANS__CONFIGURATION`` with ``plans.json`` and ``dataset.json``.
        folds: Names of the folds that predict together, ``0``, ``1``, ... or ``all``.
        checkpoint_name: Name of the checkpoint in each fold's folder.

    Raises:
        UserError: The folder is no such folder, or the model has no names of channels.
    """

    folder: Path
    folds: tuple[str, ...]
    checkpoint_name: str = FINAL

    def __post_init__(self) -> None:
        for name in ("dataset.json", "plans.json"):
            if not (self.folder / name).is_file():
                raise UserError(f"{self.folder} is no folder of a trained model: it has no {name}")
        if not all(isinstance(name, str) and name for name in self.channels):
            raise UserError(f"{self.folder / 'dataset.json'}: the names of the channels must be texts")
        check_plans(self.plans)

    @cached_property
    def dataset_json(self) -> dict[str, Any]:
        """The content of ``dataset.json``."""
        return read_dataset_json(self.folder)

    @cached_property
    def plans(self) -> dict[str, Any]:
        """The content of ``plans.json``."""
        return read_json(self.folder / "plans.json")

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels, in nnU-Net's order."""
        return tuple(channel_names(self.dataset_json))

    @property
    def file_ending(self) -> str:
        """Ending of images and segmentations, with the dot."""
        return str(self.dataset_json["file_ending"])

    @cached_property
    def checkpoints(self) -> dict[str, dict[str, Any]]:
        """Fold -> content of its checkpoint, whose tensors are not read yet.

        Raises:
            UserError: A checkpoint is missing, or holds code.
        """
        files = {fold: self.checkpoint_file(fold) for fold in self.folds}
        for fold, file in files.items():
            if not file.is_file():
                there = sorted(path.parent.name[5:] for path in self.folder.glob(f"fold_*/{self.checkpoint_name}"))
                has = f"the folds that have one: {' '.join(there)}" if there else "no fold has one: is it trained?"
                raise UserError(f"{self.folder} has no {self.checkpoint_name} of fold {fold} (-f, -chk); {has}")
        contents = {fold: read_checkpoint(file, mapped=True) for fold, file in files.items()}
        for fold, content in contents.items():
            if not isinstance(content.get("init_args"), dict) or "configuration" not in content["init_args"]:
                raise UserError(f"{files[fold]} is no checkpoint of nnU-Net's segmentation training")
        return contents

    def checkpoint_file(self, fold: str) -> Path:
        """Where the checkpoint of a fold is."""
        return self.folder / f"fold_{fold}" / self.checkpoint_name

    @cached_property
    def sha256(self) -> dict[str, str]:
        """Fold -> checksum of its checkpoint."""
        return {fold: sha256_of(self.checkpoint_file(fold)) for fold in self.folds}

    @property
    def configuration_name(self) -> str:
        """The configuration that the model was trained in."""
        return str(self.checkpoints[self.folds[0]]["init_args"]["configuration"])

    @cached_property
    def configuration(self) -> ConfigurationManager:
        """nnU-Net's view of the configuration.

        Raises:
            UserError: It needs the predictions of another one.
        """
        check_plans(self.plans, self.configuration_name)
        manager = PlansManager(self.plans).get_configuration(self.configuration_name)
        if manager.previous_stage_name is not None:
            raise UserError(
                f"{self.folder.name} is the second stage of a cascade: fill in with --missing, then nnUNetv2_predict"
            )
        return manager

    def was_trained_for(self, modalities: Collection[str]) -> bool:
        """Whether every fold's training can have seen cases as if they had these modalities only."""
        have = {standard_name(name) for name in modalities}
        if len(have) == len(self.channels):
            return True
        records = [content["init_args"].get(RECORD, {"p": 0}) for content in self.checkpoints.values()]
        return all(record["p"] > 0 and {standard_name(n) for n in record["never"]} <= have for record in records)

    def predictor(self, settings: Settings, folds: Sequence[str] | None = None) -> nnUNetPredictor:
        """nnU-Net's predictor with the weights of the folds.

        Args:
            settings: How it works.
            folds: Some of the model's folds; None = all.

        Raises:
            UserError: nnU-Net cannot open the model.
        """
        _ = (
            self.checkpoints,
            self.configuration,
        )  # refuses what nnU-Net would stumble over, and code: it reads them again
        enable_search()
        if settings.device == "cuda":
            torch.set_num_threads(1)  # as nnUNetv2_predict does
        predictor = nnUNetPredictor(
            tile_step_size=settings.step_size,
            use_gaussian=True,
            use_mirroring=settings.mirroring,
            perform_everything_on_device=settings.on_device,
            device=torch.device(settings.device),
            verbose=settings.verbose,
            verbose_preprocessing=settings.verbose,
            allow_tqdm=settings.progress,
        )
        with planned(f"nnU-Net cannot open the model in {self.folder}", "is it whole?"):
            predictor.initialize_from_trained_model_folder(str(self.folder), folds or self.folds, self.checkpoint_name)
        return predictor
