"""Whether a stage that is continued is the same: settings, plans, channels, cases, data, versions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from measure.data import write_cases, write_plans
from torch import nn

from emim_nnunet.checkpoints.io import FORMAT_VERSION, SSL_FORMAT, save_checkpoint
from emim_nnunet.datasets.checksums import case_digests, checksums_of, record_file, write_record
from emim_nnunet.datasets.dataset import PreprocessedDataset
from emim_nnunet.datasets.preprocessed import Case
from emim_nnunet.datasets.stage_cases import StageCases
from emim_nnunet.errors import UserError
from emim_nnunet.storage.files import read_json
from emim_nnunet.storage.versions import versions
from emim_nnunet.training.checkpoint import FINAL, load_states
from emim_nnunet.training.same_stage import Setup, check_continued, finished_stage

IDS = [f"case{number:05d}" for number in range(3)]


def data_of(now: Setup, folder: Path) -> PreprocessedDataset:
    """The data set whose cases lie in a folder."""
    return PreprocessedDataset(folder.parent, now.plans, now.dataset_json, now.configuration)


Stage = tuple[dict[str, Any], Setup, StageCases, Path]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """What a checkpoint says of itself, what would be trained now (the same), the cases, and the folder of the data."""
    dataset = tmp_path / "Dataset902_Bench"
    write_plans(dataset, 2, [], batch_size=2)
    folder = dataset / "tiny"
    write_cases(folder, len(IDS), 2, (8, 8, 8), 8)
    write_record(folder, [checksums_of(folder, identifier) for identifier in IDS])
    plans, dataset_json = read_json(dataset / "nnUNetEMIMPlans.json"), read_json(dataset / "dataset.json")
    cases = [Case(folder, identifier) for identifier in IDS]
    block = plans["configurations"]["tiny"]["emim"]
    checkpoint = {
        "format": SSL_FORMAT,
        "format_version": FORMAT_VERSION,
        "method": "EMIM",
        "trainer_name": "nnUNetTrainerEMIMPretrain",
        "network_weights": {"encoder.weight": torch.zeros(1)},
        "current_epoch": 3,
        "finished": True,
        "emim": block,
        "plans": plans,
        "configuration": "tiny",
        "fold": 0,
        "dataset_json": dataset_json,
        "channel_names": ["channel0", "channel1"],
        "training_cases": IDS[:2],
        "validation_cases": IDS[2:],
        "case_digests": case_digests(cases),
        "seed": 0,
        "versions": versions(),
    }
    now = Setup(*copy.deepcopy((block, plans, "tiny", dataset_json)))
    return copy.deepcopy(checkpoint), now, StageCases(cases[:2], cases[2:], True, []), folder


def tiny(setup: Setup) -> dict[str, Any]:
    return setup.plans["configurations"]["tiny"]


SAME: dict[str, Callable[[Setup], Any]] = {
    "nothing": lambda now: None,
    "checkpoint_minutes": lambda now: now.block.update(checkpoint_minutes=3),
    "finetune_num_epochs": lambda now: now.block.update(finetune_num_epochs=3),
    "batch size of the segmentation": lambda now: tiny(now).update(batch_size=7, batch_dice=False),
    "its decoder": lambda now: tiny(now)["architecture"]["arch_kwargs"].update(n_conv_per_stage_decoder=[2, 2]),
    "its output": lambda now: tiny(now).update(resampling_fn_probabilities_kwargs={"order": 1}),
    "labels": lambda now: now.dataset_json.update(labels={"background": 0}),
    "another configuration": lambda now: now.plans["configurations"].update(more={"inherits_from": "tiny"}),
    "null, which is the default": lambda now: now.block.update(decoder_min_width=None),
    "tuples": lambda now: tiny(now).update(patch_size=(32, 32, 32)),
}
OTHER: dict[str, Callable[[Setup], Any]] = {
    "barlow_weight": lambda now: now.block.update(barlow_weight=0.5),
    "num_epochs": lambda now: now.block.update(num_epochs=7),
    "decoder_min_width": lambda now: now.block.update(decoder_min_width=32),  # planned anew: older plans do not say
    "patch_size": lambda now: tiny(now).update(patch_size=[32, 32, 16]),
    "spacing": lambda now: tiny(now).update(spacing=[1.0, 1.0, 2.0]),
    "normalization_schemes": lambda now: tiny(now).update(normalization_schemes=["CTNormalization"] * 2),
    "use_mask_for_norm": lambda now: tiny(now).update(use_mask_for_norm=[True, False]),
    "resampling_fn_data": lambda now: tiny(now).update(resampling_fn_data="other"),
    "resampling_fn_data_kwargs": lambda now: tiny(now).update(resampling_fn_data_kwargs={"order": 1}),
    "resampling_fn_seg_kwargs": lambda now: tiny(now).update(resampling_fn_seg_kwargs={"order": 0}),
    "data_identifier": lambda now: tiny(now).update(data_identifier="other"),
    "preprocessor_name": lambda now: tiny(now).pop("preprocessor_name"),
    "transpose_forward": lambda now: now.plans.update(transpose_forward=[2, 1, 0]),
    "network_class_name": lambda now: tiny(now)["architecture"].update(network_class_name="PlainConvUNet"),
    "n_blocks_per_stage": lambda now: tiny(now)["architecture"]["arch_kwargs"].update(n_blocks_per_stage=[1, 1, 2]),
    "nonlin_kwargs": lambda now: tiny(now)["architecture"]["arch_kwargs"].update(nonlin_kwargs={}),
}


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_what_does_not_decide_the_result_may_change(change: Callable[[Setup], Any], stage: Stage) -> None:
    checkpoint, now, cases, folder = stage
    change(now)
    assert check_continued(checkpoint, now, cases, folder) == []


@pytest.mark.parametrize("key", OTHER)
def test_what_decides_the_result_is_named(key: str, stage: Stage, tmp_path: Path) -> None:
    checkpoint, now, cases, folder = stage
    OTHER[key](now)
    save_checkpoint(checkpoint, tmp_path / FINAL)
    for check in (
        lambda: check_continued(checkpoint, now, cases, folder),
        lambda: finished_stage(tmp_path, now, data_of(now, folder)),  # whose encoder a segmentation takes
    ):
        with pytest.raises(UserError, match=rf"another value of {key}( \(|: move)") as error:
            check()
        assert "\n" not in str(error.value)


def test_what_is_inherited_counts(stage: Stage) -> None:
    checkpoint, now, cases, folder = stage
    now.plans["configurations"]["base"] = tiny(now)
    now.plans["configurations"]["tiny"] = {"inherits_from": "base"}
    assert check_continued(checkpoint, now, cases, folder) == []
    now.plans["configurations"]["base"]["spacing"] = [9.0, 1.0, 1.0]
    with pytest.raises(UserError, match=r"spacing \(\[1.0, 1.0, 1.0\], now \[9.0, 1.0, 1.0\]\)"):
        check_continued(checkpoint, now, cases, folder)


def test_channels_in_another_order_are_no_continuation(stage: Stage, tmp_path: Path) -> None:
    checkpoint, now, cases, folder = stage
    now.dataset_json["channel_names"] = {"0": "channel1", "1": "channel0"}
    with pytest.raises(UserError, match=r"made with the channels channel0, channel1, dataset.json now has channel1, "):
        check_continued(checkpoint, now, cases, folder)
    save_checkpoint(checkpoint, tmp_path / FINAL)
    assert finished_stage(tmp_path, now, data_of(now, folder))[1] == []  # filters go by name then


def test_other_cases_and_other_content_are_named(stage: Stage, tmp_path: Path) -> None:
    checkpoint, now, cases, folder = stage
    fewer = StageCases(cases.training[:1], cases.probe, True, [])
    with pytest.raises(UserError, match=rf"other training cases \(1 differ: {IDS[1]}\)"):
        check_continued(checkpoint, now, fewer, folder)
    seen = StageCases(cases.training, cases.training, False, [])
    with pytest.raises(UserError, match=rf"other validation cases \(1 differ: {IDS[2]}\)"):
        check_continued(checkpoint, now, seen, folder)
    save_checkpoint(checkpoint, tmp_path / FINAL)
    (folder / f"{IDS[2]}.b2nd").write_bytes((folder / f"{IDS[0]}.b2nd").read_bytes())
    for checksums in (True, False):  # as an older version leaves the folder: the case is read then
        if not checksums:
            record_file(folder).unlink()
        with pytest.raises(UserError, match=rf"content of 1 preprocessed cases has changed .*\({IDS[2]}\): move"):
            check_continued(checkpoint, now, cases, folder)
        with pytest.raises(UserError, match=rf"\({IDS[2]}\): .* -pretrained_weights"):
            finished_stage(tmp_path, now, data_of(now, folder))


def test_what_cannot_be_compared_and_other_versions_are_remarks(stage: Stage) -> None:
    checkpoint, now, cases, folder = stage
    del checkpoint["case_digests"]  # as older versions wrote it
    checkpoint["versions"] = checkpoint["versions"] | {"torch": "1.0", "python": "3.1"}
    unknown, other = check_continued(checkpoint, now, cases, folder)
    assert "holds no checksums of its cases" in unknown
    assert other == f"WARNING: the SSL stage was made with other versions (torch 1.0, now {versions()['torch']})"


def test_states_of_another_network_are_refused_in_one_line() -> None:
    def trained(width: int, method: type[torch.optim.Optimizer] = torch.optim.AdamW) -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        network = nn.Linear(width, 2)
        optimizer = method(network.parameters())
        network(torch.ones(1, width)).sum().backward()
        optimizer.step()
        return network, optimizer

    def checkpoint(width: int, **changes: Any) -> dict[str, Any]:
        network, optimizer = trained(width)
        states = {"network_weights": network.state_dict(), "optimizer_state": optimizer.state_dict()}
        return copy.deepcopy(states | {"grad_scaler_state": None} | changes)

    moments = checkpoint(3)["optimizer_state"]
    network, optimizer = trained(3)
    load_states(checkpoint(3), network, optimizer, None, "x.pth")
    for bad in (
        checkpoint(4),
        checkpoint(3, network_weights={}),
        checkpoint(3, optimizer_state=checkpoint(4)["optimizer_state"]),
        checkpoint(3, optimizer_state=moments | {"param_groups": []}),
        checkpoint(3, optimizer_state=moments | {"param_groups": [{}]}),
        checkpoint(3, optimizer_state=moments | {"state": {0: {"step": 1}, 1: {}}}),
        checkpoint(3, optimizer_state=moments | {"state": {0: "x"}}),
    ):
        with pytest.raises(UserError, match=r"^x.pth does not fit the network of this stage \(") as error:
            load_states(bad, *trained(3), None, "x.pth")
        assert "\n" not in str(error.value)
