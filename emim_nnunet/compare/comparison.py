"""``emim_compare``: runs a comparison by its protocol, from the preprocessed data to the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emim_nnunet.compare.arms import SCRATCH, Arm
from emim_nnunet.compare.commands import Commands
from emim_nnunet.compare.compute import equal_compute
from emim_nnunet.compare.protocol import Protocol
from emim_nnunet.compare.report import write_results
from emim_nnunet.compare.scores import collect_spectra, read_scores
from emim_nnunet.compare.workspace import Workspace, configuration_name, draw_cases, make_splits
from emim_nnunet.datasets.dataset import PreprocessedDataset
from emim_nnunet.datasets.splits import SPLITS
from emim_nnunet.errors import UserError
from emim_nnunet.settings.block import config_from_block
from emim_nnunet.settings.stages import FinetuneConfig
from emim_nnunet.storage.locks import acquire
from emim_nnunet.training.stage import read_block

WRITTEN_OUT = ("finetune_initial_lr", "finetune_scratch_lr", "finetune_deep_supervision")


def compare(protocol: Protocol, output: Path, json_path: Path | None) -> Path:
    """Run a comparison, or continue one that was interrupted.

    Args:
        protocol: The protocol of the comparison.
        output: The folder for all files of the comparison; finished parts are not done again.
        json_path: A second file to write the results to; None = none.

    Returns:
        The path of ``results.md``.

    Raises:
        UserError: The protocol cannot be carried out, a command failed, or another process writes the folder.
    """
    with acquire(output, f"the comparison {output}"):
        return _compare(protocol, output, json_path)


def _compare(protocol: Protocol, output: Path, json_path: Path | None) -> Path:
    data = PreprocessedDataset.find(protocol.dataset_id, protocol.plans_name, protocol.configuration)
    data.require_cases(labelled=True)
    workspace = Workspace(output.absolute(), data)
    tests = {seed: _test_cases(protocol, data, seed) for seed in protocol.seeds}
    splits = make_splits(data.labelled_ids, tests, protocol.counts, data.patients)
    compute = equal_compute(protocol, data)
    block = read_block(data.plans, data.configuration)
    configurations = {
        configuration_name(protocol.configuration, arm, seed): _configuration(protocol, arm, seed, compute, block)
        for arm in protocol.arms
        for seed in protocol.seeds
    }
    plans = workspace.write(splits, configurations)
    for name in configurations:
        read_block(plans, name)  # finds a wrong setting before any training starts
    commands = Commands(protocol, workspace)
    commands.run()
    results = {
        "dataset": data.name,
        "configuration": protocol.configuration,
        "cases": {
            "unlabelled": len(data.unlabelled),
            "labelled_pool": len(splits[0]["train"]),
            "test": len({case for test in tests.values() for case in test}),
        },
        "seeds": list(protocol.seeds),
        "labelled": list(protocol.counts),
        "compute": compute,
        "budget": _budget(plans, configurations),
        "scores": read_scores(commands.score_files()),
        "spectra": collect_spectra(commands.ssl_folders()),
    }
    return write_results(results, output, json_path)


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
    protocol: Protocol, arm: Arm, seed: int, compute: dict[str, Any], planned: dict[str, Any]
) -> dict[str, Any]:
    # written out, so that a comparison that is continued by another version notices other defaults
    finetuning = config_from_block(FinetuneConfig, planned | arm.settings)
    block = {key: getattr(finetuning, key) for key in WRITTEN_OUT} | arm.settings
    # the scores are those of the final validation
    block |= {"seed": seed, "finetune_seed": seed, "finetune_final_validation": True}
    if arm.method is None:
        block["finetune_init"] = SCRATCH
    else:
        block["num_iterations_per_epoch"] = compute[arm.name]["steps_per_epoch"]
    return {"inherits_from": protocol.configuration, "emim": block}


def _budget(plans: dict[str, Any], configurations: dict[str, Any]) -> dict[str, Any]:
    """Of the fine-tuning; arms may have settings of their own, this is the first one's."""
    config = config_from_block(FinetuneConfig, read_block(plans, next(iter(configurations))))
    keys = ("finetune_num_epochs", "finetune_num_iterations_per_epoch", *WRITTEN_OUT)
    return {key: getattr(config, key) for key in keys}
