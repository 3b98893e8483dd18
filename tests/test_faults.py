"""What goes wrong in training: signals, full disks, damaged files, broken numbers, dead workers."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from emim_nnunet.checkpoints.io import load_checkpoint, read_checkpoint
from emim_nnunet.cli._run import run
from emim_nnunet.errors import EXIT_INTERRUPTED, UserError
from emim_nnunet.methods import method_classes
from emim_nnunet.storage.files import write_json
from emim_nnunet.training.epoch_report import mean_terms
from emim_nnunet.training.faults import explained
from emim_nnunet.training.ssl_trainer import SSLTrainer
from emim_nnunet.training.step import SkippedSteps
from tests.pipeline import DATASET, DROP_IN, FINETUNE, PLANS, PRETRAIN, fold_folder, log_of, train, trained, trainer_of

ROOT = Path(__file__).parents[1]
TIMING = ("seconds", "patches_per_second")
DATA = "nnUNetEMIMPlans_3d_fullres"


def rows(checkpoint: dict) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in TIMING} for row in checkpoint["history"]]


@contextmanager
def signalled(number: int, step: int) -> Iterator[None]:
    """This process gets a signal in the middle of training step ``step`` (counted over epochs)."""
    steps, original = iter(range(1000)), SSLTrainer.train_step

    def train_step(self: SSLTrainer, batch: dict) -> Any:
        if next(steps) == step:
            os.kill(os.getpid(), number)
        return original(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SSLTrainer, "train_step", train_step)
        yield


@pytest.mark.parametrize("method", sorted(method.__name__ for method in method_classes()))
def test_a_signal_writes_a_checkpoint_within_the_epoch_and_nothing_changes(method: str, nnunet: Path) -> None:
    trainer = f"nnUNetTrainer{method}Pretrain"
    folder = trained(trainer)
    whole = load_checkpoint(folder / "checkpoint_final.pth")
    shutil.rmtree(folder)
    for number, step, done in ((signal.SIGTERM, 1, (0, 2)), (signal.SIGINT, 3, (1, 3)), (signal.SIGTERM, 2, (2, 3))):
        with signalled(number, step), pytest.raises(SystemExit) as end:
            train(trainer, continue_training=step != 1)
        assert end.value.code == EXIT_INTERRUPTED
        latest = load_checkpoint(folder / "checkpoint_latest.pth")
        assert (latest["current_epoch"], latest["iteration"]) == done
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    train(trainer, continue_training=True)
    resumed = load_checkpoint(folder / "checkpoint_final.pth")
    assert rows(whole) == rows(resumed)
    assert all(torch.equal(v, resumed["network_weights"][k]) for k, v in whole["network_weights"].items())
    log = log_of(folder)
    assert "Stopped by SIGTERM after step 2 of epoch 0, with a checkpoint: --c continues (exit code 75)" in log
    assert "Continuing after 0 of 3 epochs and 2 of 3 steps of the next" in log


def test_the_command_ends_with_its_exit_code_and_so_does_plain_nnunet(nnunet: Path) -> None:
    plain = "from nnunetv2.run.run_training import run_training_entry; run_training_entry()"
    for start in (["-m", "emim_nnunet.cli.train"], ["-c", plain]):
        arguments = ["1", "toy_long", "0", "-tr", PRETRAIN, "-p", PLANS, "-device", "cpu"]
        process = start_python([*start, *arguments], nnUNet_n_proc_DA="1")
        wait_until((fold_folder(PRETRAIN, "toy_long") / "checkpoint_latest.pth").is_file, process)
        os.killpg(process.pid, signal.SIGTERM)  # a cluster's: to all processes of the job, workers included
        assert process.wait(120) == EXIT_INTERRUPTED, process.stdout.read()
        assert "Traceback" not in process.stdout.read()
        shutil.rmtree(fold_folder(PRETRAIN, "toy_long"))


def start_python(arguments: list[str], **environment: str) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *arguments], env=env, start_new_session=True, **pipes)


def wait_until(ready: Callable[[], bool], process: subprocess.Popen) -> None:
    end = time.monotonic() + 200
    while not ready() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    assert ready(), process.communicate()[0]


def test_a_segmentation_ends_after_its_epoch(nnunet: Path) -> None:
    trained(PRETRAIN)
    trainer = trainer_of(FINETUNE)
    original = trainer.train_step

    def train_step(batch: dict) -> dict:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(batch)

    trainer.train_step = train_step
    with pytest.raises(SystemExit) as end:
        trainer.run_training()
    assert end.value.code == EXIT_INTERRUPTED
    latest = torch.load(fold_folder(FINETUNE) / "checkpoint_latest.pth", weights_only=False)
    assert latest["current_epoch"] == 1
    train(FINETUNE, continue_training=True)
    assert (fold_folder(FINETUNE) / "checkpoint_final.pth").is_file()


def test_a_segmentation_whose_workers_got_the_signal_too_keeps_its_weights(own_data: Path) -> None:
    set_blocks(own_data, finetune_init="scratch", finetune_num_iterations_per_epoch=100_000)
    arguments = ["1", "toy_mine", "0", "-tr", FINETUNE, "-p", PLANS, "-device", "cpu"]
    process = start_python(["-m", "emim_nnunet.cli.train", *arguments], nnUNet_n_proc_DA="2")
    folder = fold_folder(FINETUNE, "toy_mine")
    wait_until(lambda: "Current learning rate" in log_of(folder), process)
    time.sleep(3)
    os.killpg(process.pid, signal.SIGTERM)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == EXIT_INTERRUPTED, output
    assert "Stopped by a signal in epoch 0, which will begin again, with a checkpoint" in output
    latest = torch.load(folder / "checkpoint_latest.pth", weights_only=False)
    assert latest["current_epoch"] == 0


def test_the_two_newest_checkpoints_are_kept_and_a_damaged_one_is_replaced_by_the_one_before(nnunet: Path) -> None:
    folder = trained(PRETRAIN)
    whole = load_checkpoint(folder / "checkpoint_final.pth")
    assert load_checkpoint(folder / "checkpoint_previous.pth")["current_epoch"] == 2
    shutil.rmtree(folder)
    with signalled(signal.SIGTERM, 7), pytest.raises(SystemExit):
        train(PRETRAIN)
    latest, previous = folder / "checkpoint_latest.pth", folder / "checkpoint_previous.pth"
    assert (load_checkpoint(latest)["iteration"], load_checkpoint(previous)["iteration"]) == (2, 0)
    latest.write_bytes(latest.read_bytes()[:5000])
    train(PRETRAIN, continue_training=True)
    assert "Taking the checkpoint before it, checkpoint_previous.pth" in log_of(folder)
    resumed = load_checkpoint(folder / "checkpoint_final.pth")
    assert all(torch.equal(v, resumed["network_weights"][k]) for k, v in whole["network_weights"].items())
    assert (folder / "checkpoint_latest.pth.damaged").is_file()
    # killed between two renames, on a file system without hard links
    (folder / "checkpoint_final.pth").unlink()
    train(PRETRAIN, continue_training=True)
    assert load_checkpoint(folder / "checkpoint_final.pth")["finished"]
    # both damaged
    for name in ("checkpoint_final.pth", "checkpoint_previous.pth"):
        (folder / name).write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"checkpoint_previous.pth.* damaged"):
        train(PRETRAIN, continue_training=True)


def test_continuing_without_a_checkpoint_is_said_or_refused(nnunet: Path) -> None:
    folder = train(PRETRAIN, continue_training=True)
    assert "there is no checkpoint to continue from, so the SSL stage starts anew" in log_of(folder)
    for name in ("checkpoint_final.pth", "checkpoint_previous.pth"):
        (folder / name).unlink()
    before = (folder / "ssl_log.csv").read_bytes()
    for continued in (True, False):
        with pytest.raises(UserError, match=r"ssl_log.csv\) but no checkpoint to continue from: move it away"):
            train(PRETRAIN, continue_training=continued)
    assert (folder / "ssl_log.csv").read_bytes() == before


@pytest.fixture
def own_data(nnunet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the preprocessed data, to be spoilt; its folder of labelled cases."""
    shutil.copytree(nnunet / "nnUNet_preprocessed", tmp_path / "preprocessed")
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    return tmp_path / "preprocessed" / DATASET / DATA


def set_blocks(own_data: Path, **settings: Any) -> None:
    """Add a configuration ``toy_mine``."""
    file = own_data.parent / f"{PLANS}.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["toy_mine"] = {"inherits_from": "toy", "emim": settings}
    file.write_text(json.dumps(plans))


def spoil(own_data: Path, case: str, value: float) -> None:
    """Write a number into all voxels of a case."""
    data, seg, _, properties = nnUNetDatasetBlosc2(str(own_data)).load_case(case)
    arrays = np.full(data.shape, value, np.float32), np.asarray(seg)
    for file in own_data.glob(f"{case}*"):
        file.unlink()
    nnUNetDatasetBlosc2.save_case(*arrays, properties, str(own_data / case))


def test_a_loss_that_is_not_finite_is_skipped_named_and_saved(own_data: Path) -> None:
    case = trainer_of(PRETRAIN).find_cases().training[0].identifier
    spoil(own_data, case, np.nan)
    set_blocks(own_data, max_skipped_steps=3)
    folder = train(PRETRAIN, "toy_mine")
    final = load_checkpoint(folder / "checkpoint_final.pth")
    assert all(v.isfinite().all() for v in final["network_weights"].values())
    skipped = [int(float(row["skipped_steps"])) for row in csv.DictReader((folder / "ssl_log.csv").open())]
    saved = sorted((folder / "non_finite").iterdir())
    assert sum(skipped) == len(saved) >= 1
    assert f"WARNING: loss or gradient not finite in 1 steps of epoch {skipped.index(1)} (cases" in log_of(folder)
    # the file repeats the step: the same crop of the same case, the same mask
    fault = read_checkpoint(saved[0])
    assert (fault["not_finite"], case in fault["cases"]) == ("loss", True)
    trainer = trainer_of(PRETRAIN, "toy_mine", continued=True)
    trainer.initialize()
    dataset = trainer._batches(trainer.find_cases().training, fault["seed"], 0).dataset
    assert [dataset[i]["case"] for i in fault["index"]] == fault["cases"]
    again = trainer._draw_again(fault)
    assert all(torch.equal(v, fault["draws"][k]) for k, v in again.items())


def test_too_many_of_them_end_the_stage_with_good_weights(own_data: Path) -> None:
    for case in trainer_of(PRETRAIN).find_cases().training[:2]:
        spoil(own_data, case.identifier, np.nan)
    set_blocks(own_data, max_skipped_steps=0)
    for attempt in range(2):
        with pytest.raises(UserError, match=r"not finite in 1 steps of epoch 0 \(cases .*max_skipped_steps 0") as error:
            train(PRETRAIN, "toy_mine", continue_training=attempt > 0)  # --c meets the same batch again
        assert "\n" not in str(error.value)
    latest = load_checkpoint(fold_folder(PRETRAIN, "toy_mine") / "checkpoint_latest.pth")
    assert all(v.isfinite().all() for v in latest["network_weights"].values())
    # not a setting that decides the result, so the stage may go on with another value
    set_blocks(own_data, max_skipped_steps=9)
    folder = train(PRETRAIN, "toy_mine", continue_training=True)
    assert load_checkpoint(folder / "checkpoint_final.pth")["finished"]


def test_a_gradient_that_is_not_finite_changes_nothing(nnunet: Path) -> None:
    trainer = trainer_of(PRETRAIN)
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    parameter = next(trainer.network.parameters())
    batch = next(trainer.dataloader_train)
    trainer.train_step(batch)
    state = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    moments = {k: v.clone() for k, v in trainer.optimizer.state[parameter].items()}
    hook = parameter.register_hook(lambda gradient: gradient * torch.inf)
    assert trainer.train_step(batch) is not None  # its loss was finite
    hook.remove()
    assert all(torch.equal(v, state[k]) for k, v in trainer.network.state_dict().items())
    assert all(torch.equal(v, moments[k]) for k, v in trainer.optimizer.state[parameter].items())
    trainer.train_step(batch)
    assert not torch.equal(parameter, state[next(iter(state))])
    trainer.skipped.read_gradients()
    assert trainer.skipped.count == 1
    (file,) = (Path(trainer.output_folder) / "non_finite").iterdir()
    assert read_checkpoint(file)["not_finite"] == "gradient"
    assert file.name == "epoch_0000_step_0001_rank_0.pth"


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_damaged_case_is_named(workers: str, own_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", workers)
    case = trainer_of(PRETRAIN).find_cases().training[0].identifier
    file = own_data / f"{case}.b2nd"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=rf"^the preprocessed case {case} cannot be read \(.*preprocess it anew$"):
        train(PRETRAIN)


def test_a_dead_worker_is_reported(nnunet: Path) -> None:
    process = start_python(
        ["-m", "emim_nnunet.cli.pretrain", "1", "toy_long", "0", "-device", "cpu"], nnUNet_n_proc_DA="1"
    )
    wait_until((fold_folder(PRETRAIN, "toy_long") / "checkpoint_latest.pth").is_file, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.is_file():
        pytest.skip("this kernel does not list the children of a process")
    for child in children.read_text().split():
        os.kill(int(child), signal.SIGKILL)
    assert process.wait(60) == 2
    output = process.stdout.read()
    assert "a data-loading worker died (Killed" in output.splitlines()[-1]
    assert "Traceback" not in output


def test_what_to_do_when_memory_runs_out() -> None:
    out_of_memory = (
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"),
    )
    for error in out_of_memory:
        with pytest.raises(UserError, match=r"ran out.*: lower batch_size in a configuration"), explained():
            raise error
    with pytest.raises(RuntimeError, match="a bug"), explained():
        raise RuntimeError("a bug")


def test_every_command_explains_that_memory_ran_out(capsys: pytest.CaptureFixture[str]) -> None:
    def ends(error: Exception) -> Callable[[object], None]:
        def main(argv: object) -> None:
            raise error

        return main

    cpu = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory\nmore")
    gpu = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
    for error, words in ((cpu, "of this machine"), (MemoryError(), "of this machine"), (gpu, "of the GPU")):
        assert run(ends(error)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"error: the memory {words} ran out" in line
    with pytest.raises(RuntimeError, match="a bug"):
        run(ends(RuntimeError("a bug")))


def test_a_folder_that_was_deleted_meanwhile_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: object) -> None:
        write_json(tmp_path / "results" / "fold_0" / "log.json", {})

    assert run(main) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        f"error: {tmp_path / 'results'}: this folder does not exist, or no longer: was it moved or deleted meanwhile?"
    )
    assert ".tmp" not in line


def test_an_epoch_of_skipped_steps_has_a_loss_of_nan() -> None:
    assert np.isnan(mean_terms([], "train")["train/loss"])


def test_the_cpus_memory_really_runs_out() -> None:
    with pytest.raises(UserError, match="the memory of this machine ran out"), explained():
        torch.empty(1 << 50)


PAUSE = """
import sys
from emim_nnunet.training import faults
faults.RETRY_SECONDS = 0.2
from emim_nnunet.cli.pretrain import main
main(["1", "toy", "0", "-device", "cpu"])
"""


def test_a_full_disk_pauses_the_stage(nnunet: Path, tmp_path: Path) -> None:
    results = Path(os.environ["nnUNet_results"])
    mount = ["unshare", "--mount", "--propagation", "private"]
    small = f"mount -t tmpfs -o size=400k tmpfs '{results}'"
    if subprocess.run([*mount, "sh", "-c", small], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    script = tmp_path / "pause.py"
    script.write_text(PAUSE)
    # the disk grows once the training has said that it is full
    watch = (
        f"{small}; '{sys.executable}' '{script}' > '{tmp_path}/out' 2>&1 & "
        f"while ! grep -q 'The disk is full' '{tmp_path}/out' && kill -0 $!; do sleep 0.2; done; sleep 1; "
        f"kill -0 $! && mount -o remount,size=100m '{results}'; wait $!; echo $? > '{tmp_path}/code'; "
        f"cp -r '{results}' '{tmp_path}/copy'"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([*mount, "sh", "-c", watch], env=environment, check=True, timeout=200, capture_output=True)
    output = (tmp_path / "out").read_text()
    assert "The disk is full (No space left on device" in output
    assert (tmp_path / "code").read_text().strip() == "0", output
    folder = tmp_path / "copy" / fold_folder(PRETRAIN).relative_to(results)
    assert load_checkpoint(folder / "checkpoint_final.pth")["finished"]
    assert not list(folder.rglob("*.tmp"))


CHILD = """
import sys
import torch.multiprocessing as mp
from emim_nnunet.errors import UserError
from emim_nnunet.trainer_search import report_user_errors

def fail(rank):
    if sys.argv[1] == "error":
        raise UserError("mend it")
    sys.exit(75)

if __name__ == "__main__":
    report_user_errors()
    mp.spawn(fail, nprocs=1)
"""


@pytest.mark.parametrize(("kind", "code"), [("error", 2), ("signal", EXIT_INTERRUPTED)])
def test_processes_of_num_gpus_pass_on_how_they_ended(kind: str, code: int, tmp_path: Path) -> None:
    """nnU-Net's -num_gpus starts them like this."""
    script = tmp_path / "several.py"
    script.write_text(CHILD)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script, kind], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    if kind == "error":
        assert done.stderr.splitlines()[-1] == "several.py: error: mend it"


def test_nothing_that_a_run_writes_names_a_folder_of_this_machine(nnunet: Path) -> None:
    train(DROP_IN)
    results = Path(os.environ["nnUNet_results"])
    for name in ("debug.json", "checkpoint_final.pth"):
        assert (fold_folder(DROP_IN) / name).is_file()
    assert "hostname" not in json.loads((fold_folder(DROP_IN) / "debug.json").read_text())
    places = [os.environ[f"nnUNet_{name}"] for name in ("raw", "preprocessed", "results")] + [str(ROOT)]
    for file in results.rglob("*"):
        if file.is_dir() or file.name == "summary.json":  # nnU-Net's own: where prediction and reference lie
            continue
        content = file.read_bytes()
        assert not [place for place in places if place.encode() in content], file


def test_a_skipped_step_that_the_full_disk_does_not_take_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(content: dict, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("emim_nnunet.training.step.save_checkpoint", full)
    skipped = SkippedSteps(tmp_path / "non_finite", 5, lambda about: {})
    skipped.add("loss", {"epoch": 3, "step": 7, "rank": 0, "cases": ["a"]})
    line = "loss or gradient not finite in 1 steps of epoch 3 (cases a); 1 not in non_finite/, because the disk is full"
    assert skipped.describe(3) == line
    skipped.start_epoch()
    assert skipped.describe(4) == "loss or gradient not finite in 0 steps of epoch 4"
