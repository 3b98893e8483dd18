"""The stages of a comparison, each a command in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

from tqdm import tqdm

from emim_nnunet.compare.arms import Arm
from emim_nnunet.compare.protocol import EVALUATIONS, Protocol
from emim_nnunet.compare.workspace import Workspace, configuration_name
from emim_nnunet.errors import UserError
from emim_nnunet.training.checkpoint import FINAL, LATEST

CHECKPOINTS = (FINAL, LATEST)


class Commands:
    """Runs the commands whose results are missing, and knows where the results are.

    Args:
        protocol: The protocol of the comparison.
        workspace: The folders of the comparison, with plans and splits already written.
    """

    def __init__(self, protocol: Protocol, workspace: Workspace) -> None:
        self.protocol = protocol
        self.workspace = workspace

    def run(self) -> None:
        """Run all SSL stages and exports, then all segmentation stages; finished ones are not run again.

        Raises:
            UserError: A command failed.
        """
        protocol = self.protocol
        (self.workspace.output / "logs").mkdir(exist_ok=True)
        pairs = [(arm, seed) for seed in protocol.seeds for arm in protocol.arms]
        stopped = Event()

        def pretrain(pair: tuple[Arm, int]) -> None:
            arm, seed = pair
            if arm.method is not None and not stopped.is_set():
                self._pretrain(arm, seed)

        def segment(job: tuple[Arm, int, int, str]) -> None:
            if not stopped.is_set():
                self._segment(*job)

        jobs = [(arm, seed, count, e) for e in protocol.evaluations for count in protocol.counts for arm, seed in pairs]
        for name, call, work in (("SSL stages", pretrain, pairs), ("segmentations", segment, jobs)):
            with ThreadPoolExecutor(protocol.jobs) as pool, tqdm(total=len(work), desc=name, disable=None) as bar:
                try:
                    for _ in pool.map(call, work):
                        bar.update()
                except BaseException:
                    stopped.set()  # commands that run come to their end, no new one starts
                    raise

    def score_files(self) -> list[tuple[dict[str, Any], Path]]:
        """Each summary of nnU-Net's: ``evaluation``, ``arm``, ``labelled`` and ``seed`` that it belongs to, and its file."""
        return [
            (
                {"evaluation": evaluation, "arm": arm.name, "labelled": count, "seed": seed},
                self._segmentation_folder(arm, seed, count, evaluation) / "validation" / "summary.json",
            )
            for evaluation in self.protocol.evaluations
            for arm in self.protocol.arms
            for count in self.protocol.counts
            for seed in self.protocol.seeds
        ]

    def ssl_folders(self) -> list[tuple[str, int, Path]]:
        """Name of the arm, seed and output folder of each SSL stage."""
        return [
            (arm.name, seed, self._ssl_folder(arm, seed))
            for arm in self.protocol.arms
            if arm.method is not None
            for seed in self.protocol.seeds
        ]

    def _configuration(self, arm: Arm, seed: int) -> str:
        return configuration_name(self.protocol.configuration, arm, seed)

    def _ssl_folder(self, arm: Arm, seed: int) -> Path:
        return self.workspace.results(str(arm.trainer), self._configuration(arm, seed), self.protocol.ssl_fold(seed))

    def _segmentation_folder(self, arm: Arm, seed: int, count: int, evaluation: str) -> Path:
        fold = self.protocol.fold(seed, count)
        return self.workspace.results(EVALUATIONS[evaluation], self._configuration(arm, seed), fold)

    def _weights(self, arm: Arm, seed: int) -> Path:
        return self.workspace.output / "weights" / f"{arm.name}_seed{seed}.pth"

    def _pretrain(self, arm: Arm, seed: int) -> None:
        name, weights = self._configuration(arm, seed), self._weights(arm, seed)
        folder = self._ssl_folder(arm, seed)
        weights.parent.mkdir(exist_ok=True)
        if not (folder / FINAL).is_file():
            options = ["--c"] if (folder / LATEST).is_file() else []
            self._train(
                name, self.protocol.ssl_fold(seed), str(arm.trainer), options, f"pretrain_{arm.name}_seed{seed}"
            )
        if not weights.is_file():
            dataset, plans = str(self.protocol.dataset_id), self.workspace.plans_name
            target = ["-d", dataset, "-p", plans, "-c", name, "-o", str(weights)]
            self._call("export", [str(folder), *target], f"export_{arm.name}_seed{seed}")

    def _segment(self, arm: Arm, seed: int, count: int, evaluation: str) -> None:
        folder = self._segmentation_folder(arm, seed, count, evaluation)
        if (folder / "validation" / "summary.json").is_file():
            return
        if any((folder / file).is_file() for file in CHECKPOINTS):
            options = ["--c"]
        else:
            options = [] if arm.method is None else ["-pretrained_weights", str(self._weights(arm, seed))]
        name, fold = self._configuration(arm, seed), self.protocol.fold(seed, count)
        log = f"{evaluation}_{arm.name}_seed{seed}_labelled{count}"
        self._train(name, fold, EVALUATIONS[evaluation], options, log)

    def _train(self, configuration: str, fold: int, trainer: str, options: Sequence[str], log: str) -> None:
        common = ["-tr", trainer, "-p", self.workspace.plans_name, "-device", self.protocol.device]
        self._call("train", [self.workspace.data.name, configuration, str(fold), *common, *options], log)

    def _call(self, command: str, arguments: Sequence[str], log: str) -> None:
        file = self.workspace.output / "logs" / f"{log}.txt"
        with file.open("a") as stream:
            stream.write(f"$ emim_{command} {' '.join(arguments)}\n")
            stream.flush()
            line = [sys.executable, "-m", f"emim_nnunet.cli.{command}", *arguments]
            code = subprocess.call(line, env=self.workspace.environment(), stdout=stream, stderr=subprocess.STDOUT)
        if code != 0:
            last = file.read_text(errors="replace").strip().splitlines()[-1]
            raise UserError(f"emim_{command} failed with exit code {code}, see {file}: {last}")
