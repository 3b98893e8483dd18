"""The parts of an SSL stage: its settings, its data, its method and its checkpoints. The loop is in :mod:`.ssl_trainer`."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from emim_nnunet.checkpoints.io import FORMAT_VERSION, SSL_FORMAT, save_checkpoint
from emim_nnunet.checkpoints.network import planned_method
from emim_nnunet.dataloading.batch import Augmentation, draw, method_inputs
from emim_nnunet.dataloading.crops import CropDataset
from emim_nnunet.dataloading.loader import BatchNumbers, CropBatches
from emim_nnunet.datasets.channel_names import channel_names
from emim_nnunet.datasets.checksums import case_digests
from emim_nnunet.datasets.preprocessed import case_path
from emim_nnunet.datasets.stage_cases import StageCases, stage_cases
from emim_nnunet.diagnosis.collapse_monitor import CollapseMonitor
from emim_nnunet.diagnosis.reference import read_reference
from emim_nnunet.diagnostics.case_scores import CaseScores
from emim_nnunet.distributed import world_size
from emim_nnunet.errors import UserError
from emim_nnunet.masking import grid_size
from emim_nnunet.methods.base import SSLMethod
from emim_nnunet.networks import cumulative_strides, own_norm_outputs, planned_geometry
from emim_nnunet.nnunet.cases import infer_dataset_class
from emim_nnunet.nnunet.plans import ConfigurationManager, determine_num_input_channels
from emim_nnunet.nnunet.training import get_allowed_n_proc_DA
from emim_nnunet.settings.block import config_from_block, require
from emim_nnunet.settings.plans import planned
from emim_nnunet.settings.stages import TrainingConfig
from emim_nnunet.storage.versions import versions
from emim_nnunet.training.checkpoint import PREVIOUS, load_newest, load_states
from emim_nnunet.training.epoch_report import EpochAtHand
from emim_nnunet.training.evaluation import Evaluation, Inputs, orientations_of
from emim_nnunet.training.interruption import outlive_signals
from emim_nnunet.training.log import SSLLog
from emim_nnunet.training.same_stage import Setup, check_continued
from emim_nnunet.training.schedule import warmup_length
from emim_nnunet.training.stage import refuse_settings_without_effect
from emim_nnunet.training.stage_trainer import StageTrainer
from emim_nnunet.training.step import GuardedStep, SkippedSteps

PROBE_SEED_OFFSET = 1_000_003  # crops and masks of the probe set differ from those of training


class SSLStage(StageTrainer):
    """An SSL stage of ``method_class`` on a data set that nnU-Net preprocessed, without the loop.

    The arguments are those of :class:`StageTrainer`.
    """

    method_class: ClassVar[type[SSLMethod]]
    network: nn.Module
    dataloader_train: CropBatches | None
    dataloader_val: CropBatches | None

    def _set_up(self) -> None:
        if self.is_ddp:  # nnU-Net assumes CUDA, and one machine: its local_rank is the rank among all processes
            index = int(os.environ.get("LOCAL_RANK", self.local_rank))
            self.device = torch.device("cuda", index) if self._asked_device.type == "cuda" else self._asked_device
        self.num_epochs = self.config.num_epochs
        self.num_iterations_per_epoch = self.config.num_iterations_per_epoch
        self.num_val_iterations_per_epoch = self.config.num_val_iterations_per_epoch
        self.channel_names = channel_names(self.dataset_json)
        self.cases: StageCases | None = None
        self._case_digests: dict[str, str] = {}
        self.ssl_log = SSLLog()
        self.monitor = CollapseMonitor(
            self.configuration_manager.patch_size,
            self.method_config.cell_size,
            self.channel_names,
            seed=self.config.seed,
            warmup_epochs=warmup_length(self.config.warmup_epochs, self.num_epochs),
            norm_pix=getattr(self.method_config, "norm_pix", False),
            reference=self._reference,
        )
        self._epoch = EpochAtHand()
        self._resumed = self._finished = False
        self._last_checkpoint = float("-inf")  # the first epoch writes one
        self._bar: tqdm | None = None
        self._picture_due = False
        self._case_scores: CaseScores | None = None
        self._case_rows: list[dict[str, Any]] = []
        self.skipped = SkippedSteps(
            Path(self.output_folder) / "non_finite", self.config.max_skipped_steps, self._draw_again
        )

    def _read_settings(self) -> None:
        self.config = config_from_block(TrainingConfig, self.block)
        self.method_config = config_from_block(self.method_class.config_class, self.block)
        self._reference = read_reference(self.config.collapse_reference)
        if not self._asked_to_continue:  # earlier versions took it
            refuse_settings_without_effect(self.block, self.method_class)

    def _check_configuration(self, name: str, configuration: ConfigurationManager) -> None:
        require(configuration.previous_stage_name is None, f"'{name}' is a cascade stage: pretrain '3d_fullres'")
        strides, _ = planned_geometry(configuration.configuration["architecture"])
        self.method_class.check(self.method_config, configuration.patch_size, strides)
        grid_size(configuration.patch_size, self.method_config.cell_size)  # for the monitor, whatever the method
        token, cell = cumulative_strides(strides, len(configuration.patch_size))[0], self.method_config.cell_size
        require(
            all(c % t == 0 for c, t in zip(cell, token, strict=True)),
            f"cell_size {list(cell)} must be a multiple of the network's tokens, {list(token)}: a token is masked or not",
        )

    def initialize(self) -> None:
        """Build method, optimiser and, in a process group, the DDP wrapper."""
        if self.was_initialized:
            raise RuntimeError("initialize was called twice")
        self.num_input_channels = determine_num_input_channels(
            self.plans_manager, self.configuration_manager, self.dataset_json
        )
        with planned("the network that the plans describe cannot be built"):
            method = self._build_method()
        self.network = method.to(self.device)
        if not self._do_i_compile():
            own_norm_outputs(self.network)
        else:
            self.print_to_log_file("Using torch.compile...")
            self.network = cast(nn.Module, torch.compile(self.network))
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        if self.is_ddp:
            device_ids = [self.device.index] if self.device.type == "cuda" else None
            self.network = DistributedDataParallel(self.network, device_ids=device_ids)
        self.guarded_step = GuardedStep(
            self.optimizer,
            self.network,
            self.device,
            gradient_clip=self.config.gradient_clip,
            skipped=self.skipped,
        )
        self.grad_scaler = self.guarded_step.scaler
        self.evaluation = Evaluation(
            self.monitor, self._probe_inputs, self.guarded_step.autocast, self.configuration_manager.patch_size
        )
        self.was_initialized = True

    def _build_method(self) -> SSLMethod:
        """The method as it is before the first step; its weights depend on the seed alone."""
        return planned_method(
            self.method_class,
            self.configuration_manager.configuration["architecture"],
            self.num_input_channels,
            self.configuration_manager.patch_size,
            self.method_config,
            seed=self.config.seed,
        )

    @property
    def method(self) -> SSLMethod:
        """The method without DDP and torch.compile around it."""
        network = self.network.module if isinstance(self.network, DistributedDataParallel) else self.network
        method = network._orig_mod if isinstance(network, OptimizedModule) else network
        assert isinstance(method, SSLMethod)
        return method

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, None]:
        """AdamW, with weight decay on matrices and kernels only. The rate is set in each step, so there is no scheduler."""
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.config.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        fused = self.device.type in ("cpu", "cuda")  # one pass over the parameters, no temporary copies
        return torch.optim.AdamW(groups, lr=self.config.initial_lr, betas=(0.9, 0.95), fused=fused), None

    def find_cases(self) -> StageCases:
        """The cases of this fold's SSL stage.

        Raises:
            UserError: No case is preprocessed, or a numbered fold is asked of a single case.
        """
        data = self.preprocessed
        data.require_cases()
        case = (data.labelled or data.unlabelled)[0]
        self.dataset_class = infer_dataset_class(str(case_path(case.folder, case.identifier).parent))
        training_ids, validation_ids = self.do_split() if data.labelled else ([], [])
        return stage_cases(data, training_ids, validation_ids, use_validation=self.config.use_validation_cases)

    def get_dataloaders(self) -> tuple[CropBatches, CropBatches]:
        """Endless batches for training, from the current step on, and the batches of the probe set, which repeat."""
        self.cases = self.find_cases()
        first_step = self.current_epoch * self.num_iterations_per_epoch + self._epoch.iteration
        workers = get_allowed_n_proc_DA()
        seed, steps = self.config.seed, self.num_val_iterations_per_epoch
        training = self._batches(self.cases.training, seed, workers, first_step=first_step).start()
        # its worker starts when it is needed, so that it does not slow down the first training batches
        probe = self._batches(self.cases.probe, seed + PROBE_SEED_OFFSET, min(1, workers), num_steps=steps)
        cases = [*self.cases.training, *self.cases.probe]
        self._case_digests |= case_digests([case for case in cases if case.identifier not in self._case_digests])
        return training, probe

    def _batches(self, cases: list, seed: int, workers: int, **numbers: int) -> CropBatches:
        batches = BatchNumbers(self.config.batch_size, rank=self.local_rank, world_size=world_size(), **numbers)
        crop_size = self.method_class.crop_size(self.method_config, self.configuration_manager.patch_size)
        dataset = CropDataset(cases, crop_size, seed)
        dataset.check_channels(len(self.channel_names))
        pin_memory = self.device.type == "cuda"
        return CropBatches(dataset, batches, num_workers=workers, pin_memory=pin_memory, start_worker=outlive_signals)

    def _training_inputs(self, batch: dict) -> Inputs:
        config = self.config
        augmentation = Augmentation(config.seed, config.p_rotation, config.p_scaling, config.mirror)
        return self._inputs(batch, config.seed, augmentation)

    def _probe_inputs(self, batch: dict) -> Inputs:
        return self._inputs(batch, self.config.seed + PROBE_SEED_OFFSET)

    def _inputs(self, batch: dict, seed: int, augmentation: Augmentation | None = None) -> Inputs:
        zero_outside = self.configuration_manager.use_mask_for_norm
        return method_inputs(self.method, batch, self.device, zero_outside, seed, augmentation)

    def _draw_again(self, about: dict[str, Any]) -> dict[str, Tensor]:
        return draw(self.method, about["seed"], about["index"], about["present"])

    def save_checkpoint(self, filename: str) -> None:
        """Write everything that is needed to continue or to transfer, atomically; the checkpoint before it is kept.

        Args:
            filename: The path of the checkpoint.

        Raises:
            OSError: The file system refused; earlier checkpoints are unchanged then.
        """
        if self.local_rank != 0:
            return
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        self._folder.check()
        save_checkpoint(self._checkpoint(), Path(filename), keep_as=Path(filename).with_name(PREVIOUS))

    def _checkpoint(self) -> dict[str, Any]:
        assert self.cases is not None
        return self._epoch.state() | {
            "format": SSL_FORMAT,
            "format_version": FORMAT_VERSION,
            "method": self.method_class.__name__,
            "trainer_name": type(self).__name__,
            "network_weights": self.method.state_dict(),
            "optimizer_state": self.optimizer.state_dict(),
            "grad_scaler_state": self.grad_scaler.state_dict() if self.grad_scaler else None,
            "current_epoch": self.current_epoch,
            "skipped_steps": self.skipped.count,
            "finished": self._finished,
            "history": self.ssl_log.state(),
            "collapse": self.monitor.history,
            "verdict": self.monitor.verdict.to_dict() if self.monitor.history else None,
            "plans": self.plans_manager.plans,
            "configuration": self.configuration_name,
            "fold": self.fold,
            "dataset_json": self.dataset_json,
            "emim": self.block,
            "settings": asdict(self.method_config),
            "channel_names": self.channel_names,
            "training_cases": [case.identifier for case in self.cases.training],
            "validation_cases": [c.identifier for c in self.cases.probe] if self.cases.probe_is_held_out else [],
            "case_digests": self._case_digests,
            "seed": self.config.seed,
            "versions": versions(),
        }

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Continue an SSL stage (``--c``).

        Args:
            filename_or_checkpoint: The path of a checkpoint of an SSL stage.

        Raises:
            UserError: The file is no checkpoint of ours, it is damaged (and so is the one before it), it was made with other
                settings or cases, or another process writes the stage.
        """
        with self._folder.held_from_now_on():
            self._continue_from(filename_or_checkpoint)

    def _continue_from(self, filename_or_checkpoint: str) -> None:
        checkpoint, remark = load_newest(Path(filename_or_checkpoint))
        if remark:
            self.print_to_log_file(remark)
        if checkpoint["method"] != self.method_class.__name__:
            raise UserError(f"{filename_or_checkpoint} is of method {checkpoint['method']}, not of this trainer's")
        if not self.was_initialized:
            self.method_config = self.method_class.config_class.of_checkpoint(checkpoint, self.block)
            self.initialize()
        setup = Setup(self.block, self.plans_manager.plans, self.configuration_name, self.dataset_json)
        for line in check_continued(checkpoint, setup, self.find_cases(), Path(self.output_folder)):
            self.print_to_log_file(line)
        load_states(checkpoint, self.method, self.optimizer, self.grad_scaler, filename_or_checkpoint)
        self.current_epoch = checkpoint["current_epoch"]
        self._finished, self._resumed = checkpoint["finished"], True
        self.ssl_log.load_state(checkpoint["history"])
        # earlier versions did not note the step
        self.monitor.history = [
            m if "step" in m else m | {"step": m["epoch"] * self.num_iterations_per_epoch}
            for m in checkpoint["collapse"]
        ]
        self._case_digests = checkpoint.get("case_digests", {})
        self._epoch.go_on(checkpoint, self.device)
        self.skipped.start_epoch(checkpoint["skipped_steps"])
        done, steps = self._epoch.iteration, self.num_iterations_per_epoch
        partly = f" and {done} of {steps} steps of the next" if done else ""
        self.print_to_log_file(f"Continuing after {self.current_epoch} of {self.num_epochs} epochs{partly}")

    def _about(self) -> dict[str, Any]:
        assert self.cases is not None
        return {
            "trainer": type(self).__name__,
            "method": self.method_class.__name__,
            "dataset": self.plans_manager.dataset_name,
            "configuration": self.configuration_name,
            "fold": self.fold,
            "probe_cases": [case.identifier for case in self.cases.probe],
            "probe_is_held_out": self.cases.probe_is_held_out,
            "versions": versions(),
        }

    def _orientations(self) -> dict[str, str]:
        """Case id -> orientation of the patch's axes, for the probe cases where it is known."""
        assert self.cases is not None
        num_axes = len(self.configuration_manager.patch_size)
        return orientations_of(self.cases.probe, self.plans_manager.transpose_forward, num_axes)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Do nothing: the SSL stage has no deep supervision."""

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Log what to do next: an SSL stage has nothing to segment, but nnU-Net always calls this."""
        self.print_to_log_file(
            "An SSL stage has no segmentation to validate. Next: -tr nnUNetTrainerEMIMFinetune, or emim_export and "
            "-pretrained_weights with any trainer."
        )
        self.trackers.finish()
