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
from emim_nnunet.compare.workspace import SSL_FOLD, Workspace, configuration_name, make_splits
from emim_nnunet.datasets.dataset import PreprocessedDataset
from emim_nnunet.datasets.splits import SPLITS
from emim_nnunet.errors import UserError
from emim_nnunet.storage.locks import acquire
from emim_nnunet.training.stage import read_block


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
        read_block(plans, name)  # finds a wrong setting before any training starts
    commands = Commands(protocol, workspace)
    commands.run()
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
        "scores": read_scores(commands.score_files()),
        "spectra": collect_spectra(commands.ssl_folders()),
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


def _configuration(protocol: Protocol, arm: Arm, seed: int, compute: dict[str, Any]) -> dict[str, Any]:
    # the final validation gives the scores
    block = dict(arm.settings) | {"seed": seed, "finetune_seed": seed, "finetune_final_validation": True}
    if arm.method is None:
        block["finetune_init"] = SCRATCH
    else:
        block["num_iterations_per_epoch"] = compute[arm.name]["steps_per_epoch"]
    return {"inherits_from": protocol.configuration, "emim": block}


def _budget(plans: dict[str, Any], configurations: dict[str, Any]) -> dict[str, Any]:
    """The epochs and steps of fine-tuning, which are equal in all arms."""
    block = read_block(plans, next(iter(configurations)))
    return {key: value for key, value in sorted(block.items()) if key.startswith("finetune_num")}
