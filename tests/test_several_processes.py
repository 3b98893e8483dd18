"""An SSL stage on several processes, started by torchrun as a user would."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint

from emim_nnunet.checkpoints.io import load_checkpoint
from emim_nnunet.classification.model import load_classifier
from emim_nnunet.cli import classify, pretrain
from emim_nnunet.cli._run import run
from tests.pipeline import PRETRAIN, fold_folder, log_of, trained, trainer_of

ROOT = Path(__file__).resolve().parent.parent
PRETRAIN_MODULE = ["-m", "emim_nnunet.cli.pretrain"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def start(launcher: list[str], *arguments: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*launcher, *PRETRAIN_MODULE, "1", *arguments, "-device", "cpu"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(*processes: subprocess.Popen) -> str:
    output = "".join(process.communicate(timeout=300)[0] for process in processes)
    assert all(process.returncode == 0 for process in processes), output
    return output


def numbers(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "patches_per_second")} for row in rows]


def stage_scores(checkpoint: dict[str, Any]) -> list[float]:
    measurement = checkpoint["collapse"][-1]
    scores = [measurement["reconstruction"]["all"][key] for key in ("skill", "std_ratio")]
    return scores + [stage[key] for stage in measurement["stages"] for key in ("effective_rank", "top_share", "count")]


@pytest.fixture
def nodes() -> Iterator[tuple[str, list[list[str]]]]:
    """Address of the first of two "machines" and how to start a command on each.

    They are network namespaces that see each other only over one cable; without root, this machine twice.
    """
    names = [f"emim{os.getpid()}n{rank}" for rank in range(2)]
    cables = [f"em{os.getpid() % 100000}v{rank}" for rank in range(2)]

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    try:
        for name in names:
            ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError):
        yield "127.0.0.1", [[], []]
        return
    try:
        ip("link", "add", cables[0], "netns", names[0], "type", "veth", "peer", "name", cables[1], "netns", names[1])
        for rank, (name, cable) in enumerate(zip(names, cables, strict=True)):
            ip("-n", name, "address", "add", f"10.233.47.{rank + 1}/24", "dev", cable)
            ip("-n", name, "link", "set", cable, "up")
            ip("-n", name, "link", "set", "lo", "up")
        starters = zip(names, cables, strict=True)
        yield "10.233.47.1", [["ip", "netns", "exec", n, "env", f"GLOO_SOCKET_IFNAME={c}"] for n, c in starters]
    finally:
        for name in names:
            ip("netns", "delete", name)


def test_two_processes_and_two_nodes_equal_one_process(nnunet: Path, nodes: tuple[str, list[list[str]]]) -> None:
    folder = trained(PRETRAIN)
    one = load_checkpoint(folder / "checkpoint_final.pth")
    shutil.rmtree(folder)
    found = {}
    address, starters = nodes
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    node = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", address, "--master-port", port]
    launchers = {
        "two": [[*TORCHRUN, "--standalone", "--nproc-per-node", "2"]],
        "nodes": [[*starters[rank], *TORCHRUN, *node, "--node-rank", str(rank)] for rank in range(2)],
    }
    for name, commands in launchers.items():
        finish(*(start(command, "toy", "0") for command in commands))
        found[name] = load_checkpoint(folder / "checkpoint_final.pth")
        shutil.rmtree(folder)
    for name, other in found.items():
        for ours, theirs in zip(numbers(one["history"]), numbers(other["history"]), strict=True):
            assert theirs == pytest.approx(ours, rel=1e-3, abs=1e-4), name
        assert stage_scores(other) == pytest.approx(stage_scores(one), rel=1e-3)
        for key, value in one["network_weights"].items():
            assert torch.allclose(other["network_weights"][key], value, atol=2e-3), key


def test_a_dying_process_ends_the_job_which_goes_on_with_another_number_of_processes(nnunet: Path) -> None:
    job = start([*TORCHRUN, "--standalone", "--nproc-per-node", "2"], "toy_long", "0")
    latest = fold_folder(PRETRAIN, "toy_long") / "checkpoint_latest.pth"
    deadline = time.monotonic() + 200
    while not latest.is_file() and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    children = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True, check=False).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)
    output = job.communicate(timeout=60)[0]
    assert job.returncode != 0
    assert "SIGKILL" in output
    assert "rank" in output
    done = load_checkpoint(latest)["current_epoch"]
    trainer = trainer_of(PRETRAIN, "toy_long", continued=True)
    maybe_load_checkpoint(trainer, True, False)
    assert trainer.current_epoch == done >= 1
    trainer.num_epochs = done + 1
    trainer.run_training()
    assert load_checkpoint(latest.parent / "checkpoint_final.pth")["current_epoch"] == done + 1


def test_a_signal_to_the_launcher_stops_all_processes_at_the_same_step(nnunet: Path) -> None:
    job = start([*TORCHRUN, "--standalone", "--nproc-per-node", "2"], "toy_long", "0")
    folder = fold_folder(PRETRAIN, "toy_long")
    latest = folder / "checkpoint_latest.pth"
    deadline = time.monotonic() + 200
    while not latest.is_file() and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    job.send_signal(signal.SIGTERM)
    job.communicate(timeout=60)
    stopped = load_checkpoint(latest)
    steps = f"after step {stopped['iteration']} of epoch {stopped['current_epoch']}, with a checkpoint: --c continues"
    assert steps in log_of(folder)
    assert not list(folder.glob(".*.tmp"))


def test_only_ssl_trainers_are_taken(nnunet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(pretrain.main, ["1", "toy", "0", "-tr", "nnUNetTrainer", "-device", "cpu"]) == 2
    assert "is not the trainer of an SSL stage" in capsys.readouterr().err.splitlines()[-1]


def test_a_classifier_on_two_processes_is_that_of_one(nnunet: Path, tmp_path: Path) -> None:
    cases = [f"BraTS-GLI-{number:05d}-000,{'ab'[number % 2]}" for number in range(1, 8)]
    (tmp_path / "labels.csv").write_text("\n".join(["case,kind", *cases]))
    options = ["train", "1", "toy", "all", str(tmp_path / "labels.csv"), "--scratch", "-device", "cpu", "--steps", "3"]
    assert run(classify.main, [*options, "-o", str(tmp_path / "one")]) == 0
    launcher = [*TORCHRUN, "--standalone", "--nproc-per-node", "2", "-m", "emim_nnunet.cli.classify"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*launcher, *options, "-o", str(tmp_path / "two")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Learning from 7 cases") == 1
    one, two = (load_classifier(tmp_path / name / "classifier.pth")[0].state_dict() for name in ("one", "two"))
    for key, value in one.items():
        assert torch.allclose(two[key], value, atol=1e-4), key
