"""Weights & Biases and TensorBoard: what a run of both stages writes, read back from the files."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any, ClassVar

import numpy as np
import pytest

from emim_nnunet import trainers
from emim_nnunet.errors import UserError
from emim_nnunet.training import trackers as module
from emim_nnunet.training.ssl_trainer import SSLTrainer
from emim_nnunet.training.trackers import STATE, TENSORBOARD_SWITCH, WANDB_SWITCH, Trackers
from tests.pipeline import CPU, DROP_IN, PRETRAIN, fold_folder, log_of, trained, trainer_of

BLOCK = 1 << 15  # of the files of W&B, which are logs of LevelDB's kind
TINY = {
    "num_epochs": 2,
    "num_iterations_per_epoch": 1,
    "num_val_iterations_per_epoch": 1,
    "finetune_num_epochs": 1,
    "finetune_num_iterations_per_epoch": 1,
    "finetune_final_validation": False,
}


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of an offline file."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts = file.read_bytes(), 7, b""  # after the header
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def values(items: Any) -> dict[str, Any]:
    found = {item.key or "\n".join(item.nested_key): json.loads(item.value_json) for item in items}
    pictures = {key.split("\n")[0] for key in found if "\n" in key}
    return found | {p: {k.split("\n")[1]: v for k, v in found.items() if k.startswith(f"{p}\n")} for p in pictures}


def wandb_run(folder: Path) -> tuple[set[str], list[dict[str, Any]], dict[str, Any], dict[str, str]]:
    """Of all offline files of a training: ids, rows, summary, and the axis of each key."""
    ids, rows, summary, axes = set(), [], {}, {}
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        limit = monotonic() + 60  # the process of W&B may still write
        while not any(record.HasField("exit") for record in wandb_records(file)) and monotonic() < limit:
            sleep(0.1)
        for record in wandb_records(file):
            if record.HasField("run"):
                ids.add(record.run.run_id)
            elif record.HasField("history"):
                rows.append(values(record.history.item))
            elif record.HasField("summary"):
                summary |= values(record.summary.update)
            elif record.HasField("metric"):
                axes[record.metric.name] = record.metric.step_metric
    return ids, rows, summary, axes


def tensorboard_run(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = (folder / "tensorboard").iterdir()
    return EventAccumulator(str(run)).Reload()


def tiny(name: str, *, continued: bool = False, **settings: Any) -> Any:
    """A trainer of stages of two steps and one."""
    plans = trainer_of(name).plans_manager.plans
    more = {"tiny": {"inherits_from": "toy", "emim": TINY | settings}}
    plans = plans | {"configurations": plans["configurations"] | more, "continue_training": continued}
    return getattr(trainers, name)(plans, "tiny", 0, trainer_of(name).dataset_json, CPU)


@pytest.fixture
def switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("wandb", "tensorboard"):
        pytest.importorskip(package, reason=f"{package} is not installed (it is an extra)")
    for name, value in ((WANDB_SWITCH, "1"), (TENSORBOARD_SWITCH, "true"), ("nnUNet_wandb_mode", "offline")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_SILENT", "true")


@pytest.mark.slow
def test_both_stages_make_one_run_that_goes_on_after_an_interruption(
    nnunet: Path, switched_on: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = SSLTrainer.train_step

    def interrupted(self: SSLTrainer, batch: dict) -> Any:
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        return step(self, batch)

    begun = tiny(DROP_IN)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SSLTrainer, "train_step", interrupted)
        begun.run_training()
    begun.trackers.finish()  # as the end of the process does
    continued = tiny(DROP_IN, continued=True)
    continued.run_training()
    continued.perform_actual_validation()

    folder = fold_folder(DROP_IN, "tiny")
    ids, rows, summary, axes = wandb_run(folder)
    assert ids == {json.loads((folder / STATE).read_text())["run"]}
    assert not (fold_folder(PRETRAIN, "tiny") / "wandb").exists()
    ssl, segmentation = ([row for row in rows if axis in row] for axis in ("ssl/epoch", "epoch"))
    assert [row["ssl/epoch"] for row in ssl] == [0, 1]
    assert [row["epoch"] for row in segmentation] == [0]
    assert [row["_step"] for row in rows] == [0, 1, 2]
    terms = {"loss", "reconstruction", "barlow"}
    assert {f"ssl/{part}/{term}" for part in ("train", "val") for term in terms} <= ssl[1].keys()
    assert {"ssl/skill/T1ce", "ssl/skill/all", "ssl/lr", "ssl/verdict"} <= ssl[1].keys()
    assert {f"ssl/effective_rank/stage_{n}" for n in range(3)} <= ssl[1].keys()
    # the numbers are those of the stage's own files
    table = (fold_folder(PRETRAIN, "tiny") / "ssl_log.csv").read_text().splitlines()
    for row, line in zip(ssl, table[1:], strict=True):
        for name, text in zip(table[0].split(",")[1:], line.split(",")[1:], strict=True):
            assert row[f"ssl/{name}"] == (pytest.approx(float(text)) if text != "nan" else "NaN")
    report = json.loads((fold_folder(PRETRAIN, "tiny") / "collapse_report.json").read_text())
    assert summary["ssl/verdict_line"] == report["summary"]
    assert ssl[1]["ssl/effective_rank/stage_0"] == pytest.approx(report["now"]["stages"][0]["effective_rank"])
    assert {"train_losses", "mean_fg_dice", "dice_per_class_or_region/class_1"} <= segmentation[0].keys()
    pictures = ("ssl/reconstruction_0", "ssl/progress", "ssl/collapse_spectrum")
    for row, picture in ((row, picture) for row in ssl for picture in pictures):
        (file,) = folder.glob(f"wandb/offline-run-*/files/{row[picture]['path']}")
        assert file.stat().st_size == row[picture]["size"]
    assert axes["ssl/skill/all"] == axes["ssl/progress"] == "ssl/epoch"
    assert axes["train_losses"] == "epoch"

    board = tensorboard_run(folder)
    assert [event.step for event in board.Scalars("ssl/train/loss")] == [0, 1]
    assert board.Scalars("train_losses")[0].value == pytest.approx(segmentation[0]["train_losses"])
    assert [event.step for event in board.Images("ssl/reconstruction_0")] == [0, 1]
    assert "ssl/verdict_line/text_summary" in board.Tags()["tensors"]


def test_nothing_is_written_unless_asked_and_no_patient_is_shown_if_so_set(
    nnunet: Path, switched_on: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(WANDB_SWITCH)
    trainer = tiny(PRETRAIN, num_epochs=1, tracker_pictures=False)
    assert not list(fold_folder(PRETRAIN, "tiny").glob("t*/"))  # no folder of a tracker
    trainer.run_training()
    trainer.perform_actual_validation()
    folder = fold_folder(PRETRAIN, "tiny")
    assert (folder / "reconstructions").is_dir()
    board = tensorboard_run(folder)
    assert board.Tags()["images"] == []
    assert "ssl/skill/all" in board.Tags()["scalars"]
    assert not (folder / "wandb").exists()


class Fake:
    """A tracker that remembers what it got; see ``breaks``."""

    breaks: str | None = None
    made: ClassVar[list[Fake]] = []

    def __init__(self, folder: Path, run_id: str, name: str) -> None:
        self.run_id, self.name, self.got = run_id, name, []
        self.made.append(self)

    def __getattr__(self, called: str) -> Any:
        def call(*arguments: Any) -> None:
            if called == self.breaks:
                raise RuntimeError("no network")
            self.got.append((called, *arguments))

        return call


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    Fake.made, Fake.breaks = [], None
    monkeypatch.setitem(module.KINDS, WANDB_SWITCH, Fake)
    return Fake


def epochs(tracker: Fake) -> list[tuple[str, int, int]]:
    return [(entry[0].axis, entry[0].epoch, entry[0].step) for called, *entry in tracker.got if called == "log"]


def test_a_training_that_goes_on_keeps_its_run_and_a_new_one_gets_another(fake: type[Fake], tmp_path: Path) -> None:
    for new in (True, False, True):
        trackers = Trackers(tmp_path, [WANDB_SWITCH], pytest.fail)
        trackers.begin(new=new)
        trackers.begin(new=True)  # is begun already
        for epoch in range(3):
            for key in ("lrs", module.LAST_OF_AN_EPOCH):
                trackers.log(key, np.float32(epoch), epoch)
            if new and epoch == 0:
                break  # killed: the next one computes epoch 0 again
        assert epochs(fake.made[-1]) == [("epoch", e, e) for e in ([0] if new else [1, 2])]
    ids = [tracker.run_id for tracker in fake.made]
    assert ids[0] == ids[1] != ids[2]
    (tmp_path / STATE).write_text("{")  # damaged
    trackers = Trackers(tmp_path, [WANDB_SWITCH], pytest.fail)
    trackers.log_summary("final_val/foreground_dice", 0.5)  # --val alone
    assert fake.made[-1].got[-1] == ("summary", "final_val/foreground_dice", 0.5)


def test_a_tracker_that_is_switched_on_later_gets_the_epochs_that_are_done(
    nnunet: Path, fake: type[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = trained(PRETRAIN)
    monkeypatch.setenv(WANDB_SWITCH, "1")
    trainer = trainer_of(PRETRAIN, continued=True)
    trainer.load_checkpoint(str(folder / "checkpoint_final.pth"))
    assert fake.made == []  # a trainer that does not train begins nothing
    trainer._begin_tracking()
    (tracker,) = fake.made
    assert epochs(tracker) == [("ssl/epoch", epoch, epoch) for epoch in range(3)]
    assert all("ssl/effective_rank/stage_2" in entry[0].numbers for called, *entry in tracker.got if called == "log")
    settings = [what[0]["ssl"] for called, *what in tracker.got if called == "update_config" and "ssl" in what[0]]
    assert (settings[-1]["method"], list(settings[-1]["cell_size"])) == ("EMIM", [4, 4, 4])


@pytest.mark.parametrize("breaks", ["update_config", "log", "summary", "finish"])
def test_a_broken_tracker_costs_a_line_and_no_training(breaks: str, fake: type[Fake], tmp_path: Path) -> None:
    fake.breaks = breaks
    said: list[str] = []
    trackers = Trackers(tmp_path, [WANDB_SWITCH], said.append)
    trackers.update_config({"fold": 0})
    trackers.begin(new=True)
    for epoch in range(2):
        trackers.log_epoch("epoch", epoch, {"lrs": 1.0})
    trackers.log_summary("x", 1)
    trackers.finish()
    assert said == ["WARNING: wandb gets nothing from now on (no network); the training goes on"]


def test_a_package_that_is_missing_costs_a_line_and_no_training(
    nnunet: Path, switched_on: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    trainer = tiny(PRETRAIN)
    trainer.trackers.begin(new=True)
    trainer.trackers.log_epoch("ssl/epoch", 0, {"ssl/lr": 1.0})
    log = log_of(fold_folder(PRETRAIN, "tiny"))
    assert "WARNING: wandb gets nothing from now on" in log
    assert "pip install wandb" in log
    assert tensorboard_run(fold_folder(PRETRAIN, "tiny")).Scalars("ssl/lr")[0].value == 1.0


@pytest.mark.parametrize("switch", [WANDB_SWITCH, TENSORBOARD_SWITCH])
def test_a_switch_with_another_value_is_refused(switch: str, nnunet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(switch, "yes")
    with pytest.raises(UserError, match=f"{switch} is 'yes': it must be 0 or 1"):
        trainer_of(PRETRAIN)
    assert not fold_folder(PRETRAIN).exists()


def test_other_ranks_than_the_first_track_nothing(
    nnunet: Path, switched_on: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer_of(PRETRAIN)
    assert made.trackers._kinds == [WANDB_SWITCH, TENSORBOARD_SWITCH]
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 1)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    second = trainer_of(PRETRAIN)
    second.trackers.begin(new=True)
    second.trackers.log_epoch("ssl/epoch", 0, {"ssl/lr": 1.0})
    assert not (fold_folder(PRETRAIN) / STATE).exists()
