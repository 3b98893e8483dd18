"""What a comparison needs before it trains: cases, folds, equal compute, and a configuration per arm, seed and draw."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emim_nnunet.compare.arms import SCRATCH, Arm
from emim_nnunet.compare.compute import equal_compute
from emim_nnunet.compare.protocol import Protocol
from emim_nnunet.compare.sources import check_source
from emim_nnunet.compare.workspace import Workspace, configuration_name, draw_cases, make_splits
from emim_nnunet.datasets.dataset import PreprocessedDataset
from emim_nnunet.datasets.splits import SPLITS
from emim_nnunet.errors import UserError
from emim_nnunet.settings.block import config_from_block
from emim_nnunet.settings.stages import FinetuneConfig
from emim_nnunet.storage.files import read_json
from emim_nnunet.storage.locks import acquire
from emim_nnunet.training.stage import read_block

RATES = ("finetune_initial_lr", "finetune_scratch_lr", "linear_first_lr", "linear_first_scratch_lr")
WRITTEN_OUT = (*RATES, "finetune_deep_supervision")
PATIENCE = 120.0  # seconds that a job waits for others that start with it, each of which may write plans


@dataclass(frozen=True)
class Preparation:
    """What was prepared.

    Attributes:
        workspace: The folders, written.
        tests: Ids of the test cases of each seed.
        splits: The folds, see :func:`make_splits`.
        compute: The compute of the arms that pretrain, see :func:`equal_compute`.
        budget: Settings of the fine-tuning; arms may have settings of their own, these are the first one's.
        files: Arm -> what its checkpoint says about itself, see :func:`check_source`.
    """

    workspace: Workspace
    tests: dict[int, list[str]]
    splits: list[dict[str, list[str]]]
    compute: dict[str, dict[str, Any]]
    budget: dict[str, Any]
    files: dict[str, dict[str, Any]]


def prepare(protocol: Protocol, output: Path) -> Preparation:
    """Write links, plans and splits where they are not written yet, and check everything that can be before a training starts.

    The lock of the comparison is held only while something is written.

    Args:
        protocol: The protocol of the comparison.
        output: The folder for all files of the comparison.

    Raises:
        UserError: The protocol cannot be carried out, or the folder holds another comparison.
    """
    if protocol.until is not None:
        _ = protocol.decided
    data = find_data(protocol)
    workspace = Workspace(output.absolute(), data)
    tests = {seed: _test_cases(protocol, data, seed) for seed in protocol.seeds}
    splits = make_splits(data.labelled_ids, tests, protocol.counts, data.patients, protocol.draws)
    compute = equal_compute(protocol, data)
    block = read_block(data.plans, data.configuration)
    configurations = {
        configuration_name(protocol.configuration, arm, seed, draw): _configuration(protocol, arm, draw, compute, block)
        for arm in protocol.arms
        for draw, seed in protocol.draws.items()
    }
    plans = data.plans | {"configurations": data.plans["configurations"] | configurations}
    blocks = [read_block(plans, name) for name in configurations]  # finds a wrong setting before any training starts
    records = {arm.name: workspace.weights / f"{arm.name}_file.json" for arm in protocol.arms if arm.file}
    if not workspace.holds(splits, configurations) or not all(file.is_file() for file in records.values()):
        with acquire(output, f"the comparison {output}", PATIENCE):
            workspace.write(splits, configurations)
            _check_files(protocol, records, data)
    else:
        _check_files(protocol, records, data)
    config = config_from_block(FinetuneConfig, blocks[0])
    keys = ("finetune_num_epochs", "finetune_num_iterations_per_epoch", *WRITTEN_OUT)
    budget = {key: getattr(config, key) for key in keys}
    files = {name: read_json(file) for name, file in records.items()}
    return Preparation(workspace, tests, splits, compute, budget, files)


def find_data(protocol: Protocol) -> PreprocessedDataset:
    """The preprocessed data set of the user.

    Raises:
        UserError: It is missing, or has no labelled case.
    """
    data = PreprocessedDataset.find(protocol.dataset_id, protocol.plans_name, protocol.configuration)
    data.require_cases(labelled=True)
    return data


def _check_files(protocol: Protocol, records: dict[str, Path], data: PreprocessedDataset) -> None:
    for arm in protocol.arms:
        if arm.name in records:
            check_source(arm, records[arm.name], data)


def _test_cases(protocol: Protocol, data: PreprocessedDataset, seed: int) -> list[str]:
    labelled = data.labelled_ids
    if protocol.num_test is None:
        splits = data.splits
        if not splits:
            raise UserError(
                f"{data.folder / SPLITS} is missing or empty: preprocess with emim_plan_and_preprocess, or give --num_test"
            )
        return splits[seed % len(splits)]["val"]
    if not 1 <= protocol.num_test < len(labelled):
        raise UserError(f"--num_test {protocol.num_test}: there are {len(labelled)} labelled cases")
    return draw_cases(sorted(labelled), protocol.num_test, seed)


def _configuration(
    protocol: Protocol, arm: Arm, draw: int, compute: dict[str, Any], planned: dict[str, Any]
) -> dict[str, Any]:
    # written out, so that a comparison that is continued by another version notices other defaults
    finetuning = config_from_block(FinetuneConfig, planned | arm.settings)
    block = {key: getattr(finetuning, key) for key in WRITTEN_OUT} | arm.settings
    # the scores are those of the final validation
    block |= {"seed": protocol.draws[draw], "finetune_seed": draw, "finetune_final_validation": True}
    if arm.name == SCRATCH:
        block["finetune_init"] = SCRATCH
    elif arm.method is not None:
        block["num_iterations_per_epoch"] = compute[arm.name]["steps_per_epoch"]
    return {"inherits_from": protocol.configuration, "emim": block}
