"""The jobs of a comparison as commands, each in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

from emim_nnunet.compare.arms import Arm
from emim_nnunet.compare.jobs import Job, weights_job
from emim_nnunet.compare.processes import Processes
from emim_nnunet.compare.protocol import EVALUATIONS, Protocol
from emim_nnunet.compare.workspace import LOGS, Workspace, configuration_name
from emim_nnunet.errors import EXIT_INTERRUPTED, UserError
from emim_nnunet.planners.workers import num_cores
from emim_nnunet.storage.locks import acquire
from emim_nnunet.storage.progress import Progress
from emim_nnunet.training.checkpoint import FINAL, LATEST

CHECKPOINTS = (FINAL, LATEST)


class Commands:
    """Runs the commands whose results are missing, and knows where the results are.

    Args:
        protocol: The protocol of the comparison.
        workspace: The folders of the comparison; to run something, plans and splits must have been written.
    """

    def __init__(self, protocol: Protocol, workspace: Workspace) -> None:
        self.protocol = protocol
        self.workspace = workspace
        self.processes = Processes()

    def run_all(self, jobs: Sequence[Job], title: str) -> None:
        """Run jobs, as many at the same time as the protocol says; what is finished is not run again.

        Args:
            jobs: The jobs, none of which needs another one.
            title: What they are, for the progress bar.

        Raises:
            UserError: A command failed, or another process runs one of the jobs.
            SystemExit: As of :meth:`run`.
        """
        stopped = Event()

        def run(job: Job) -> None:
            if not stopped.is_set():
                self.run(job)

        with ThreadPoolExecutor(self.protocol.jobs) as pool, Progress(total=len(jobs), desc=title) as bar:
            try:
                for _ in pool.map(run, jobs):
                    bar.update()
            except BaseException:
                stopped.set()  # commands that run come to their end, no new one starts
                raise

    def run(self, job: Job) -> None:
        """Run a job, or continue it.

        Raises:
            UserError: A command failed, another process runs the job, or the weights that it needs are not finished.
            SystemExit: A command was asked to stop and wrote a checkpoint, or this process was asked to stop and all commands
                with it; the code is :data:`EXIT_INTERRUPTED`.
        """
        if self.finished(job):
            return
        with acquire(self.workspace.output / LOGS / job.name, f"{job.name} of the comparison {self.workspace.output}"):
            if job.draw is None:
                self._make_weights(job)
                return
            needed = weights_job(self.protocol, job.arm, job.seed)
            if needed is not None and not self._weights(job.arm, job.seed).is_file():
                raise UserError(f"{job.name} needs the weights of {needed.name}: run that first (--only {needed.name})")
            for evaluation in self.protocol.evaluations:
                for count in self.protocol.counts:
                    self._segment(job.arm, job.draw, count, evaluation)

    def finished(self, job: Job) -> bool:
        """Whether all results of a job are there."""
        if job.draw is None:
            trained = job.arm.method is None or (self._ssl_folder(job.arm, job.seed) / FINAL).is_file()
            return trained and self._weights(job.arm, job.seed).is_file()
        files = self.score_files([job.draw])
        return all(file.is_file() for about, file in files if about["arm"] == job.arm.name)

    def score_files(self, draws: Iterable[int]) -> list[tuple[dict[str, Any], Path]]:
        """Each summary of nnU-Net's: ``evaluation``, ``arm``, ``labelled``, ``seed`` and ``draw`` that it belongs to, and its
        file, which lies in a folder of nnU-Net's folder of the fold.
        """
        return [
            (
                {
                    "evaluation": evaluation,
                    "arm": arm.name,
                    "labelled": count,
                    "seed": self.protocol.draws[draw],
                    "draw": draw,
                },
                self._segmentation_folder(arm, draw, count, evaluation) / "validation" / "summary.json",
            )
            for evaluation in self.protocol.evaluations
            for arm in self.protocol.arms
            for count in self.protocol.counts
            for draw in draws
        ]

    def ssl_folders(self) -> list[tuple[str, int, Path]]:
        """Name of the arm, seed and output folder of each SSL stage."""
        return [
            (arm.name, seed, self._ssl_folder(arm, seed))
            for arm in self.protocol.arms
            if arm.method is not None
            for seed in self.protocol.seeds
        ]

    def _configuration(self, arm: Arm, seed: int, draw: int) -> str:
        return configuration_name(self.protocol.configuration, arm, seed, draw)

    def _ssl_folder(self, arm: Arm, seed: int) -> Path:
        fold = self.protocol.ssl_fold(seed)
        return self.workspace.results(str(arm.trainer), self._configuration(arm, seed, seed), fold)

    def _segmentation_folder(self, arm: Arm, draw: int, count: int, evaluation: str) -> Path:
        name = self._configuration(arm, self.protocol.draws[draw], draw)
        return self.workspace.results(EVALUATIONS[evaluation], name, self.protocol.fold(draw, count))

    def _weights(self, arm: Arm, seed: int) -> Path:
        return self.workspace.weights / (f"{arm.name}_file.pth" if arm.file else f"{arm.name}_seed{seed}.pth")

    def _make_weights(self, job: Job) -> None:
        arm, seed = job.arm, job.seed
        name, weights = self._configuration(arm, seed, seed), self._weights(arm, seed)
        folder = self._ssl_folder(arm, seed)
        if arm.method is not None and not (folder / FINAL).is_file():
            options = ["--c"] if (folder / LATEST).is_file() else []
            self._train(name, self.protocol.ssl_fold(seed), str(arm.trainer), options, job.name)
        if not weights.is_file():
            dataset, plans = str(self.protocol.dataset_id), self.workspace.plans_name
            target = ["-d", dataset, "-p", plans, "-c", name, "-o", str(weights)]
            self._call("export", [str(arm.file or folder), *target], f"export_{weights.stem}")

    def _segment(self, arm: Arm, draw: int, count: int, evaluation: str) -> None:
        folder = self._segmentation_folder(arm, draw, count, evaluation)
        if (folder / "validation" / "summary.json").is_file():
            return
        seed = self.protocol.draws[draw]
        if any((folder / file).is_file() for file in CHECKPOINTS):
            options = ["--c"]
        else:
            options = ["-pretrained_weights", str(self._weights(arm, seed))] if arm.pretrained else []
        which = f"seed{seed}" if draw == seed else f"seed{seed}_draw{draw}"
        log = f"{evaluation}_{arm.name}_{which}_labelled{count}"
        name, fold = self._configuration(arm, seed, draw), self.protocol.fold(draw, count)
        self._train(name, fold, EVALUATIONS[evaluation], options, log)

    def _train(self, configuration: str, fold: int, trainer: str, options: Sequence[str], log: str) -> None:
        common = ["-tr", trainer, "-p", self.workspace.plans_name, "-device", self.protocol.device]
        self._call("train", [self.workspace.data.name, configuration, str(fold), *common, *options], log)

    def _environment(self) -> dict[str, str]:
        """nnU-Net's folders; and of commands that run at the same time on a CPU each has its share of the cores."""
        found = self.workspace.environment()
        if self.protocol.device == "cpu" and self.protocol.jobs > 1:
            found.setdefault("OMP_NUM_THREADS", str(max(1, num_cores() // self.protocol.jobs)))
        return found

    def _call(self, command: str, arguments: Sequence[str], log: str) -> None:
        file = self.workspace.output / LOGS / f"{log}.txt"
        with file.open("a") as stream:
            stream.write(f"$ emim_{command} {' '.join(arguments)}\n")
            stream.flush()
            line = [sys.executable, "-m", f"emim_nnunet.cli.{command}", *arguments]
            code = self.processes.call(line, self._environment(), stream)
        if code == EXIT_INTERRUPTED:
            raise SystemExit(EXIT_INTERRUPTED)
        if code != 0:
            last = file.read_text(errors="replace").strip().splitlines()[-1]
            raise UserError(f"emim_{command} failed with exit code {code}, see {file}: {last}")
