"""The SSL stage as a subclass of nnUNetTrainer: the only place that knows nnU-Net's training loop."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any, ClassVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from emim_nnunet.checkpoints.io import FORMAT_VERSION, SSL_FORMAT, save_checkpoint
from emim_nnunet.checkpoints.network import planned_method
from emim_nnunet.dataloading.crops import CropDataset
from emim_nnunet.dataloading.loader import BatchNumbers, CropBatches
from emim_nnunet.datasets.channel_names import channel_names
from emim_nnunet.datasets.checksums import case_digests
from emim_nnunet.datasets.preprocessed import case_folders, case_identifiers, read_orientations, unlabelled_folder
from emim_nnunet.datasets.splits import read_origins, read_patients
from emim_nnunet.devices import check_device
from emim_nnunet.diagnosis.collapse_monitor import CollapseMonitor
from emim_nnunet.errors import EXIT_INTERRUPTED, UserError, describe_os_error
from emim_nnunet.methods.base import MethodOutput, SSLMethod
from emim_nnunet.networks import PlannedEncoder, own_norm_outputs
from emim_nnunet.nnunet.cases import infer_dataset_class
from emim_nnunet.nnunet.plans import PlansManager, determine_num_input_channels
from emim_nnunet.nnunet.training import empty_cache, get_allowed_n_proc_DA, nnUNetTrainer
from emim_nnunet.randomness import Stream, seeded_generator
from emim_nnunet.settings.block import config_from_block, require
from emim_nnunet.settings.plans import planned
from emim_nnunet.settings.stages import TrainingConfig
from emim_nnunet.storage.files import remove_leftovers, write_json
from emim_nnunet.storage.versions import versions
from emim_nnunet.training import stage
from emim_nnunet.training.description import describe_cases, describe_cost, describe_unused
from emim_nnunet.training.epoch_report import log_lines, mean_terms, record_on, save_reconstructions, step_record
from emim_nnunet.training.faults import SkippedSteps, explained, read_later, when_there_is_space
from emim_nnunet.training.interruption import Interruption, outlive_signals
from emim_nnunet.training.log import SSLLog, without_paths
from emim_nnunet.training.output_folder import OutputFolder
from emim_nnunet.training.plots import plot_progress
from emim_nnunet.training.restore import load_states
from emim_nnunet.training.same_stage import NO_CHECKSUMS, Setup, check_continued
from emim_nnunet.training.schedule import warmup_cosine_lr, warmup_length
from emim_nnunet.views.augmentation import clear_outside_, mirror_, rotate_and_scale_
from emim_nnunet.views.boxes import centre_box

PROBE_SEED_OFFSET = 1_000_003  # crops and masks of the probe set differ from those of training


class SSLTrainer(nnUNetTrainer):
    """Runs the SSL stage of ``method_class`` on a data set that nnU-Net preprocessed.

    Found by ``nnUNetv2_train -tr`` through its subclasses, which only name the method. Settings come from the ``emim``
    block of the plans. Writes ``ssl_log.csv``, ``progress.png``, ``reconstructions/``, the files of the collapse monitor and
    checkpoints that read with ``weights_only=True`` into nnU-Net's output folder.

    Args:
        plans: Plans JSON with an ``emim`` block.
        configuration: Name of a configuration.
        fold: Number of a fold, or ``all``.
        dataset_json: ``dataset.json``.
        device: Where to train.

    Raises:
        UserError: The block does not fit the plans; nothing has been written then.
    """

    method_class: ClassVar[type[SSLMethod]]
    # nnU-Net's, which has no types
    local_rank: int
    network: nn.Module
    was_initialized: bool
    current_epoch: int
    dataloader_train: CropBatches | None
    dataloader_val: CropBatches | None

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int | str,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's signature, checked by name
    ) -> None:
        check_device(device.type)
        self._asked_to_continue = plans.get("continue_training", False)  # nnU-Net takes the key away
        self.block = stage.read_block(plans, configuration)
        self.config = config_from_block(TrainingConfig, self.block)
        self.method_config = config_from_block(self.method_class.config_class, self.block)
        if not self._asked_to_continue:  # earlier versions took it
            stage.refuse_settings_without_effect(self.block, self.method_class)
        with planned(f"configuration '{configuration}' of the plans cannot be used"):
            about = PlansManager(plans).get_configuration(configuration)
            require(about.previous_stage_name is None, f"'{configuration}' is a cascade stage: pretrain '3d_fullres'")
            self.method_class.check(self.method_config, about.patch_size, about.pool_op_kernel_sizes)
            super().__init__(plans, configuration, fold, dataset_json, device)
        if self.is_ddp:  # nnU-Net assumes CUDA, and one machine: its local_rank is the rank among all processes
            index = int(os.environ.get("LOCAL_RANK", self.local_rank))
            self.device = torch.device("cuda", index) if device.type == "cuda" else device
        self.num_epochs = self.config.num_epochs
        self.num_iterations_per_epoch = self.config.num_iterations_per_epoch
        self.num_val_iterations_per_epoch = self.config.num_val_iterations_per_epoch
        self.use_bfloat16 = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        if self.use_bfloat16:
            self.grad_scaler = None
        self.channel_names = channel_names(dataset_json)
        self.cases: stage.StageCases | None = None
        self._case_digests: dict[str, str] = {}
        self.ssl_log = SSLLog()
        self.monitor = CollapseMonitor(
            about.patch_size,
            self.method_config.cell_size,
            self.channel_names,
            seed=self.config.seed,
            warmup_epochs=warmup_length(self.config.warmup_epochs, self.num_epochs),
            norm_pix=getattr(self.method_config, "norm_pix", False),
        )
        self._resumed = self._finished = False
        self._last_checkpoint = float("-inf")  # the first epoch writes one
        self._bar: tqdm | None = None
        self._row: dict[str, float] = {}
        # of the epoch at hand, of which a checkpoint may be in the middle
        self._iteration = 0
        self._records: list[dict[str, Any]] = []
        self._seconds_before = 0.0
        self._picture_due = False
        self._skipped = SkippedSteps(
            Path(self.output_folder) / "non_finite", self.config.max_skipped_steps, self._redraw
        )
        self._interruption = Interruption()
        self._folder = OutputFolder(self.output_folder, self.local_rank)

    # ------------------------------------------------------------------------------------------------- set-up

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
        self.was_initialized = True

    def _build_method(self) -> SSLMethod:
        """As it is before the first step: a function of the seed alone."""
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
        """AdamW, weight decay on matrices and kernels only. The rate is set per step, so there is no scheduler."""
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.config.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        fused = self.device.type in ("cpu", "cuda")  # one pass over the parameters, no temporary copies
        return torch.optim.AdamW(groups, lr=self.config.initial_lr, betas=(0.9, 0.95), fused=fused), None

    def find_cases(self) -> stage.StageCases:
        """The cases of this fold's SSL stage.

        Raises:
            UserError: None preprocessed, or a numbered fold of a single case.
        """
        labelled = Path(self.preprocessed_dataset_folder)
        unlabelled = unlabelled_folder(labelled)
        labelled_ids, unlabelled_ids = case_identifiers(labelled), case_identifiers(unlabelled)
        if not labelled_ids and not unlabelled_ids:
            raise UserError(f"no preprocessed case in {labelled}: run emim_plan_and_preprocess first")
        self.dataset_class = infer_dataset_class(str(labelled if labelled_ids else unlabelled))
        training_ids, validation_ids = self.do_split() if labelled_ids else ([], [])
        return stage.stage_cases(
            labelled,
            training_ids,
            validation_ids,
            unlabelled_ids,
            self.config.use_validation_cases,
            read_patients(labelled.parent),
            read_origins(labelled.parent),
        )

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's split; leave-one-out when there are fewer than five cases."""
        stage.prepare_splits(Path(self.preprocessed_dataset_folder), self.fold)
        return super().do_split()

    def get_dataloaders(self) -> tuple[CropBatches, CropBatches]:
        """Endless batches for training, from the current epoch on, and the repeating probe set."""
        self.cases = self.find_cases()
        first_step = self.current_epoch * self.num_iterations_per_epoch + self._iteration
        workers = get_allowed_n_proc_DA()
        seed, steps = self.config.seed, self.num_val_iterations_per_epoch
        training = self._batches(self.cases.training, seed, workers, first_step=first_step).start()
        # its worker starts when it is needed, and not in the way of the first training batches
        probe = self._batches(self.cases.probe, seed + PROBE_SEED_OFFSET, min(1, workers), num_steps=steps)
        cases = [*self.cases.training, *self.cases.probe]
        self._case_digests |= case_digests([case for case in cases if case.identifier not in self._case_digests])
        return training, probe

    def _batches(self, cases: list, seed: int, workers: int, **numbers: int) -> CropBatches:
        world_size = dist.get_world_size() if self.is_ddp else 1
        batches = BatchNumbers(self.config.batch_size, rank=self.local_rank, world_size=world_size, **numbers)
        crop_size = self.method_class.crop_size(self.method_config, self.configuration_manager.patch_size)
        dataset = CropDataset(cases, crop_size, seed)
        dataset.check_channels(len(self.channel_names))
        pin_memory = self.device.type == "cuda"
        return CropBatches(dataset, batches, num_workers=workers, pin_memory=pin_memory, start_worker=outlive_signals)

    # ------------------------------------------------------------------------------------------------- the loop

    def run_training(self) -> None:
        """nnU-Net's loop, which may begin in the middle of an epoch; nothing is done when the stage is finished already.

        Raises:
            UserError: What the user can mend.
            SystemExit: With :data:`EXIT_INTERRUPTED`, after SIGTERM or SIGINT; a checkpoint has been written then.
        """
        with explained(), self._folder, self._interruption:
            if self._finished:
                self.print_to_log_file(f"This SSL stage is finished: {Path(self.output_folder) / stage.FINAL}")
                return
            try:
                self.on_train_start()
                while self.current_epoch < self.num_epochs:
                    self.on_epoch_start()
                    self._train_for_an_epoch()
                    self._evaluate()
                    self.on_epoch_end()
                self.on_train_end()
            finally:
                for batches in filter(None, (self.dataloader_train, self.dataloader_val)):
                    batches.close()
                self.dataloader_train = self.dataloader_val = None

    def _train_for_an_epoch(self) -> None:
        self.on_train_epoch_start()
        assert self.dataloader_train is not None  # on_train_start made it
        for _ in range(self._iteration, self.num_iterations_per_epoch):
            self._stop_if_asked()
            record = self.train_step(next(self.dataloader_train))
            if record is not None:
                self._records.append(record)
        self._stop_if_asked()
        self.on_train_epoch_end(self._records)

    def _evaluate(self) -> None:
        assert self.dataloader_val is not None  # on_train_start made it
        with torch.no_grad():
            self.on_validation_epoch_start()
            outputs = []
            for _ in range(self.num_val_iterations_per_epoch):
                outputs.append(self.validation_step(next(self.dataloader_val)))
                self._stop_if_asked()
            self.on_validation_epoch_end(outputs)

    def _stop_if_asked(self) -> None:
        """Write a checkpoint and end, if SIGTERM or SIGINT came."""
        if not self._interruption.asked():
            return
        self._skipped.read_gradients()
        try:
            self.save_checkpoint(str(Path(self.output_folder) / stage.LATEST))
            done = f"after step {self._iteration} of epoch {self.current_epoch}, with a checkpoint"
            if self.disable_checkpointing:
                done = "WITHOUT a checkpoint, which is disabled"
        except OSError as error:
            done = f"WITHOUT a new checkpoint ({describe_os_error(error)}); the last one is good"
        self._interruption.wait_for_all()
        cause = self._interruption.signal or "a signal to another process"
        self.print_to_log_file(f"Stopped by {cause} {done}: --c continues (exit code {EXIT_INTERRUPTED})")
        raise SystemExit(EXIT_INTERRUPTED)

    def on_train_start(self) -> None:
        """Open the data, say what will happen, keep plans beside the results."""
        self._begin()
        self.dataloader_train, self.dataloader_val = self.get_dataloaders()  # first: its workers read while we go on
        if not self.was_initialized:
            self.initialize()
        assert self.cases is not None  # get_dataloaders found them
        for line in [
            f"SSL stage: {self.method_class.__name__}, {self.method_config}",
            f"{self.config}",
            *describe_unused(stage.settings_without_effect(self.block, self.method_class.config_class)),
            *describe_cases(self.cases),
            *([] if self._case_digests else [NO_CHECKSUMS]),
        ]:
            self.print_to_log_file(line)
        if self.local_rank == 0:
            write_json(Path(self.output_folder_base) / "plans.json", self.plans_manager.plans, indent=4)
            write_json(Path(self.output_folder_base) / "dataset.json", self.dataset_json, indent=4)
            for name in (stage.FINAL, stage.LATEST):
                remove_leftovers(Path(self.output_folder) / name)
        if self.is_ddp:
            dist.barrier()
        if self._resumed:
            self._last_checkpoint = monotonic()

    def _measure_untrained(self) -> None:
        """One pass over the probe set with the network as it was before the first step: the reference of the monitor.

        It is a function of the seed, so it is built again at the first evaluation; nobody waits for it before the first step.
        """
        assert self.dataloader_val is not None
        untrained = self._build_method().to(self.device).eval()
        self.monitor.start()
        for _ in range(self.num_val_iterations_per_epoch):
            self._probe(next(self.dataloader_val), untrained, untrained.encoder)
        constants = self.monitor.finish(0, 0).get("constant_losses", {})
        losses = ", ".join(f"per {kind.replace('_', ' ')} {loss:.4f}" for kind, loss in constants.items())
        self.print_to_log_file(describe_cost(self.method, (1, self.num_input_channels, *self.method.patch_size)))
        self.print_to_log_file(f"Losses of constant predictions on the probe set: {losses}")
        self.print_to_log_file(f"Untrained. {self.monitor.log_line()}")

    def _begin(self) -> None:
        """Refuse to begin over a stage that is there; find a checkpoint that nnU-Net does not know by name."""
        if self._resumed:
            return
        folder = Path(self.output_folder)
        unfinished = stage.unfinished_checkpoint(folder)
        if self._asked_to_continue and unfinished is not None:
            self.load_checkpoint(str(unfinished))
            return
        remark = stage.check_beginning(folder, asked_to_continue=self._asked_to_continue)
        if remark:
            self.print_to_log_file(remark)

    def on_epoch_start(self) -> None:
        """Start the clock."""
        self._epoch_start = monotonic() - self._seconds_before

    def on_train_epoch_start(self) -> None:
        """Train mode, progress bar on a terminal."""
        self.network.train()
        self.print_to_log_file("")
        self.print_to_log_file(f"Epoch {self.current_epoch}")
        self._bar = tqdm(
            total=self.num_iterations_per_epoch,
            initial=self._iteration,
            desc=f"Epoch {self.current_epoch}",
            disable=None if self.local_rank == 0 else True,
            leave=False,
        )

    def train_step(self, batch: dict) -> dict[str, Any] | None:
        """One step; None if its loss was not finite, and nothing was changed."""
        self._set_learning_rate()
        inputs = self._prepare(batch, self.config.seed, augment=True)
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            output = self.network(*inputs)
        is_finite = read_later(output.loss.isfinite())
        self._backward(output.loss)
        finite = is_finite()  # waits for the forward pass, while the device is busy with the backward one
        if finite:
            self._optimise(batch)
            self.method.after_step(output.state)
        else:
            self._skipped.add("loss", self._about_step(batch))
            self.print_to_log_file(f"WARNING: {self._skipped.describe(self.current_epoch)}")
            self._stop_if_too_many_were_skipped(repeated=1)
        self._iteration += 1
        assert self._bar is not None
        self._bar.update()
        return step_record(output) if finite else None

    def _about_step(self, batch: dict) -> dict[str, Any]:
        """What repeats the step that is at hand."""
        return {
            "epoch": self.current_epoch,
            "step": self._iteration,
            "rank": self.local_rank,
            "cases": list(batch["case"]),
            "index": batch["index"].tolist(),
            "present": batch["present"],
            "seed": self.config.seed,
        }

    def _stop_if_too_many_were_skipped(self, *, repeated: int = 0) -> None:
        """End the stage with a checkpoint, from which ``repeated`` of the skipped steps will be taken again."""
        if not self._skipped.too_many():
            return
        line = self._skipped.describe(self.current_epoch)
        self._skipped.count -= repeated
        self._write(lambda: self.save_checkpoint(str(Path(self.output_folder) / stage.LATEST)))
        raise UserError(
            f"{line}, more than max_skipped_steps {self.config.max_skipped_steps}: the "
            f"weights are those from before them; non_finite/ in {self.output_folder} holds crops and masks. Look at these "
            f"cases, or lower initial_lr in a configuration of your own; --c tries again"
        )

    def _set_learning_rate(self) -> None:
        per_epoch = self.num_iterations_per_epoch
        rate = warmup_cosine_lr(
            self.current_epoch * per_epoch + self._iteration,
            peak=self.config.initial_lr,
            warmup=warmup_length(self.config.warmup_epochs, self.num_epochs) * per_epoch,
            total=self.num_epochs * per_epoch,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _backward(self, loss: Tensor) -> None:
        (self.grad_scaler.scale(loss) if self.grad_scaler else loss).backward()

    def _optimise(self, batch: dict) -> None:
        """Change the weights, unless the gradient is not finite."""
        scaler = self.grad_scaler
        if scaler:
            scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_clip)
        if scaler:  # looks at the gradient itself: with float16, an overflow now and then is normal
            scaler.step(self.optimizer)
            scaler.update()
            return
        broken = ~norm.isfinite()
        self._skipped.watch_gradient(broken, self._about_step(batch))
        if self.optimizer.defaults["fused"]:
            # fused AdamW then does nothing, without a word to the host
            self.optimizer.found_inf = broken.float()  # type: ignore[attr-defined]  # torch's own GradScaler sets it
            self.optimizer.step()
        elif not broken:
            self.optimizer.step()

    def _autocast(self) -> torch.autocast:
        dtype = torch.bfloat16 if self.use_bfloat16 else torch.float16
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.device.type == "cuda")

    def _prepare(self, batch: dict, seed: int, *, augment: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Image, foreground and random inputs of a batch on the device."""
        indices = batch["index"].tolist()
        image = batch["image"].to(self.device, non_blocking=True)
        foreground = batch["foreground"].to(self.device, non_blocking=True)
        if augment:
            self._augment(image, foreground, indices)
        clear_outside_(image, foreground, self.configuration_manager.use_mask_for_norm)
        draws = self._draw(seed, indices, batch["present"]) | {"subject": batch["subject"]}
        return image, foreground, {key: value.to(self.device, non_blocking=True) for key, value in draws.items()}

    def _draw(self, seed: int, indices: list[int], present: Tensor) -> dict[str, Tensor]:
        """Masks and other random inputs of a batch."""
        samples = [
            self.method.draw(seeded_generator(seed, Stream.MASK, index), channels)
            for index, channels in zip(indices, present, strict=True)
        ]
        return {key: torch.cat([sample[key] for sample in samples]) for key in samples[0]}

    def _redraw(self, about: dict[str, Any]) -> dict[str, Tensor]:
        return self._draw(about["seed"], about["index"], about["present"])

    def _augment(self, image: Tensor, foreground: Tensor, indices: list[int]) -> None:
        config = self.config
        rotate_and_scale_(
            image, foreground, indices, config.seed, p_rotation=config.p_rotation, p_scaling=config.p_scaling
        )
        if config.mirror:
            mirror_([image, foreground], indices, config.seed)

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Average the steps."""
        assert self._bar is not None
        self._bar.close()
        self._skipped.read_gradients()
        self._stop_if_too_many_were_skipped()
        self._row = {"epoch": self.current_epoch, "lr": self.optimizer.param_groups[0]["lr"]}
        self._row |= mean_terms(train_outputs, "train") | {"skipped_steps": self._skipped.count}
        patches = self.config.batch_size * self.num_iterations_per_epoch
        self._row["patches_per_second"] = patches / (monotonic() - self._epoch_start)

    def on_validation_epoch_start(self) -> None:
        """Evaluation mode; before the first evaluation, the one of the untrained network."""
        self.network.eval()
        if not self.monitor.history:
            self._measure_untrained()
        self.monitor.start()
        self._picture_due = self.local_rank == 0 and self._is_picture_epoch()

    def validation_step(self, batch: dict) -> dict[str, Any]:
        """Measure one batch of the probe set: its crops and masks are the same in every epoch."""
        output = self._probe(batch, self.network, self.method.encoder)
        reconstruction = output.reconstruction
        if self._picture_due and reconstruction is not None:
            folder = Path(self.output_folder) / "reconstructions"
            about = self.channel_names, self.configuration_manager.spacing, self._orientations()
            self._write(lambda: save_reconstructions(folder, self.current_epoch, batch["case"], reconstruction, *about))
        self._picture_due = False
        return step_record(output)

    def _orientations(self) -> dict[str, str]:
        """Of the probe cases, where they are known."""
        assert self.cases is not None
        found: dict[str, str] = {}
        for folder in case_folders(self.cases.probe):
            found |= read_orientations(folder, self.plans_manager.transpose_forward)
        axes = len(self.configuration_manager.patch_size)  # 2D patches are slices along the first axis
        return {case: letters[-axes:] for case, letters in found.items()}

    @torch.no_grad()
    def _probe(self, batch: dict, network: nn.Module, encoder: PlannedEncoder) -> MethodOutput:
        image, foreground, draws = self._prepare(batch, self.config.seed + PROBE_SEED_OFFSET, augment=False)
        with self._autocast():
            output = network(image, foreground, draws)
            patch, inside = (centre_box(t, self.configuration_manager.patch_size) for t in (image, foreground))
            self.monitor.update(batch["index"].tolist(), patch, inside, output, encoder)
        return output

    def _is_picture_epoch(self) -> bool:
        return self.current_epoch % self.config.reconstruction_every == 0 or self.current_epoch == self.num_epochs - 1

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Averages, skill over the constant prediction, verdict of the collapse monitor."""
        done = self.current_epoch + 1
        self.monitor.finish(done, done * self.num_iterations_per_epoch)
        self._row |= mean_terms(val_outputs, "val") | self.monitor.skills()

    def on_epoch_end(self) -> None:
        """Log lines, checkpoint, CSVs, pictures."""
        self._row["seconds"] = monotonic() - self._epoch_start
        self.ssl_log.append(self._row)
        for line in [*log_lines(self._row), self.monitor.log_line()]:
            self.print_to_log_file(line)
        picture = self._is_picture_epoch()
        self.current_epoch += 1
        self._start_epoch()
        patience = self.config.collapse_patience
        stop = patience is not None and self.monitor.unhealthy_epochs >= patience
        due = stop or monotonic() - self._last_checkpoint >= 60 * self.config.checkpoint_minutes
        if due and self.current_epoch < self.num_epochs:
            self._write(lambda: self.save_checkpoint(str(Path(self.output_folder) / stage.LATEST)))
            self._last_checkpoint = monotonic()
        self._write(lambda: self._write_progress(picture))
        if stop and self.current_epoch < self.num_epochs:
            raise UserError(
                f"the SSL stage was stopped after {self.current_epoch} epochs (collapse_patience {patience}): "
                f"{self.monitor.verdict.line}. See collapse_spectrum.png in {self.output_folder}; --c continues with another "
                f"collapse_patience"
            )

    def _start_epoch(self, checkpoint: dict[str, Any] | None = None) -> None:
        """Nothing done yet of the epoch at hand, or what a checkpoint says."""
        done: dict[str, Any] = {"iteration": 0, "records": [], "seconds": 0.0, "skipped_steps": 0}
        done |= checkpoint or {}
        self._iteration, self._seconds_before = done["iteration"], done["seconds"]
        self._records = [record_on(self.device, record) for record in done["records"]]
        self._skipped.start_epoch(done["skipped_steps"])

    def _write(self, write: Callable[[], object]) -> bool:
        """Write on the first rank; on a full disk wait, until there is space or somebody wants to end the stage.

        Returns:
            Whether it was written.
        """
        if self.local_rank != 0:
            return True
        interruption = self._interruption
        folder = Path(self.output_folder)
        return when_there_is_space(write, folder, self.print_to_log_file, lambda: interruption.signal is not None)

    def _write_progress(self, picture: bool) -> None:
        folder = Path(self.output_folder)
        self.ssl_log.write(folder / stage.LOG)
        plot_progress(self.ssl_log.state(), folder / "progress.png")
        self.monitor.write(folder, self._about(), picture=picture)

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

    def on_train_end(self) -> None:
        """Final checkpoint; the newest one of the unfinished run stays as the one before it."""
        self._finished = True
        folder = Path(self.output_folder)
        self._finished = self._write(lambda: self.save_checkpoint(str(folder / stage.FINAL)))
        self._stop_if_asked()
        if self.local_rank == 0 and (folder / stage.FINAL).is_file() and (folder / stage.LATEST).is_file():
            os.replace(folder / stage.LATEST, folder / stage.PREVIOUS)
        if self.is_ddp:
            dist.barrier()  # a segmentation stage on other ranks reads the checkpoint next
        empty_cache(self.device)
        self.print_to_log_file("SSL stage done.")

    def print_to_log_file(self, *args: object, **options: bool) -> None:
        """nnU-Net's log, without the paths of this machine."""
        super().print_to_log_file(*map(without_paths, args), **options)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Nothing to segment after an SSL stage; nnU-Net always calls this."""
        self.print_to_log_file(
            "An SSL stage has no segmentation to validate. Next: -tr nnUNetTrainerEMIMFinetune, or emim_export and "
            "-pretrained_weights with any trainer."
        )

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """The SSL stage has no deep supervision."""

    # ------------------------------------------------------------------------------------------------- checkpoints

    def save_checkpoint(self, filename: str) -> None:
        """Write everything that continuing or transferring needs, atomically; the checkpoint before it is kept.

        Args:
            filename: Path of the checkpoint.

        Raises:
            OSError: As raised by the file system; earlier checkpoints are as they were then.
        """
        if self.local_rank != 0:
            return
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        self._folder.check()
        save_checkpoint(self._checkpoint(), Path(filename), keep_as=Path(filename).with_name(stage.PREVIOUS))

    def _checkpoint(self) -> dict[str, Any]:
        assert self.cases is not None
        return {
            "format": SSL_FORMAT,
            "format_version": FORMAT_VERSION,
            "method": self.method_class.__name__,
            "trainer_name": type(self).__name__,
            "network_weights": self.method.state_dict(),
            "optimizer_state": self.optimizer.state_dict(),
            "grad_scaler_state": self.grad_scaler.state_dict() if self.grad_scaler else None,
            "current_epoch": self.current_epoch,
            "iteration": self._iteration,
            "records": self._records,
            "seconds": monotonic() - self._epoch_start if self._iteration else 0.0,
            "skipped_steps": self._skipped.count,
            "finished": self._finished,
            "history": self.ssl_log.state(),
            "collapse": self.monitor.history,
            "verdict": self.monitor.verdict.to_dict() if self.monitor.history else None,
            "plans": self.plans_manager.plans,
            "configuration": self.configuration_name,
            "fold": self.fold,
            "dataset_json": self.dataset_json,
            "emim": self.block,
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
            filename_or_checkpoint: Path of one of our checkpoints.

        Raises:
            UserError: Not one of ours, damaged (and the one before it too), made with other settings or cases, or the stage is
                being written by another process.
        """
        with self._folder.held_from_now_on():
            self._continue_from(filename_or_checkpoint)

    def _continue_from(self, filename_or_checkpoint: str) -> None:
        checkpoint, remark = stage.load_newest(Path(filename_or_checkpoint))
        if remark:
            self.print_to_log_file(remark)
        if checkpoint["method"] != self.method_class.__name__:
            raise UserError(f"{filename_or_checkpoint} is of method {checkpoint['method']}, not of this trainer's")
        if not self.was_initialized:
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
        self._start_epoch(checkpoint)
        steps = (
            f" and {self._iteration} of {self.num_iterations_per_epoch} steps of the next" if self._iteration else ""
        )
        self.print_to_log_file(f"Continuing after {self.current_epoch} of {self.num_epochs} epochs{steps}")
