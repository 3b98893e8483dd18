"""The segmentation stage: nnU-Net's trainer with a pretrained encoder, a warm-up and a peak rate that suits the encoder."""

from __future__ import annotations

import json
import random
from copy import copy
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from emim_nnunet.checkpoints.encoder import encoder_state, load_encoder, require_finite
from emim_nnunet.checkpoints.io import read_checkpoint
from emim_nnunet.checkpoints.network import planned_network
from emim_nnunet.datasets.channel_names import channel_names
from emim_nnunet.datasets.preprocessed import without_code
from emim_nnunet.errors import EXIT_INTERRUPTED, UserError, causes_logged
from emim_nnunet.networks import encoder_of, is_primus
from emim_nnunet.networks.backbones import primus_trainer
from emim_nnunet.nnunet.plans import ConfigurationManager, PlansManager
from emim_nnunet.nnunet.training import nnUNetTrainer
from emim_nnunet.report import leave_report
from emim_nnunet.settings.block import config_from_block, require
from emim_nnunet.settings.plans import planned
from emim_nnunet.settings.stages import SCRATCH, FinetuneConfig
from emim_nnunet.storage.files import atomic_write, write_json
from emim_nnunet.training.checkpoint import FINAL, LATEST, unfinished_checkpoint
from emim_nnunet.training.faults import explained
from emim_nnunet.training.log import without_paths
from emim_nnunet.training.modality_dropout import ModalityDropoutTrainer
from emim_nnunet.training.same_stage import Setup, finished_stage
from emim_nnunet.training.schedule import WarmupPolyLRScheduler, warmup_length
from emim_nnunet.training.ssl_trainer import SSLTrainer
from emim_nnunet.training.stage import stage_folder

STOCK_TRAINER = "nnUNetTrainer"


class FinetuneTrainer(ModalityDropoutTrainer):
    """nnU-Net's segmentation training from the encoder of an SSL stage.

    The encoder comes from ``-pretrained_weights`` if given, otherwise from the finished SSL stage of ``ssl_trainer_class``
    for the same data set, plans, configuration and fold. The network is nnU-Net's own, so checkpoints carry nnU-Net's own
    trainer name and prediction needs nothing of this package.
    """

    ssl_trainer_class: ClassVar[type[SSLTrainer]]
    runs_ssl_stage: ClassVar[bool] = False
    stored_trainer_name: ClassVar[str | None] = STOCK_TRAINER  # None = the name of the class itself
    dataset_class: type

    def _set_up(self) -> None:
        self.num_epochs = self.config.finetune_num_epochs
        self.num_iterations_per_epoch = self.config.finetune_num_iterations_per_epoch
        self.num_val_iterations_per_epoch = self.config.finetune_num_val_iterations_per_epoch
        self.is_primus = is_primus(self.configuration_manager.configuration["architecture"])
        self.enable_deep_supervision = self.config.finetune_deep_supervision and not self.is_primus
        self.initial_lr, _ = self._peak_rate(pretrained=self.config.finetune_init != SCRATCH)
        self._resumed = self._trained = False
        self._weights_given = False

    def _read_settings(self) -> None:
        self.config = config_from_block(FinetuneConfig, self.block)
        self.ssl_trainer_name = self.config.finetune_ssl_trainer or self.ssl_trainer_class.__name__
        require(
            not self.runs_ssl_stage or self.ssl_trainer_name == self.ssl_trainer_class.__name__,
            f"finetune_ssl_trainer is {self.ssl_trainer_name}, but {type(self).__name__} runs the SSL stage of "
            f"{self.ssl_trainer_class.__name__}: use nnUNetTrainerEMIMFinetune",
        )

    def initialize(self) -> None:
        """Initialise as nnU-Net does, and notice if ``-pretrained_weights`` loads weights into the encoder later."""
        self._seed()
        super().initialize()
        self.dataset_class = without_code(self.dataset_class)
        # a Primus has no module that is its encoder as a whole
        part = self.encoder.get_submodule("eva") if self.is_primus else self.encoder
        self._loading = part.register_load_state_dict_post_hook(self._note_given_weights)

    def _note_given_weights(self, *of_the_hook: object) -> None:
        self._weights_given = True

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The network of the plans, built by nnU-Net; a network that cannot be built is a :class:`UserError`."""
        architecture = configuration_manager.configuration["architecture"]
        with planned("the network that the plans describe cannot be built"):
            if is_primus(architecture):
                return planned_network(
                    architecture, num_input_channels, num_output_channels, deep_supervision=False, seed=None
                )
            network = nnUNetTrainer.build_network_architecture(
                plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
            )
        if (
            not enable_deep_supervision
        ):  # nnU-Net's decoder has the layers all the same, and DDP waits for their gradient
            for layer in list(network.get_submodule("decoder.seg_layers"))[:-1]:
                layer.requires_grad_(False)
        return network

    def _build_loss(self) -> nn.Module:
        with planned("the loss that the plans describe cannot be built"):
            return super()._build_loss()

    @property
    def unwrapped_network(self) -> nn.Module:
        """The network without DDP and torch.compile around it."""
        network = self.network.module if isinstance(self.network, DistributedDataParallel) else self.network
        return network._orig_mod if isinstance(network, OptimizedModule) else network

    @property
    def encoder(self) -> nn.Module:
        """The encoder of :attr:`unwrapped_network`."""
        return encoder_of(self.unwrapped_network)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, WarmupPolyLRScheduler]:
        """nnU-Net's SGD, or its AdamW for a Primus, with a linear warm-up before nnU-Net's polynomial decay of the rate."""
        if self.is_primus:
            optimizer: torch.optim.Optimizer = torch.optim.AdamW(
                self.network.parameters(), self.initial_lr, weight_decay=5e-2, betas=(0.9, 0.98), fused=True
            )
            optimizer.register_step_pre_hook(self._clip_more)
        else:
            optimizer, _ = super().configure_optimizers()
        return optimizer, self._schedule(optimizer)

    def _clip_more(self, *of_the_hook: object) -> None:
        """nnU-Net's step has clipped the gradients at 12; that of its Primus trainers does at 1."""
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Turn deep supervision on or off, as nnU-Net does around its validation; a Primus has none."""
        if not self.is_primus:
            super().set_deep_supervision_enabled(enabled)

    def _peak_rate(self, *, pretrained: bool) -> tuple[float, str]:
        """The highest learning rate, and why it is that."""
        if pretrained:
            return self.config.finetune_initial_lr, "finetune_initial_lr: the encoder is pretrained"
        return self.config.finetune_scratch_lr, "finetune_scratch_lr: the encoder is from scratch"

    def _num_warmup_epochs(self) -> int:
        return warmup_length(self.config.finetune_warmup_epochs, self.num_epochs)

    def _schedule(self, optimizer: torch.optim.Optimizer) -> WarmupPolyLRScheduler:
        """The schedule with the peak :attr:`initial_lr`, which the parameter groups, and so checkpoints, hold too."""
        for group in optimizer.param_groups:
            group["initial_lr"] = self.initial_lr
        return WarmupPolyLRScheduler(optimizer, self.initial_lr, self.num_epochs, self._num_warmup_epochs())

    def _set_peak_rate(self, rate: float, why: str) -> None:
        """Go on with a schedule of that peak."""
        self.initial_lr = rate
        self.lr_scheduler = self._schedule(self.optimizer)
        self.print_to_log_file(f"Peak learning rate: {rate:g} ({why})")

    def run_training(self) -> None:
        """Load the encoder (after running its SSL stage, if this trainer does that), then train as nnU-Net does."""
        self._trained = True
        with causes_logged(self._log_quietly), explained(), self._folder:
            if not self.was_initialized:
                self.initialize()
            self.trackers.begin(new=not (self._resumed or self._asked_to_continue))
            self._prepare_encoder()
            self._seed()
            with self._interruption:
                try:
                    super().run_training()
                except RuntimeError:  # nnU-Net's workers got the signal too and are gone: this epoch cannot be finished
                    if self._interruption.signal is None:
                        raise
                    self._stop(f"in epoch {self.current_epoch}, which will begin again")

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Predict and score the validation cases as nnU-Net does, unless ``finetune_final_validation`` is off after a training.

        Args:
            save_probabilities: Whether to save the class probabilities of every voxel.
        """
        if self._trained and not self.config.finetune_final_validation:
            self.print_to_log_file("finetune_final_validation is false: --val predicts whole cases")
        else:
            with self._folder:
                super().perform_actual_validation(save_probabilities)
        self.trackers.finish()
        if self.local_rank == 0:
            leave_report(Path(self.output_folder), self.print_to_log_file)

    def on_epoch_end(self) -> None:
        """End an epoch as nnU-Net does; after SIGTERM or SIGINT, write a checkpoint and exit.

        A signal takes effect here because nnU-Net cannot continue in the middle of an epoch.
        """
        super().on_epoch_end()
        if self.current_epoch < self.num_epochs and self._interruption.asked():
            self._stop(f"after epoch {self.current_epoch - 1}", together=True)

    def _stop(self, when: str, *, together: bool = False) -> None:
        """Write a checkpoint from which :attr:`current_epoch` begins, and exit; ``together``: all processes call this."""
        self.current_epoch -= 1  # nnU-Net stores the number of the epoch after this one
        self.save_checkpoint(str(Path(self.output_folder) / LATEST))
        self.current_epoch += 1
        if together:
            self._interruption.wait_for_all()
        self.print_to_log_file(
            f"Stopped by a signal {when}, with a checkpoint: --c continues (exit code {EXIT_INTERRUPTED})"
        )
        raise SystemExit(EXIT_INTERRUPTED)

    def _save_debug_information(self) -> None:
        """Write nnU-Net's ``debug.json``, without the paths and the name of this machine."""
        super()._save_debug_information()
        file = Path(self.output_folder) / "debug.json"
        if self.local_rank == 0 and file.is_file():
            content = json.loads(without_paths(file.read_text()))
            write_json(file, {key: value for key, value in content.items() if key != "hostname"}, indent=4)

    def _seed(self) -> None:
        """Seed the generators that nnU-Net's training draws from, if ``finetune_seed`` is set."""
        seed = self.config.finetune_seed
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)

    def _prepare_encoder(self) -> None:
        self._loading.remove()
        if self._resumed:
            return
        pretrained = self._weights_given or self.config.finetune_init != SCRATCH
        if self._weights_given:
            require_finite(self.encoder.state_dict(), "the encoder of -pretrained_weights")
            self.print_to_log_file("Encoder: from -pretrained_weights")
        elif pretrained:
            self._load_from_ssl_stage()
        else:
            self.print_to_log_file("Encoder: from scratch (finetune_init)")
        self._set_peak_rate(*self._peak_rate(pretrained=pretrained))

    def _load_from_ssl_stage(self) -> None:
        ssl_fold = "all" if self.config.finetune_ssl_fold == "all" else self.fold
        folder = self._ssl_folder(ssl_fold)
        now = Setup(self.block, self.plans_manager.plans, self.configuration_name, self.dataset_json)
        finished = finished_stage(folder, now, self.preprocessed)
        if finished is None and self.runs_ssl_stage:
            self._run_ssl_stage(ssl_fold, folder)
            finished = finished_stage(folder, now, self.preprocessed)
        if finished is None:
            raise UserError(
                f"no finished SSL stage in {folder}: train {self.ssl_trainer_name} first, or give -pretrained_weights"
            )
        content, remarks = finished
        self._check_leakage(content["training_cases"], ssl_fold)
        names = (content["channel_names"], channel_names(self.dataset_json))
        state = encoder_state(content)
        remarks += load_encoder(self.encoder, state, source=str(folder / FINAL), names=names)
        self.print_to_log_file(f"Encoder: from {folder / FINAL}")
        for remark in remarks:
            self.print_to_log_file(remark)
        self.print_to_log_file(f"It was pretrained on {len(content['training_cases'])} cases")

    def _ssl_folder(self, fold: int | str) -> Path:
        plans = self.plans_manager
        return stage_folder(self.ssl_trainer_name, plans.dataset_name, plans.plans_name, self.configuration_name, fold)

    def _check_leakage(self, ssl_cases: list[str], ssl_fold: int | str) -> None:
        """Refuse an SSL stage that has seen validation cases of this fold, or warn of it where the settings asked for it."""
        training_ids, validation_ids = self.do_split()
        seen = sorted(set(validation_ids) & set(ssl_cases) - set(training_ids))
        if seen and (ssl_fold == "all" or self.block.get("use_validation_cases")):
            self.print_to_log_file(f"WARNING: the SSL stage has seen the images of this fold's validation: {seen}")
        elif seen:
            raise UserError(
                f"the SSL stage in {self._ssl_folder(ssl_fold)} has learnt from validation cases of fold {self.fold} "
                f"({', '.join(seen)}): was splits_final.json changed? Move that folder away to pretrain anew"
            )

    def _run_ssl_stage(self, fold: int | str, folder: Path) -> None:
        """Run or continue the SSL stage with this trainer's data set, plans and configuration."""
        self.print_to_log_file(f"SSL stage first: {folder}")
        unfinished = unfinished_checkpoint(folder)
        trainer = self.ssl_trainer_class(
            plans=self.plans_manager.plans | {"continue_training": unfinished is not None},
            configuration=self.configuration_name,
            fold=fold,
            dataset_json=self.dataset_json,
            device=self.device,
        )
        trainer.trackers = self.trackers  # one run for both stages
        if unfinished is not None:
            trainer.load_checkpoint(str(unfinished))
        trainer.run_training()
        self.print_to_log_file("SSL stage finished, segmentation follows")

    def load_checkpoint(self, filename_or_checkpoint: str | dict) -> None:
        """Continue the segmentation stage as nnU-Net does, without running any code in the file.

        The encoder is part of the checkpoint, so it is not loaded from the SSL stage again. The peak of the learning rate stays
        that with which the stage began.

        Args:
            filename_or_checkpoint: The path of a checkpoint, or its content.

        Raises:
            UserError: The file is damaged or holds objects that only running code could restore, or another process writes to
                the output folder.
        """
        with self._folder.held_from_now_on():
            if isinstance(filename_or_checkpoint, str):
                read_checkpoint(
                    Path(filename_or_checkpoint)
                )  # refuses code; nnU-Net reads it again, and takes no dict here
            super().load_checkpoint(filename_or_checkpoint)
            began = self.optimizer.param_groups[0].get("initial_lr", self.initial_lr)
            self._set_peak_rate(began, "with which the stage began")
        self._resumed = True

    def save_checkpoint(self, filename: str) -> None:
        """Write nnU-Net's checkpoint atomically, under the name of the trainer that prediction needs.

        Args:
            filename: The path of the checkpoint.
        """
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        self._folder.check()
        named = copy(self)  # nnU-Net stores the name of the object's class
        named.__class__ = type(self._stored_name(), (type(self),), {})
        atomic_write(Path(filename), super(FinetuneTrainer, named).save_checkpoint)  # torch.save takes files as well

    def _stored_name(self) -> str:
        """The trainer that prediction needs: nnU-Net's own, whatever builds the network of the plans."""
        if self.stored_trainer_name is None:
            return type(self).__name__
        architecture = self.configuration_manager.configuration["architecture"]
        return primus_trainer(architecture) or type(self).__name__ if self.is_primus else self.stored_trainer_name
