"""The protocol: pretrain every arm with every seed, fine-tune it on few labelled cases, test, and report."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from tqdm import tqdm

from emim_nnunet.compare.arms import SCRATCH, Arm
from emim_nnunet.compare.compute import step_flops
from emim_nnunet.compare.report import collect_spectra, read_scores, write_results
from emim_nnunet.compare.workspace import SSL_FOLD, Workspace, configuration_name, make_splits
from emim_nnunet.datasets.dataset import PreprocessedDataset
from emim_nnunet.datasets.splits import SPLITS
from emim_nnunet.errors import UserError
from emim_nnunet.settings.block import config_from_block
from emim_nnunet.settings.stages import TrainingConfig
from emim_nnunet.storage.locks import acquire
from emim_nnunet.training.stage import FINAL, LATEST, read_block

EVALUATIONS = {"finetune": "nnUNetTrainerEMIMFinetune", "linear": "nnUNetTrainerLinearProbe"}
CHECKPOINTS = (FINAL, LATEST)


@dataclass(frozen=True)
class Protocol:
    """What is done.

    Attributes:
        dataset_id: Preprocessed data set.
        configuration: Of the plans; its ``emim`` block sets the budgets of both stages.
        plans_name: Plans.
        arms: What is compared.
        counts: Numbers of labelled training cases.
        seeds: Of pretraining, choice of cases and fine-tuning.
        evaluations: Some of :data:`EVALUATIONS`; none = only pretrain and draw the spectra.
        num_test: Labelled cases for the test, drawn with seed 0; None = the validation cases of nnU-Net's fold 0.
        reference: Arm whose planned schedule is the compute budget of all; None = the first that pretrains.
        device: Where to train.
        jobs: Commands that run at the same time.
    """

    dataset_id: int
    configuration: str
    plans_name: str
    arms: Sequence[Arm]
    counts: Sequence[int]
    seeds: Sequence[int]
    evaluations: Sequence[str]
    num_test: int | None
    reference: str | None
    device: str
    jobs: int


def compare(protocol: Protocol, output: Path, json_path: Path | None) -> Path:
    """Run a comparison, or go on with one.

    Args:
        protocol: What is done.
        output: Folder for everything; a finished part is not done again.
        json_path: Another place for the results.

    Returns:
        The Markdown file.

    Raises:
        UserError: Impossible protocol, a command failed, or another process writes the folder.
    """
    with acquire(output, f"the comparison {output}"):
        return _compare(protocol, output, json_path)


def _compare(protocol: Protocol, output: Path, json_path: Path | None) -> Path:
    data = PreprocessedDataset.find(protocol.dataset_id, protocol.plans_name, protocol.configuration)
    data.require_cases(labelled=True)
    workspace = Workspace(output.absolute(), data)
    test = _test_cases(protocol, data)
    splits = make_splits(data.labelled_ids, test, protocol.counts, protocol.seeds, data.patients)
    compute = equal_compute(protocol, data)
    configurations = {
        configuration_name(protocol.configuration, arm, seed): _configuration(protocol, arm, seed, compute)
        for arm in protocol.arms
        for seed in protocol.seeds
    }
    plans = workspace.write(splits, configurations)
    for name in configurations:
        read_block(plans, name)  # a wrong setting is found before hours have passed
    _run(protocol, workspace)
    results = {
        "dataset": data.name,
        "configuration": protocol.configuration,
        "cases": {
            "unlabelled": len(data.unlabelled),
            "labelled_pool": len(splits[SSL_FOLD]["train"]),
            "test": len(test),
        },
        "seeds": list(protocol.seeds),
        "labelled": list(protocol.counts),
        "compute": compute,
        "budget": _budget(plans, configurations),
        "scores": read_scores(_score_files(protocol, workspace)),
        "spectra": collect_spectra(_ssl_folders(protocol, workspace)),
    }
    return write_results(results, output, json_path)


def _test_cases(protocol: Protocol, data: PreprocessedDataset) -> list[str]:
    labelled = data.labelled_ids
    if protocol.num_test is None:
        splits = data.splits
        if not splits:
            raise UserError(
                f"{data.folder / SPLITS} is missing or empty: preprocess with emim_plan_and_preprocess, or give --num_test"
            )
        return sorted(splits[0]["val"])
    if not 1 <= protocol.num_test < len(labelled):
        raise UserError(f"--num_test {protocol.num_test}: there are {len(labelled)} labelled cases")
    return make_splits(labelled, [], [protocol.num_test], [0], {})[1]["train"]


def equal_compute(protocol: Protocol, data: PreprocessedDataset) -> dict[str, dict[str, Any]]:
    """Steps of each arm that pretrains, so that all spend as many floating point operations as the reference.

    Args:
        protocol: What is done.
        data: Of the user.

    Returns:
        Per arm ``gflops_per_step``, ``steps``, ``steps_per_epoch``, ``exaflops`` (1e18) and ``method``.

    Raises:
        UserError: The reference is no arm that pretrains.
    """
    pretraining = [arm for arm in protocol.arms if arm.method is not None]
    if not pretraining:
        return {}
    costs = {}
    for arm in pretraining:
        assert arm.method is not None
        added = {arm.name: {"inherits_from": data.configuration, "emim": arm.settings}}
        with_arm = data.plans | {"configurations": data.plans["configurations"] | added}
        costs[arm.name] = step_flops(with_arm, data.dataset_json, arm.name, arm.method)
    reference = protocol.reference or pretraining[0].name
    if reference not in costs:
        raise UserError(f"--reference {reference}: must be one of the arms that pretrain, {', '.join(costs)}")
    config = config_from_block(TrainingConfig, read_block(data.plans, data.configuration))
    budget = costs[reference] * config.num_epochs * config.num_iterations_per_epoch
    result = {}
    for arm in pretraining:
        per_epoch = max(1, round(budget / costs[arm.name] / config.num_epochs))
        steps = per_epoch * config.num_epochs
        result[arm.name] = {
            "method": arm.method,
            "settings": arm.settings,
            "gflops_per_step": costs[arm.name] / 1e9,
            "steps_per_epoch": per_epoch,
            "steps": steps,
            "exaflops": costs[arm.name] * steps / 1e18,
        }
    return result


def _configuration(protocol: Protocol, arm: Arm, seed: int, compute: dict[str, Any]) -> dict[str, Any]:
    # the scores are those of the final validation
    block = dict(arm.settings) | {"seed": seed, "finetune_seed": seed, "finetune_final_validation": True}
    if arm.method is None:
        block["finetune_init"] = SCRATCH
    else:
        block["num_iterations_per_epoch"] = compute[arm.name]["steps_per_epoch"]
    return {"inherits_from": protocol.configuration, "emim": block}


def _budget(plans: dict[str, Any], configurations: dict[str, Any]) -> dict[str, Any]:
    """Of the fine-tuning, equal in all arms."""
    block = read_block(plans, next(iter(configurations)))
    return {key: value for key, value in sorted(block.items()) if key.startswith("finetune_num")}


# ---------------------------------------------------------------------------------------------------------- commands


def _run(protocol: Protocol, workspace: Workspace) -> None:
    """All SSL stages and exports, then all segmentation stages, each a command in a process of its own."""
    (workspace.output / "logs").mkdir(exist_ok=True)
    pairs = [(arm, seed) for seed in protocol.seeds for arm in protocol.arms]
    stopped = Event()

    def pretrain(pair: tuple[Arm, int]) -> None:
        arm, seed = pair
        if arm.method is not None and not stopped.is_set():
            _pretrain(protocol, workspace, arm, seed)

    def segment(job: tuple[Arm, int, int, str]) -> None:
        if not stopped.is_set():
            _segment(protocol, workspace, *job)

    jobs = [(arm, seed, count, e) for e in protocol.evaluations for count in protocol.counts for arm, seed in pairs]
    for name, call, work in (("SSL stages", pretrain, pairs), ("segmentations", segment, jobs)):
        with ThreadPoolExecutor(protocol.jobs) as pool, tqdm(total=len(work), desc=name, disable=None) as bar:
            try:
                for _ in pool.map(call, work):
                    bar.update()
            except BaseException:
                stopped.set()  # what has begun ends, nothing new begins
                raise


def _weights(workspace: Workspace, arm: Arm, seed: int) -> Path:
    return workspace.output / "weights" / f"{arm.name}_seed{seed}.pth"


def _pretrain(protocol: Protocol, workspace: Workspace, arm: Arm, seed: int) -> None:
    name, weights = configuration_name(protocol.configuration, arm, seed), _weights(workspace, arm, seed)
    folder = workspace.results(str(arm.trainer), name, SSL_FOLD)
    weights.parent.mkdir(exist_ok=True)
    if not (folder / FINAL).is_file():
        options = ["--c"] if (folder / LATEST).is_file() else []
        _train(protocol, workspace, name, SSL_FOLD, str(arm.trainer), options, f"pretrain_{arm.name}_seed{seed}")
    if not weights.is_file():
        target = ["-d", str(protocol.dataset_id), "-p", workspace.plans_name, "-c", name, "-o", str(weights)]
        _call(workspace, "export", [str(folder), *target], f"export_{arm.name}_seed{seed}")


def _segment(protocol: Protocol, workspace: Workspace, arm: Arm, seed: int, count: int, evaluation: str) -> None:
    name, fold = configuration_name(protocol.configuration, arm, seed), _fold(protocol, seed, count)
    folder = workspace.results(EVALUATIONS[evaluation], name, fold)
    if (folder / "validation" / "summary.json").is_file():
        return
    if any((folder / file).is_file() for file in CHECKPOINTS):
        options = ["--c"]
    else:
        options = [] if arm.method is None else ["-pretrained_weights", str(_weights(workspace, arm, seed))]
    log = f"{evaluation}_{arm.name}_seed{seed}_labelled{count}"
    _train(protocol, workspace, name, fold, EVALUATIONS[evaluation], options, log)


def _fold(protocol: Protocol, seed: int, count: int) -> int:
    """Number of the fold of :func:`make_splits`."""
    return 1 + list(protocol.seeds).index(seed) * len(protocol.counts) + list(protocol.counts).index(count)


def _train(
    protocol: Protocol, workspace: Workspace, name: str, fold: int, trainer: str, options: Sequence[str], log: str
) -> None:
    common = ["-tr", trainer, "-p", workspace.plans_name, "-device", protocol.device]
    _call(workspace, "train", [workspace.data.name, name, str(fold), *common, *options], log)


def _call(workspace: Workspace, command: str, arguments: Sequence[str], log: str) -> None:
    file = workspace.output / "logs" / f"{log}.txt"
    with file.open("a") as stream:
        stream.write(f"$ emim_{command} {' '.join(arguments)}\n")
        stream.flush()
        line = [sys.executable, "-m", f"emim_nnunet.cli.{command}", *arguments]
        code = subprocess.call(line, env=workspace.environment(), stdout=stream, stderr=subprocess.STDOUT)
    if code != 0:
        last = file.read_text(errors="replace").strip().splitlines()[-1]
        raise UserError(f"emim_{command} failed with exit code {code}, see {file}: {last}")


def _score_files(protocol: Protocol, workspace: Workspace) -> list[tuple[dict[str, Any], Path]]:
    return [
        (
            {"evaluation": evaluation, "arm": arm.name, "labelled": count, "seed": seed},
            folder / "validation" / "summary.json",
        )
        for evaluation in protocol.evaluations
        for arm in protocol.arms
        for count in protocol.counts
        for seed in protocol.seeds
        for folder in [
            workspace.results(
                EVALUATIONS[evaluation],
                configuration_name(protocol.configuration, arm, seed),
                _fold(protocol, seed, count),
            )
        ]
    ]


def _ssl_folders(protocol: Protocol, workspace: Workspace) -> list[tuple[str, int, Path]]:
    return [
        (
            arm.name,
            seed,
            workspace.results(str(arm.trainer), configuration_name(protocol.configuration, arm, seed), SSL_FOLD),
        )
        for arm in protocol.arms
        if arm.method is not None
        for seed in protocol.seeds
    ]
