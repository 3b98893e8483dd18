"""The training loop of an SSL stage, in the order of events of nnU-Net's trainer."""

from __future__ import annotations

import os
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from emim_nnunet.diagnosis.air import without_air
from emim_nnunet.diagnosis.collapse_report import PICTURE_NAME
from emim_nnunet.diagnostics.case_scores import CASE_SCORES, CaseScores
from emim_nnunet.errors import EXIT_INTERRUPTED, UserError, causes_logged, describe_os_error
from emim_nnunet.nnunet.training import empty_cache
from emim_nnunet.report import leave_report
from emim_nnunet.storage.files import remove_leftovers, write_json
from emim_nnunet.storage.tables import write_csv
from emim_nnunet.training.checkpoint import FINAL, LATEST, LOG, PREVIOUS, check_beginning, unfinished_checkpoint
from emim_nnunet.training.description import describe_cases, describe_cost, describe_unused
from emim_nnunet.training.epoch_report import (
    log_lines,
    mean_terms,
    save_reconstructions,
    step_record,
    tracked_numbers,
)
from emim_nnunet.training.faults import explained
from emim_nnunet.training.plots import plot_progress
from emim_nnunet.training.same_stage import NO_CHECKSUMS
from emim_nnunet.training.schedule import warmup_cosine_lr, warmup_length
from emim_nnunet.training.ssl_stage import SSLStage
from emim_nnunet.training.stage import settings_without_effect
from emim_nnunet.training.trackers import SSL_EPOCH


class SSLTrainer(SSLStage):
    """Runs the SSL stage of ``method_class`` on a data set that nnU-Net preprocessed.

    ``nnUNetv2_train -tr`` finds its subclasses, which only name the method. Settings come from the ``emim`` block of the plans.
    ``ssl_log.csv``, ``progress.png``, ``reconstructions/``, the files of the collapse monitor and checkpoints, which can be
    read with ``weights_only=True``, are written to nnU-Net's output folder. The arguments are those of :class:`SSLStage`.
    """

    def run_training(self) -> None:
        """Run nnU-Net's loop, which may begin in the middle of an epoch; does nothing when the stage is finished already.

        Raises:
            UserError: The training cannot go on, for a reason that the user can mend.
            SystemExit: SIGTERM or SIGINT came; the code is :data:`EXIT_INTERRUPTED`, and a checkpoint has been written.
        """
        with causes_logged(self._log_quietly), explained(), self._folder, self._interruption:
            if self._finished:
                self.print_to_log_file(f"This SSL stage is finished: {Path(self.output_folder) / FINAL}")
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
        for _ in range(self._epoch.iteration, self.num_iterations_per_epoch):
            self._stop_if_asked()
            record = self.train_step(next(self.dataloader_train))
            if record is not None:
                self._epoch.records.append(record)
        self._stop_if_asked()
        self.on_train_epoch_end(self._epoch.records)

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
        """Write a checkpoint and exit, if SIGTERM or SIGINT came."""
        if not self._interruption.asked():
            return
        self.skipped.read_gradients()
        try:
            self.save_checkpoint(str(Path(self.output_folder) / LATEST))
            done = f"after step {self._epoch.iteration} of epoch {self.current_epoch}, with a checkpoint"
            if self.disable_checkpointing:
                done = "WITHOUT a checkpoint, which is disabled"
        except OSError as error:
            done = f"WITHOUT a new checkpoint ({describe_os_error(error)}); the last one is good"
        self._interruption.wait_for_all()
        cause = self._interruption.signal or "a signal to another process"
        self.print_to_log_file(f"Stopped by {cause} {done}: --c continues (exit code {EXIT_INTERRUPTED})")
        raise SystemExit(EXIT_INTERRUPTED)

    def on_train_start(self) -> None:
        """Open the data, log what will be trained, and write the plans beside the results."""
        self._begin()
        self.dataloader_train, self.dataloader_val = self.get_dataloaders()  # first: its workers read while we go on
        if not self.was_initialized:
            self.initialize()
        assert self.cases is not None  # get_dataloaders found them
        for line in [
            f"SSL stage: {self.method_class.__name__}, {self.method_config}",
            f"{self.config}",
            *describe_unused(settings_without_effect(self.block, self.method_class.config_class)),
            *describe_cases(self.cases),
            *([] if self._case_digests else [NO_CHECKSUMS]),
        ]:
            self.print_to_log_file(line)
        if self.local_rank == 0:
            write_json(Path(self.output_folder_base) / "plans.json", self.plans_manager.plans, indent=4)
            write_json(Path(self.output_folder_base) / "dataset.json", self.dataset_json, indent=4)
            for name in (FINAL, LATEST):
                remove_leftovers(Path(self.output_folder) / name)
        self._begin_tracking()
        if self.is_ddp:
            dist.barrier()
        if self._resumed:
            self._last_checkpoint = monotonic()

    def _begin_tracking(self) -> None:
        """Tell the trackers what is trained, and what they lack of the epochs that are done."""
        self.trackers.begin(new=not self._resumed)
        settings = asdict(self.config) | asdict(self.method_config)
        self.trackers.update_config({"ssl": {"fold": self.fold, "method": self.method_class.__name__} | settings})
        for row in self.ssl_log.state():
            self.trackers.log_epoch(SSL_EPOCH, int(row["epoch"]), tracked_numbers(row, self.monitor.history))

    def _track(self, epoch: int, *, pictures: bool) -> None:
        """Give the trackers an epoch that is done, and its pictures."""
        folder, row = Path(self.output_folder), self.ssl_log.state()[-1]
        files = sorted((folder / "reconstructions").glob(f"epoch_{epoch:04d}_*.png"))
        shown = {f"ssl/reconstruction_{number}": file for number, file in enumerate(files)}
        shown |= {f"ssl/{Path(name).stem}": folder / name for name in ("progress.png", PICTURE_NAME)}
        self.trackers.log_epoch(
            SSL_EPOCH,
            epoch,
            tracked_numbers(row, self.monitor.history),
            texts={"ssl/verdict_line": self.monitor.verdict.line},
            pictures=shown if pictures and self.config.tracker_pictures else {},
        )

    def _measure_untrained(self) -> None:
        """Measure the untrained network, the reference of the monitor.

        It depends on the seed alone, so this can be done after the first epoch and does not delay the first step.
        """
        assert self.dataloader_val is not None
        untrained = self._build_method().to(self.device).eval()
        batches = islice(self.dataloader_val, self.num_val_iterations_per_epoch)
        lines = self.evaluation.measure_untrained(batches, untrained)
        cost = describe_cost(self.method, (1, self.num_input_channels, *self.method.patch_size))
        for line in [cost, *lines, f"Untrained. {self.monitor.log_line()}"]:
            self.print_to_log_file(line)

    def _begin(self) -> None:
        """Refuse to overwrite a stage; on ``--c``, load a checkpoint whose name nnU-Net does not know."""
        if self._resumed:
            return
        folder = Path(self.output_folder)
        unfinished = unfinished_checkpoint(folder)
        if self._asked_to_continue and unfinished is not None:
            self.load_checkpoint(str(unfinished))
            return
        remark = check_beginning(folder, asked_to_continue=self._asked_to_continue)
        if remark:
            self.print_to_log_file(remark)

    def on_epoch_start(self) -> None:
        """Start the clock of the epoch."""
        self._epoch.start_clock()

    def on_train_epoch_start(self) -> None:
        """Switch to training mode and show a progress bar, if the output is a terminal."""
        self.network.train()
        self.print_to_log_file("")
        self.print_to_log_file(f"Epoch {self.current_epoch}")
        self._bar = tqdm(
            total=self.num_iterations_per_epoch,
            initial=self._epoch.iteration,
            desc=f"Epoch {self.current_epoch}",
            disable=None if self.local_rank == 0 else True,
            leave=False,
        )

    def train_step(self, batch: dict) -> dict[str, Any] | None:
        """Take one step; None if its loss was not finite, in which case nothing was changed."""
        self._set_learning_rate()
        inputs = self._training_inputs(batch)
        output = self.guarded_step.take(lambda: self.network(*inputs), self._about_step(batch))
        if output is not None:
            self.method.after_step(output.state)
        else:
            self.print_to_log_file(f"WARNING: {self.skipped.describe(self.current_epoch)}")
            self._stop_if_too_many_were_skipped(repeated=1)
        self._epoch.iteration += 1
        assert self._bar is not None
        self._bar.update()
        return None if output is None else step_record(output)

    def _about_step(self, batch: dict) -> dict[str, Any]:
        """What is needed to repeat the current step."""
        return {
            "epoch": self.current_epoch,
            "step": self._epoch.iteration,
            "rank": self.local_rank,
            "cases": list(batch["case"]),
            "index": batch["index"].tolist(),
            "present": batch["present"],
            "seed": self.config.seed,
        }

    def _stop_if_too_many_were_skipped(self, *, repeated: int = 0) -> None:
        """After too many skipped steps, end the stage with a checkpoint from which ``repeated`` of them are taken again."""
        if not self.skipped.too_many():
            return
        line = self.skipped.describe(self.current_epoch)
        self.skipped.count -= repeated
        self._write(lambda: self.save_checkpoint(str(Path(self.output_folder) / LATEST)))
        raise UserError(
            f"{line}, more than max_skipped_steps {self.config.max_skipped_steps}: the "
            f"weights are those from before them; non_finite/ in {self.output_folder} holds crops and masks. Look at these "
            f"cases, or lower initial_lr in a configuration of your own; --c tries again"
        )

    def _set_learning_rate(self) -> None:
        per_epoch = self.num_iterations_per_epoch
        rate = warmup_cosine_lr(
            self.current_epoch * per_epoch + self._epoch.iteration,
            peak=self.config.initial_lr,
            warmup=warmup_length(self.config.warmup_epochs, self.num_epochs) * per_epoch,
            total=self.num_epochs * per_epoch,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Average losses and terms over the steps of the epoch."""
        assert self._bar is not None
        self._bar.close()
        self.skipped.read_gradients()
        self._stop_if_too_many_were_skipped()
        patches = self.config.batch_size * self.num_iterations_per_epoch
        self._epoch.row |= {"epoch": self.current_epoch, "lr": self.optimizer.param_groups[0]["lr"]}
        self._epoch.row |= mean_terms(train_outputs, "train") | {"skipped_steps": self.skipped.count}
        self._epoch.row["patches_per_second"] = patches / self._epoch.seconds()

    def on_validation_epoch_start(self) -> None:
        """Switch to evaluation mode; before the first evaluation, measure the untrained network."""
        self.network.eval()
        if not self.monitor.history:
            self._measure_untrained()
        self.monitor.start()
        self._picture_due = self.local_rank == 0 and self._is_picture_epoch()
        self._case_scores = CaseScores(self.channel_names) if self._is_picture_epoch() else None

    def validation_step(self, batch: dict) -> dict[str, Any]:
        """Measure one batch of the probe set: its crops and masks are the same in every epoch."""
        output = self.evaluation.measure(batch, self.network, self.method.encoder)
        reconstruction = output.reconstruction
        if self._picture_due and reconstruction is not None:
            folder = Path(self.output_folder) / "reconstructions"
            about = self.channel_names, self.configuration_manager.spacing, self._orientations()
            self._write(lambda: save_reconstructions(folder, self.current_epoch, batch["case"], reconstruction, *about))
        self._picture_due = False
        if self._case_scores is not None and reconstruction is not None:
            body = without_air(reconstruction.image, reconstruction.foreground)
            parts = reconstruction.prediction, reconstruction.target, reconstruction.counted
            self._case_scores.add(batch["case"], *parts, body)
        return step_record(output)

    def _is_picture_epoch(self) -> bool:
        return self.current_epoch % self.config.reconstruction_every == 0 or self.current_epoch == self.num_epochs - 1

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Compute averages, skill over the constant prediction and the verdict of the collapse monitor."""
        done = self.current_epoch + 1
        self.monitor.finish(done, done * self.num_iterations_per_epoch)
        self._epoch.row |= mean_terms(val_outputs, "val") | self.monitor.skills()
        self._case_rows = [] if self._case_scores is None else self._case_scores.rows()

    def on_epoch_end(self) -> None:
        """Write log lines, a checkpoint if one is due, CSV files and pictures."""
        self._epoch.row["seconds"] = self._epoch.seconds()
        self.ssl_log.append(self._epoch.row)
        for line in [*log_lines(self._epoch.row), self.monitor.log_line()]:
            self.print_to_log_file(line)
        picture = self._is_picture_epoch()
        self.current_epoch += 1
        self._epoch.begin()
        self.skipped.start_epoch()
        patience = self.config.collapse_patience
        stop = patience is not None and self.monitor.unhealthy_epochs >= patience
        due = stop or monotonic() - self._last_checkpoint >= 60 * self.config.checkpoint_minutes
        if due and self.current_epoch < self.num_epochs:
            self._write(lambda: self.save_checkpoint(str(Path(self.output_folder) / LATEST)))
            self._last_checkpoint = monotonic()
        self._write(lambda: self._write_progress(picture))
        self._track(self.current_epoch - 1, pictures=picture)
        if stop and self.current_epoch < self.num_epochs:
            raise UserError(
                f"the SSL stage was stopped after {self.current_epoch} epochs (collapse_patience {patience}): "
                f"{self.monitor.verdict.line}. See collapse_spectrum.png in {self.output_folder}; --c continues with another "
                f"collapse_patience"
            )

    def _write_progress(self, picture: bool) -> None:
        folder = Path(self.output_folder)
        self.ssl_log.write(folder / LOG)
        plot_progress(self.ssl_log.state(), folder / "progress.png")
        if self._case_rows:
            write_csv(folder / CASE_SCORES, self._case_rows)
        self.monitor.write(folder, self._about(), picture=picture)

    def on_train_end(self) -> None:
        """Write the final checkpoint; the newest one of the unfinished run is kept as :data:`PREVIOUS`."""
        self._finished = True
        folder = Path(self.output_folder)
        self._finished = self._write(lambda: self.save_checkpoint(str(folder / FINAL)))
        self._stop_if_asked()
        if self.local_rank == 0 and (folder / FINAL).is_file() and (folder / LATEST).is_file():
            os.replace(folder / LATEST, folder / PREVIOUS)
        if self.is_ddp:
            dist.barrier()  # a segmentation stage on other ranks reads the checkpoint next
        empty_cache(self.device)
        if self.local_rank == 0 and self._finished:
            leave_report(folder, self.print_to_log_file)
        self.print_to_log_file("SSL stage done.")
