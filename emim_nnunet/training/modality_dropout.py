"""Modality dropout in the segmentation stage: the network learns from cases as if they lacked modalities.

A dropped modality has the value that one has which a case really lacks: 0, what nnU-Net's normalisations make of an image of
zeros. The network and the validation are nnU-Net's own.
"""

from __future__ import annotations

import secrets
from typing import Any

import torch
from torch import Tensor

from emim_nnunet.dataloading.crops import present_channels
from emim_nnunet.datasets.channel_names import channel_names, standard_name
from emim_nnunet.nnunet.plans import ConfigurationManager
from emim_nnunet.planners.ssl_plan import KEEPS_ZERO
from emim_nnunet.randomness import Stream, seeded_generator
from emim_nnunet.settings.block import require
from emim_nnunet.settings.stages import FinetuneConfig
from emim_nnunet.training.stage_trainer import StageTrainer

RECORD = "modality_dropout"  # key of a checkpoint's init_args: what the training that wrote it dropped


def kept_modalities(present: Tensor, p_drop: float, never_dropped: Tensor, generator: torch.Generator) -> Tensor:
    """Draw which modalities of each sample the network sees.

    Each one that is there is dropped with probability ``p_drop``, independently. Where all would be, the one of the highest
    draw stays: all are equally likely to.

    Args:
        present: (B, C) bool, the modalities that the case of each sample has.
        p_drop: Probability that a modality is dropped, 0 to 1.
        never_dropped: (C,) bool.
        generator: A CPU generator, which is advanced.

    Returns:
        (B, C) bool, a subset of ``present`` that is not empty where ``present`` is not.
    """
    draws = torch.rand(present.shape, generator=generator)
    draws = draws.masked_fill(never_dropped, 1.0).masked_fill(~present, -1.0)
    return present & ((draws >= p_drop) | (draws == draws.amax(1, keepdim=True)))


def _told(dropout: dict[str, Any]) -> str:
    """What is dropped, in the words of the settings."""
    never = f", never {', '.join(dropout['never'])}" if dropout["never"] else ""
    return f"finetune_p_drop_modality {dropout['p']:g}{never}"


class ModalityDropoutTrainer(StageTrainer):
    """A segmentation stage whose training steps drop modalities, by ``finetune_p_drop_modality``.

    What a case lacks is read from its preprocessed images, once per case. In training its modalities are set back to 0, because
    nnU-Net's augmentation adds noise to zeros too. A stage that is continued goes on as it began, whatever the plans say now.
    """

    # attributes of the stage and of nnU-Net's trainer
    config: FinetuneConfig
    dataset_class: Any
    dataset_json: dict[str, Any]
    preprocessed_dataset_folder: str
    my_init_kwargs: dict[str, Any]

    def _check_configuration(self, name: str, configuration: ConfigurationManager) -> None:
        super()._check_configuration(name, configuration)
        channels = channel_names(self.dataset_json)
        known = {standard_name(channel) for channel in channels}
        for asked in self.config.finetune_keep_modalities:
            require(
                standard_name(asked) in known,
                f"finetune_keep_modalities names '{asked}'; the modalities are {', '.join(channels)}",
            )
        schemes = configuration.configuration["normalization_schemes"]
        unfit = sorted(set(schemes) - set(KEEPS_ZERO)) if self.config.finetune_p_drop_modality else []
        require(
            not unfit,
            f"finetune_p_drop_modality needs images whose zeros stay 0, which {unfit} does not do: set it to 0",
        )
        self._dropout: dict[str, Any] = {
            "p": self.config.finetune_p_drop_modality,
            "never": [
                c for c in channels if standard_name(c) in map(standard_name, self.config.finetune_keep_modalities)
            ],
        }
        self._never_dropped = torch.tensor([channel in self._dropout["never"] for channel in channels])
        seed = self.config.finetune_seed
        self._dropout_seed = secrets.randbits(32) if seed is None else seed
        self._steps_of_epoch = 0
        self._present: dict[str, Tensor] = {}

    def on_train_start(self) -> None:
        """Start as nnU-Net does, and say what is dropped."""
        super().on_train_start()
        if self._dropout["p"]:
            self.print_to_log_file(f"Modalities of a sample are dropped: {_told(self._dropout)}")

    def on_train_epoch_start(self) -> None:
        """Start an epoch as nnU-Net does, at step 0."""
        super().on_train_epoch_start()
        self._steps_of_epoch = 0

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Take nnU-Net's step on a batch some of whose modalities are 0.

        Args:
            batch: nnU-Net's batch: ``data`` (B, C, *P), ``target`` and ``keys``, the case ids. Channels after those of the data
                set, which a cascade has, stay.
        """
        if self._dropout["p"]:
            batch["data"] = self._drop(batch["data"].to(self.device, non_blocking=True), batch["keys"])
        return super().train_step(batch)

    def _drop(self, image: Tensor, cases: list[str]) -> Tensor:
        """The batch with 0 in what the cases lack or lose; it is changed in place."""
        present = torch.stack([self._present_in(str(case)) for case in cases])
        key = (self._dropout_seed, Stream.MODALITIES, self.current_epoch, self._steps_of_epoch, self.local_rank)
        self._steps_of_epoch += 1
        kept = kept_modalities(present, self._dropout["p"], self._never_dropped, seeded_generator(*key))
        gone = (~kept).to(image.device, non_blocking=True)
        image[:, : gone.shape[1]].masked_fill_(gone.reshape(*gone.shape, *[1] * (image.ndim - 2)), 0)
        return image

    def _present_in(self, case: str) -> Tensor:
        """Which modalities a case has, (C,) bool."""
        if case not in self._present:
            data = self.dataset_class(self.preprocessed_dataset_folder, [case]).load_case(case)[0]
            self._present[case] = present_channels(torch.from_numpy(data[:]))
        return self._present[case]

    def load_checkpoint(self, filename_or_checkpoint: str | dict) -> None:
        """Continue as nnU-Net does, dropping what the stage dropped when it began.

        Args:
            filename_or_checkpoint: The path of a checkpoint, or its content.
        """
        super().load_checkpoint(filename_or_checkpoint)
        began = self.my_init_kwargs.get(RECORD, {"p": 0.0, "never": []})
        if began != self._dropout:
            self.print_to_log_file(
                f"The stage began with {_told(began)} and goes on so; the plans say {_told(self._dropout)} now"
            )
        self._dropout = began
        self._never_dropped = torch.tensor([name in began["never"] for name in channel_names(self.dataset_json)])

    def save_checkpoint(self, filename: str) -> None:
        """Write nnU-Net's checkpoint, whose ``init_args`` say what the training drops.

        Args:
            filename: The path of the checkpoint.
        """
        self.my_init_kwargs = self.my_init_kwargs | {RECORD: self._dropout}
        super().save_checkpoint(filename)
