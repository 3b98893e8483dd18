"""Bad inputs, failing writes, killed runs and collisions: the same code as ``benchmarks/reliability.py``, in small counts."""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from measure.data import PLANS

from emim_nnunet.checkpoints import export
from emim_nnunet.checkpoints.io import load_checkpoint
from emim_nnunet.datasets.folders import read_plans
from emim_nnunet.errors import UserError
from emim_nnunet.training.checkpoint import LATEST, PREVIOUS, load_newest
from tests.robustness import collisions, inputs, writes
from tests.robustness import world as worlds
from tests.robustness.inputs import fuzzing, spoiling
from tests.robustness.inputs.continuing import swap_channels
from tests.robustness.results import broken_files

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
OPERATIONS = {o.name: o for o in writes.OPERATIONS if o.command != "plan_and_preprocess"}  # that one takes minutes


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    worlds.import_everything()
    folder = tmp_path_factory.mktemp("reliability") / "world"
    worlds.build_world(folder)
    return folder


@pytest.mark.parametrize("entry", inputs.INPUTS, ids=lambda entry: f"{entry.command}-{entry.name}")
def test_a_bad_input_ends_in_one_line_and_leaves_nothing(entry: Any, world: Path, tmp_path: Path) -> None:
    assert inputs.try_input(entry, world, tmp_path / "copy") == ""


def test_every_command_that_reads_something_is_tried() -> None:
    commands = {path.stem for path in (BENCHMARKS.parent / "emim_nnunet" / "cli").glob("[a-z]*.py")}
    assert commands - {entry.command for entry in inputs.INPUTS} == {"register", "trainers_path"}
    assert sum(bool(entry.message) for entry in inputs.INPUTS) >= 60


def test_too_few_open_files_for_the_workers_end_in_one_line(world: Path, tmp_path: Path) -> None:
    copy = worlds.copy_world(world, tmp_path / "copy")
    shutil.rmtree(copy / "results" / worlds.DATASET)
    train = worlds.command("pretrain", worlds.pretrain())

    def limited() -> int:
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))  # torch alone: an endless wait, or EOFError
        return train()

    before = worlds.snapshot(copy)
    outcome = worlds.in_child(limited, worlds.environment(copy, workers=4), seconds=60)
    assert inputs.judge_refusal(outcome, before, worlds.snapshot(copy)) == ""
    assert re.search(r"\d+ data-loading workers need \d+ open files, and 40 are allowed: raise ulimit", outcome.output)


WRONG = ("missing", None, "x", -1, 2.5, [1], {"a": 1})
ABOUT_THE_FILE = ("format", "format_version")  # not to be seen as a checkpoint of ours is something else
UNREAD = ("verdict", "case_digests", "fold")  # of the report, of later versions, text or number


def test_a_checkpoint_that_lacks_something_is_refused_or_the_one_before_is_taken(world: Path, tmp_path: Path) -> None:
    whole = torch.load(spoiling.final(world), weights_only=True)
    whole |= {"network_weights": {"encoder.x": torch.zeros(1)}, "optimizer_state": {"state": {}, "param_groups": []}}
    good = tmp_path / "good.pth"  # small: reading takes most of the time
    torch.save(whole, good)
    latest, previous = tmp_path / LATEST, tmp_path / PREVIOUS
    tried = 0
    for key in sorted(whole.keys() - {*ABOUT_THE_FILE, *UNREAD}):
        for wrong in WRONG:
            if wrong != "missing" and (wrong is whole[key] or (isinstance(wrong, str) and isinstance(whole[key], str))):
                continue
            if (key, wrong) in (
                ("seconds", -1),
                ("seconds", 2.5),
                ("grad_scaler_state", {"a": 1}),
                ("emim", {"a": 1}),
            ) or (key == "settings" and wrong in ("missing", {"a": 1})):
                continue  # of the right type
            content = {k: v for k, v in whole.items() if k != key} | ({} if wrong == "missing" else {key: wrong})
            torch.save(content, latest)
            previous.unlink(missing_ok=True)
            with pytest.raises(UserError, match=rf"{latest.name} .*{key}") as error:
                load_newest(latest)
            assert "\n" not in str(error.value)
            shutil.copy(good, previous)
            found, remark = load_newest(latest)
            assert found["current_epoch"] == whole["current_epoch"]
            assert key in remark
            assert not latest.exists()  # has another name now
            tried += 1
    assert tried > 100


def test_a_segmentation_takes_the_filters_of_the_first_layer_by_name(world: Path, tmp_path: Path) -> None:
    """After a stage whose channels had another order in dataset.json."""
    copy = worlds.copy_world(world, tmp_path / "copy")
    swap_channels(copy)

    def work() -> int:
        from emim_nnunet.checkpoints.encoder import encoder_state, stem_keys
        from emim_nnunet.trainers import nnUNetTrainerEMIMFinetune

        plans, dataset_json = read_plans(spoiling.preprocessed(copy), PLANS)
        trainer = nnUNetTrainerEMIMFinetune(
            plans | {"continue_training": False}, "tiny", 0, dataset_json, torch.device("cpu")
        )
        trainer.initialize()
        trainer._prepare_encoder()
        pretrained, loaded = encoder_state(load_checkpoint(spoiling.final(copy))), trainer.encoder.state_dict()
        stems = stem_keys(trainer.encoder)
        same = [
            torch.equal(loaded[key], pretrained[key].flip(1) if key in stems else pretrained[key]) for key in loaded
        ]
        return 0 if stems and all(same) else 5

    outcome = worlds.in_child(work, worlds.environment(copy))
    assert outcome.code == 0, outcome.output
    assert "channel 0 'channel1': filter of 'channel1'" in outcome.output
    assert "channel 1 'channel0': filter of 'channel0'" in outcome.output


@pytest.mark.parametrize("seed", range(5))
def test_random_headers_and_plans(seed: int, world: Path, tmp_path: Path) -> None:
    assert fuzzing.fuzz_header(seed, world, tmp_path / "headers") == ""
    assert fuzzing.fuzz_plans(seed, world, tmp_path / "plans") == ""


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_failing_write_loses_nothing(name: str, world: Path, tmp_path: Path) -> None:
    operation = OPERATIONS[name]
    events, expected = writes.count_events(operation, world, tmp_path / "reference")
    assert events >= 3
    for kind in writes.KINDS:
        place = 3000 if kind == "file too large" else events // 2
        assert writes.fault(operation, world, tmp_path / "copy", expected, kind, place) == "", kind


@pytest.fixture(scope="module")
def planned(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = worlds.copy_world(world, tmp_path_factory.mktemp("collisions") / "world")
    collisions.prepare_world(folder)
    return folder


@pytest.mark.parametrize("entry", [c for c in collisions.COLLISIONS if not c.long], ids=lambda entry: entry.name)
def test_two_processes_leave_what_one_would(entry: Any, planned: Path, tmp_path: Path) -> None:
    expected, seconds = collisions.alone(entry, planned, tmp_path / "reference")
    for after in collisions.moments(entry.name, 2, seconds):
        assert collisions.collide(entry, planned, tmp_path / "copy", expected, after) == "", after


def test_the_judges_do_find_fault(world: Path, tmp_path: Path) -> None:
    """Checks that cannot fail would be worth nothing."""

    def judge(code: int, output: str, change: str = "") -> str:
        before = {"a": "1"}
        after = before | ({change: "2"} if change else {})
        return inputs.judge_refusal(worlds.Outcome(code, output), before, after)

    line = "emim_convert: error: mend it\n"
    assert judge(2, line) == ""
    assert "traceback" in judge(2, f"Traceback (most recent call last)\n{line}")
    assert "exit code 0" in judge(0, line)
    assert "2 lines" in judge(2, line + line)
    assert "changed ['a']" in judge(2, line, "a")
    assert "left behind ['b']" in judge(2, line, "b")
    refused, done = worlds.Outcome(2, line), worlds.Outcome(0, "")
    alone = [{"a": "1"}, {"a": "2"}]
    assert collisions.judge([done, refused], alone, {"a": "1"}) == ""
    assert collisions.judge([refused, done], alone, {"a": "2"}) == ""
    assert "other results in a" in collisions.judge([done, refused], alone, {"a": "2"})
    assert "other results in b" in collisions.judge([done, done], alone, {"a": "1", "b": "left"})
    assert "both did it" in collisions.judge([done, done], alone, {"a": "1"}, 5.0)
    assert "neither did it" in collisions.judge([refused, refused], alone, {"a": "1"})
    assert judge(2, line, "results/Dataset902_Bench/x__y__z/fold_0/training_log_2026_1_1_00_00_00.txt") == ""
    for name, content in (("a.json", b"{"), ("b.pth", b"PK"), ("c.csv", b"x"), ("d.png", b"x"), ("e.nii.gz", b"x")):
        (tmp_path / name).write_bytes(content)
    (tmp_path / ".hidden.json").write_bytes(b"{")
    assert [line.split(":")[0] for line in broken_files(tmp_path)] == ["a.json", "b.pth", "c.csv", "d.png", "e.nii.gz"]


def test_a_lost_checkpoint_is_noticed(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With writing that is not atomic the same faults must show."""

    def careless(checkpoint: dict, path: Path, **_: Any) -> None:
        with path.open("wb") as file:
            file.write(b"half")
            file.flush()
            path.chmod(0o644)  # the second event after the file is opened: here it is killed
            torch.save(checkpoint, file)

    operation = OPERATIONS["export"]
    _, expected = writes.count_events(operation, world, tmp_path / "reference")
    monkeypatch.setattr(export, "save_checkpoint", careless)
    assert "half: weights.pth" in writes.fault(operation, world, tmp_path / "copy", expected, "killed", 1)


def test_the_command_writes_what_it_promises(tmp_path: Path) -> None:
    out = tmp_path / "reliability.json"
    options = ["--only", "kills", "--points", "1", "--methods", "MoCoZCA", "--json", str(out)]
    command = [sys.executable, str(BENCHMARKS / "reliability.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    assert (result["kill_points"], result["kill_lost"]) == (2, 0)  # SIGKILL and SIGTERM
    assert "| kills | SIGKILL, MoCoZCA | 1 | 0 |" in out.with_suffix(".md").read_text()
