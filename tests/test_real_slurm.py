"""The jobs of emim_slurm on a real SLURM: two nodes on this machine, killed tasks, nodes that go down, preemption."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emim_nnunet.cli import convert
from emim_nnunet.cli import slurm as command
from emim_nnunet.cli._run import run
from emim_nnunet.datasets.preprocessed import case_identifiers, unlabelled_folder
from emim_nnunet.phantom import write_brats2023
from emim_nnunet.slurm import Data, Resources, Surroundings, preparation, program
from tests import slurm_cluster
from tests.pipeline import DATASET, PLANS, PRETRAIN, TOY_BLOCK, log_of, set_folders, toy_architecture
from tests.slurm_cluster import NODES, Cluster, owner_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(slurm_cluster.missing_programs()),
        reason=f"SLURM is not installed here ({', '.join(slurm_cluster.missing_programs())}): apt-get install slurm-wlm",
    ),
]
SHARDS = 4
LABELLED, UNLABELLED = 150, 50


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm") / "cluster") as found:
        yield found


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nnU-Net's folders, empty; jobs inherit the environment of who submits them."""
    set_folders(tmp_path, monkeypatch)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    (tmp_path / "logs").mkdir()
    return tmp_path


@pytest.fixture
def planned(prepared: Path, folders: Path) -> Path:
    """The folders, with small prepared data."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        shutil.copytree(prepared / name, folders / name, dirs_exist_ok=True, symlinks=True)
    return folders


def printed(capsys: pytest.CaptureFixture[str], folders: Path, *options: str) -> str:
    capsys.readouterr()
    assert run(command.main, ["1", *options, "--gpus", "0", "--logs", str(folders / "logs")]) == 0
    return capsys.readouterr().out


def add_configuration(folders: Path, name: str, **block: Any) -> None:
    """A toy that is trained in seconds."""
    file = folders / "nnUNet_preprocessed" / DATASET / f"{PLANS}.json"
    plans = json.loads(file.read_text())
    plans["configurations"][name] = {
        "inherits_from": "3d_fullres",
        "batch_size": 2,
        "patch_size": [16, 16, 16],
        "architecture": toy_architecture(plans["configurations"]["3d_fullres"]["architecture"]),
        "emim": TOY_BLOCK | block,
    }
    file.write_text(json.dumps(plans))


def shard_lock(folders: Path, number: int) -> Path:
    return folders / "nnUNet_preprocessed" / f".{DATASET}.shard_{number}_of_{SHARDS}.lock"


def stop_shards(cluster: Cluster, folders: Path, tasks: dict[int, str]) -> dict[int, int]:
    """Let the processes of tasks that run stand still as soon as they hold their locks.

    Args:
        cluster: Runs them.
        folders: nnU-Net's.
        tasks: Number of a shard -> its array task.

    Returns:
        Number of a shard -> its process.
    """
    owners: dict[int, int] = {}

    def held() -> bool:
        states = cluster.tasks()
        for number, task in tasks.items():
            running = number not in owners and states.get(task, ("", ""))[0] == "RUNNING"
            found = owner_of(shard_lock(folders, number)) if running else None
            if found is not None:
                os.kill(found, signal.SIGSTOP)
                owners[number] = found
        return len(owners) == len(tasks)

    cluster.until(held)
    return owners


def alive(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


def output_of(folders: Path, name: str) -> str:
    return "\n".join(file.read_text() for file in sorted((folders / "logs").glob(f"{name}_*.txt")))


def shard_jobs(folders: Path) -> list[Any]:
    """The jobs of the preparation of what is planned: an array of shards, and what puts them together."""
    data = Data(
        name=DATASET,
        configuration="3d_fullres",
        plans_name=PLANS,
        preprocessed=folders / "nnUNet_preprocessed",
        results=folders / "nnUNet_results",
    )
    *_, array, finish = preparation(data, [], SHARDS, Resources(cpus=1), keep_going=False)
    return [replace(array, after=()), finish]


def around(folders: Path) -> Surroundings:
    return Surroundings(
        logs=str(folders / "logs"), setup=[f"export PATH={Path(sys.executable).parent}:{os.environ['PATH']}"]
    )


def test_a_project_in_four_tasks_with_a_corrupt_file_a_kill_and_a_second_submission(
    slurm: Cluster, folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_brats2023(folders / "source", LABELLED, UNLABELLED, seed=0, shape=(24, 24, 24))
    assert run(convert.main, ["brats2023", str(folders / "source"), "-d", "1", "--name", "Toy"]) == 0
    raw, preprocessed = folders / "nnUNet_raw" / DATASET, folders / "nnUNet_preprocessed" / DATASET
    corrupt = sorted((raw / "imagesTr").iterdir())[40]
    corrupt.write_bytes(corrupt.read_bytes()[:-60])
    plan = "--plan=--keep_going -gpu_memory_target 0.3"
    text = printed(capsys, folders, "3d_fullres", "--shards", str(SHARDS), "--no_pretrain", "--cpus", "1", plan)
    jobs = slurm.submit(text)
    assert list(jobs) == ["fingerprint", "plan", "preprocess", "finish"]

    task = f"{jobs['preprocess']}_2"
    process = stop_shards(slurm, folders, {2: task})[2]
    array, _ = shard_jobs(folders)
    again = slurm.submit(program([replace(array, name="again", array="2")], around(folders)))
    slurm.until(lambda: not any(job.startswith(again["again"]) for job in slurm.tasks()))
    assert f"shard 2/{SHARDS} of {DATASET} in nnUNet_preprocessed is being written by" in output_of(folders, "again")
    assert slurm.about(f"{again['again']}_2")["ExitCode"] == "2:0"
    os.kill(process, signal.SIGKILL)
    slurm.until_idle()

    assert slurm.about(task)["Restarts"] == "1"
    assert slurm.about(task)["JobState"] == "COMPLETED"
    assert slurm.about(jobs["plan"])["JobState"] == slurm.about(jobs["finish"])["JobState"] == "COMPLETED"
    failed = json.loads((preprocessed / "failed.json").read_text())
    assert list(failed) == [corrupt.name[: -len("_0000.nii.gz")]]
    place = preprocessed / f"{PLANS}_3d_fullres"
    assert len(case_identifiers(place)) == LABELLED - 1
    assert len(case_identifiers(unlabelled_folder(place))) == UNLABELLED
    assert not list(preprocessed.glob(".*"))

    add_configuration(folders, "toy", num_epochs=1)
    jobs = slurm.submit(printed(capsys, folders, "toy", "--prepared"))
    assert list(jobs) == ["pretrain"]
    slurm.until_idle()
    assert slurm.about(jobs["pretrain"])["JobState"] == "COMPLETED", output_of(folders, "pretrain")
    stage = folders / "nnUNet_results" / DATASET / f"{PRETRAIN}__{PLANS}__toy" / "fold_all"
    assert (stage / "checkpoint_final.pth").is_file()


def test_tasks_of_a_node_that_goes_down_start_again_and_a_drained_node_takes_no_more(
    slurm: Cluster, planned: Path
) -> None:
    preprocessed = planned / "nnUNet_preprocessed" / DATASET
    place = preprocessed / f"{PLANS}_3d_fullres"
    expected = {file.name: file.read_bytes() for file in place.iterdir()}
    for file in (place, unlabelled_folder(place)):
        shutil.rmtree(file)
        file.with_name(f"{file.name}.records").unlink()
    jobs = slurm.submit(program(shard_jobs(planned), around(planned)))
    tasks = {number: f"{jobs['preprocess']}_{number}" for number in range(1, SHARDS + 1)}
    processes = stop_shards(slurm, planned, tasks)
    nodes = {number: slurm.tasks()[tasks[number]][1] for number in tasks}
    assert set(nodes.values()) == set(NODES)
    down, drained = NODES
    slurm.set_node(down, "down")
    slurm.set_node(drained, "drain")
    for number, node in nodes.items():
        if node == drained:
            os.kill(processes[number], signal.SIGCONT)
    waiting = {tasks[number] for number, node in nodes.items() if node == down}
    try:
        slurm.until(lambda: set(slurm.tasks()) == waiting | {jobs["finish"]})
        end = time.monotonic() + 5
        while time.monotonic() < end:
            assert {state for state, _ in slurm.tasks().values()} == {"PENDING"}
            time.sleep(0.2)
        for number, node in nodes.items():
            assert node == drained or not alive(processes[number])
    finally:
        slurm.set_node(down, "resume")
    slurm.until(lambda: jobs["finish"] not in slurm.tasks() or not waiting & set(slurm.tasks()))
    for number, task in tasks.items():
        about = slurm.about(task)
        assert about["JobState"] == "COMPLETED", output_of(planned, "preprocess")
        assert about["Restarts"] == ("1" if task in waiting else "0")
        assert about["NodeList"] == nodes[number]
    slurm.until_idle()
    slurm.set_node(drained, "resume")
    assert slurm.about(jobs["finish"])["JobState"] == "COMPLETED"
    assert {file.name: file.read_bytes() for file in place.iterdir()} == expected


def test_a_preempted_pretraining_on_two_nodes_goes_on(
    slurm: Cluster, planned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    epochs = 40
    add_configuration(planned, "toy_long", num_epochs=epochs)
    options = ["toy_long", "--prepared", "--nodes", "2", "--partition", "low", "--cpus", "1"]
    jobs = slurm.submit(printed(capsys, planned, *options))
    stage = planned / "nnUNet_results" / DATASET / f"{PRETRAIN}__{PLANS}__toy_long" / "fold_all"
    slurm.until((stage / "checkpoint_latest.pth").is_file)
    urgent = slurm.call("sbatch", "--parsable", "-N2", "--exclusive", "-p", "high", "--output=/dev/null", "--wrap=true")
    slurm.until_idle()
    assert slurm.about(urgent)["JobState"] == "COMPLETED"
    about = slurm.about(jobs["pretrain"])
    assert (about["JobState"], about["Restarts"]) == ("COMPLETED", "1"), output_of(planned, "pretrain")
    log = log_of(stage)
    assert "Stopped by SIGTERM" in log
    assert (stage / "checkpoint_final.pth").is_file()
    rows = (stage / "ssl_log.csv").read_text().splitlines()
    assert len(rows) == 1 + epochs
