"""The programs of emim_slurm, run by bash with an sbatch that only remembers; tests/test_real_slurm.py runs them on SLURM."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from emim_nnunet.cli import slurm as command
from emim_nnunet.cli._run import run
from emim_nnunet.slurm import Job, Resources, Surroundings, program
from tests.pipeline import DATASET, PLANS

SBATCH = """#!/bin/bash
number=$(ls "$STUB" | grep -c script)
[ "$number" -lt "${REFUSE_AFTER:-100}" ] || { echo "sbatch: error: Invalid account" >&2; exit 1; }
cat > "$STUB/script_$number"
printf '%s\\n' "$@" > "$STUB/options_$number"
echo "$((number + 100));toy"
"""
SCANCEL = """#!/bin/bash
printf '%s\\n' "$@" > "$STUB/cancelled"
"""


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an sbatch that keeps what it gets."""
    folder = tmp_path / "stub"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("STUB", str(folder))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.fixture
def raw(nnunet_dirs: Path) -> Path:
    (nnunet_dirs / "nnUNet_raw" / DATASET).mkdir()
    return nnunet_dirs


def jobs_of(text: str, stub: Path) -> dict[str, dict[str, Any]]:
    """What sbatch got: name -> its number, dependencies, #SBATCH lines and the command of srun."""
    subprocess.run(["bash"], input=text, text=True, check=True, capture_output=True)
    found = {}
    for number in range(len(list(stub.glob("script_*")))):
        script = (stub / f"script_{number}").read_text()
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script, re.MULTILINE))
        given = (stub / f"options_{number}").read_text()
        depends = re.search(r"--dependency=(\w+):(\S+)", given)
        found[options["job-name"]] = {
            "number": number + 100,
            "after": depends and (depends[1], [int(job) for job in depends[2].split(":")]),
            "options": options,
            "script": script,
            "command": re.search(r"bash -c 'exec (.*)'$", script, re.MULTILINE)[1],  # type: ignore[index]
        }
    return found


def printed(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert run(command.main, ["1", "3d_fullres", *options]) == 0
    return capsys.readouterr().out


def test_a_whole_project_waits_in_the_right_order(raw: Path, stub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--nodes", "2", "--gpus", "4", "--partition", "gpu", "--prepare_partition", "cpu", "--cpus", "8"]
    options += ["--prepare_cpus", "2", "--time", "1-00", "--account", "us", "--sbatch=--qos=long", "--folds", "0", "3"]
    comparison = "--compare=-o cmp --arms scratch emim --seeds 0 1 --draws 3"
    jobs = jobs_of(printed(capsys, *options, "--shards", "5", comparison), stub)
    numbers = {name: job["number"] for name, job in jobs.items()}
    after = {
        name: job["after"] and [n for n, number in numbers.items() if number in job["after"][1]]
        for name, job in jobs.items()
    }
    assert after == {
        "fingerprint": None,
        "plan": ["fingerprint"],
        "preprocess": ["plan"],
        "finish": ["preprocess"],
        "pretrain": ["finish"],
        "export": ["pretrain"],
        "folds": ["export"],
        "compare_pretrain_emim_seed0": ["finish"],
        "compare_pretrain_emim_seed1": ["finish"],
        "compare_draws_scratch": ["finish"],
        "compare_draws_pretrain_emim_seed0": ["compare_pretrain_emim_seed0"],
        "compare_draws_pretrain_emim_seed1": ["compare_pretrain_emim_seed1"],
        "compare_report": [name for name in jobs if name.startswith("compare_") and name != "compare_report"],
    }
    assert {job["after"][0] for job in jobs.values() if job["after"]} == {"afterok"}
    arrays = {name: job["options"]["array"] for name, job in jobs.items() if "array" in job["options"]}
    assert arrays == {
        "fingerprint": "1-5",
        "preprocess": "1-5",
        "folds": "0,3",
        "compare_draws_scratch": "2,4,6",  # as emim_compare --list_jobs counts
        "compare_draws_pretrain_emim_seed0": "3,7",
        "compare_draws_pretrain_emim_seed1": "5",
    }
    prepare, pretrain, fold = (jobs[name]["options"] for name in ("preprocess", "pretrain", "folds"))
    assert (prepare["partition"], prepare["cpus-per-task"], prepare.get("gpus-per-node")) == ("cpu", "2", None)
    assert (pretrain["nodes"], pretrain["ntasks-per-node"], pretrain["gpus-per-node"]) == ("2", "4", "4")
    assert (fold["nodes"], fold["ntasks-per-node"], fold["gpus-per-node"]) == ("1", "1", "1")
    assert {(o["account"], o["qos"], o["time"]) for o in (prepare, pretrain, fold)} == {("us", "long", "1-00")}
    assert "WORLD_SIZE=8 emim_pretrain" in jobs["pretrain"]["command"]
    assert jobs["preprocess"]["command"].endswith("-np 2 -npfp 2 --shard $SLURM_ARRAY_TASK_ID/5")


def test_cases_that_are_left_out_do_not_stop_what_comes_after(
    raw: Path, stub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = jobs_of(printed(capsys, "--plan=--keep_going --no_body"), stub)
    kinds = {name: job["after"] and job["after"][0] for name, job in jobs.items()}
    assert kinds == {
        "fingerprint": None,
        "plan": "afterany",
        "preprocess": "afterok",
        "finish": "afterany",
        "pretrain": "afterok",
    }
    assert all("--keep_going --no_body" in job["command"] for name, job in jobs.items() if name != "pretrain")


@pytest.mark.parametrize(
    ("code", "failed", "state", "ends", "requeued"),
    [
        (0, False, {}, 0, ""),
        (75, False, {}, 75, "7"),
        (75, False, {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3", "SLURM_RESTART_COUNT": "9"}, 75, "5_3"),
        (137, False, {"SLURM_RESTART_COUNT": "2"}, 137, "7"),
        (137, False, {"SLURM_RESTART_COUNT": "3"}, 137, ""),
        (2, False, {}, 2, ""),
        (2, True, {}, 0, ""),
    ],
)
def test_how_a_script_ends(
    code: int, failed: bool, state: dict[str, str], ends: int, requeued: str, tmp_path: Path, stub: Path
) -> None:
    """75 goes on in the queue, a kill three times; 2 is success where all is done but for cases that are left out."""
    mark = tmp_path / "failed.json"
    mark.write_text("{}")  # of an earlier run: it must not count
    write = f"touch {mark}; " if failed else ""
    for name, text in (("srun", f"{write}exit {code}"), ("scontrol", f'echo "$2" > {stub}/requeued')):
        (stub / name).write_text(f"#!/bin/bash\n{text}\n")
        (stub / name).chmod(0o755)
    job = Job(name="x", command="true", resources=Resources(), succeeds_with=str(mark))
    subprocess.run(["bash"], input=program([job], Surroundings(logs=".")), text=True, check=True, capture_output=True)
    environment = os.environ | {"SLURM_JOB_ID": "7"} | state
    done = subprocess.run(["bash", str(stub / "script_0")], env=environment, check=False)
    assert done.returncode == ends
    file = stub / "requeued"
    assert (file.read_text().strip() if file.exists() else "") == requeued


def test_submission_is_all_or_nothing(
    raw: Path, stub: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFUSE_AFTER", "3")
    assert run(command.main, ["1", "3d_fullres", "--submit"]) == 2
    error = capfd.readouterr().err
    assert "Invalid account" in error
    assert error.splitlines()[-1].endswith("those that were submitted before it are cancelled")
    assert (stub / "cancelled").read_text().split() == ["100", "101", "102"]
    for file in stub.glob("*_*"):
        file.unlink()
    monkeypatch.delenv("REFUSE_AFTER")
    assert run(command.main, ["1", "3d_fullres", "--submit"]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == "104 pretrain"


def test_folds_start_from_the_weights_once_and_are_not_done_twice(
    raw: Path, stub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = jobs_of(printed(capsys, "--shards", "1", "--folds", "2"), stub)
    assert list(jobs) == ["prepare", "pretrain", "export", "folds"]
    (stub / "srun").write_text(f'#!/bin/bash\nshift 2; bash -c "${{3#exec }}" ; echo ran >> {stub}/ran\n')
    (stub / "emim_train").write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > {stub}/arguments\n')
    for name in ("srun", "emim_train"):
        (stub / name).chmod(0o755)
    script = jobs["folds"]["script"].replace("export PATH=", "# ")
    results = raw / "nnUNet_results" / DATASET
    fold = results / f"nnUNetTrainerEMIMFinetune__{PLANS}__3d_fullres" / "fold_2"
    weights = results / f"nnUNetTrainerEMIMPretrain__{PLANS}__3d_fullres" / "fold_all" / "weights.pth"
    common = [DATASET, "3d_fullres", "2", "-tr", "nnUNetTrainerEMIMFinetune", "-p", PLANS]

    def start() -> list[str]:
        environment = os.environ | {"SLURM_ARRAY_TASK_ID": "2", "SLURM_JOB_ID": "7"}
        subprocess.run(["bash"], input=script, text=True, env=environment, check=True)
        arguments = stub / "arguments"
        found = arguments.read_text().splitlines() if arguments.exists() else []
        arguments.unlink(missing_ok=True)
        return found

    assert start() == [*common, "-pretrained_weights", str(weights)]
    fold.mkdir(parents=True)
    (fold / "checkpoint_latest.pth").touch()
    assert start() == [*common, "--c"]
    (fold / "validation").mkdir()
    (fold / "validation" / "summary.json").write_text(json.dumps({}))
    assert start() == []
