"""emim_compare: arms, splits, compute, intervals, and a small comparison with the real commands."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from importlib import import_module
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from emim_nnunet.cli import compare as command
from emim_nnunet.cli._run import run
from emim_nnunet.compare import commands
from emim_nnunet.compare.arms import ARMS, Arm, parse_arms
from emim_nnunet.compare.commands import Commands
from emim_nnunet.compare.compute import step_flops
from emim_nnunet.compare.power import power_rows
from emim_nnunet.compare.preparation import _configuration, _test_cases
from emim_nnunet.compare.processes import Processes
from emim_nnunet.compare.protocol import Protocol
from emim_nnunet.compare.report import markdown
from emim_nnunet.compare.scores import interval, summarise
from emim_nnunet.compare.workspace import FOLDERS, make_splits
from emim_nnunet.datasets.dataset import PreprocessedDataset
from emim_nnunet.errors import UserError
from emim_nnunet.storage.locks import acquire
from tests.pipeline import DATASET, PLANS, trainer_of
from tests.toy import toy_batch


def test_arms_are_presets_or_written_out() -> None:
    arms = parse_arms(["scratch", "moco", "mine=nnUNetTrainerEMIMPretrain,barlow_weight=0,pyramid_levels=[1,2]"])
    assert arms[1] is ARMS["moco"]
    assert arms[1].trainer == "nnUNetTrainerMoCoZCAPretrain"
    assert arms[2] == Arm("mine", "EMIM", {"barlow_weight": 0, "pyramid_levels": [1, 2]})
    (given,) = parse_arms([f"given=file:{__file__},finetune_initial_lr=0.01"])
    assert given == Arm("given", None, {"finetune_initial_lr": 0.01}, Path(__file__))
    assert given.pretrained
    assert given.trainer is None
    assert not arms[0].pretrained


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["nothing"], "--arms nothing: known are scratch, mim"),
        (["mim", "mim"], "mim is there twice"),
        (["a/b=MIM"], "the name must consist of"),
        (["x=Unknown"], "knows no SSL method 'Unknown'"),
        (["x=file:nothing.pth"], "nothing.pth does not exist: give a checkpoint"),
        (["scratch=MIM"], "scratch is training from scratch, choose another name"),
        (["x=MIM,fill=zero"], "settings must be KEY=VALUE with JSON values"),
    ],
)
def test_impossible_arms_are_named(texts: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_arms(texts)


def test_splits_nest_and_never_touch_the_test_cases() -> None:
    labelled = [f"c{i}" for i in range(9)]
    splits = make_splits(labelled, {0: ["c5", "c0"], 1: ["c0", "c5"]}, [2, 4], {})
    assert len(splits) == 6
    assert splits[0] == splits[3]
    assert splits[0]["train"] == ["c1", "c2", "c3", "c4", "c6", "c7", "c8"]
    assert all(split["val"] == ["c0", "c5"] and not set(split["train"]) & {"c0", "c5"} for split in splits)
    for small, large in ((splits[1], splits[2]), (splits[4], splits[5])):
        assert len(small["train"]) == 2
        assert set(small["train"]) < set(large["train"])
    assert splits[2] != splits[5]
    with pytest.raises(UserError, match="--labelled 8: of 9 labelled cases 2 are for the test, which leaves 7"):
        make_splits(labelled, {0: ["c0", "c5"]}, [8], {})
    same = {"c0": "p", "c1": "p", "c2": "q"}
    assert "c1" not in make_splits(labelled, {0: ["c0", "c5"]}, [2], same)[0]["train"]


def protocol_of(*more: str) -> Protocol:
    """The protocol of a command line, nothing of which is run."""
    seen: list[Protocol] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("emim_nnunet.compare.compare", lambda protocol, *others: seen.append(protocol) or Path(__file__))
        command.main(["1", "toy", "-o", "out", "-device", "cpu", *more])
    return seen[0]


@pytest.mark.parametrize(("num_test", "count"), [("2", 3), (None, 4), (None, 2)], ids=["drawn", "folds", "few"])
def test_seeds_draw_other_labelled_cases_even_where_the_test_leaves_no_more(
    num_test: str | None, count: int, nnunet: Path
) -> None:
    protocol = protocol_of(
        "--labelled", str(count), "--seeds", "0", "1", *(["--num_test", num_test] if num_test else [])
    )
    data = PreprocessedDataset.find(1, PLANS, "toy")
    tests = {seed: _test_cases(protocol, data, seed) for seed in protocol.seeds}
    splits = make_splits(data.labelled_ids, tests, protocol.counts, {})
    learnt = []
    for seed in protocol.seeds:
        ssl, few = splits[protocol.ssl_fold(seed)], splits[protocol.fold(seed, count)]
        assert len(few["train"]) == count
        assert few["val"] == ssl["val"] == sorted(tests[seed])
        assert set(few["train"]) <= set(ssl["train"]) == set(data.labelled_ids) - set(tests[seed])
        learnt.append(few["train"])
    assert learnt[0] != learnt[1]


def test_until_decides_by_the_linear_head_where_nothing_else_is_trained(nnunet: Path) -> None:
    options = ["--arms", "scratch", "mim", "--until", "0.1", "--draws", "9", "--evaluate"]
    assert [arm.name for arm in protocol_of(*options, "linear", "linear_first").decided] == ["mim", "scratch"]
    with pytest.raises(UserError, match="finetune or linear_first in --evaluate"):
        _ = protocol_of(*options, "linear").decided


def test_by_default_the_frozen_encoder_is_evaluated_too_and_each_arm_has_its_rate(nnunet: Path) -> None:
    assert protocol_of().evaluations == ("finetune", "linear")
    protocol, block = protocol_of("--arms", "scratch", "mim"), {"finetune_scratch_lr": 0.02}
    made = [_configuration(protocol, arm, 0, {"mim": {"steps_per_epoch": 3}}, block) for arm in protocol.arms]
    assert [c["emim"].get("finetune_init", "pretrained") for c in made] == ["scratch", "pretrained"]
    assert all((c["emim"]["finetune_initial_lr"], c["emim"]["finetune_scratch_lr"]) == (1e-3, 0.02) for c in made)


@pytest.mark.parametrize(
    ("method", "configuration"),
    [
        *product(["MIM", "EMIM", "MoCoZCA", "MaskInMask", "VICReg"], ["toy"]),
        *product(["MIM", "MoCoZCA", "VICReg"], ["toy_primus"]),  # they leave as many tokens in every sample
    ],
)
def test_flops_are_those_of_a_real_step(method: str, configuration: str, nnunet: Path) -> None:
    data = PreprocessedDataset.find(1, PLANS, configuration)
    trainer = trainer_of(f"nnUNetTrainer{method}Pretrain", configuration)
    trainer.initialize()
    network = trainer.method
    if hasattr(network.config, "patches_at_once"):
        object.__setattr__(network.config, "patches_at_once", None)
    image, foreground, draws = toy_batch(network, batch_size=2)
    with FlopCounterMode(display=False) as counter:
        network.train()(image, foreground, draws).loss.backward()
    assert step_flops(data.plans, data.dataset_json, data.configuration, method) == counter.get_total_flops() > 0


def test_intervals_draw_seeds_and_cases() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 40)) + np.array([[-1.0], [0.0], [1.0]])  # seeds differ more than cases
    mean, low, high = interval(values)
    assert mean == pytest.approx(values.mean())
    assert low < -0.5
    assert high > 0.5  # much wider than 1.96 / sqrt(120)
    assert interval(values) == interval(values)
    constant = interval(np.full((3, 8), 0.25))
    assert constant == (0.25, 0.25, 0.25)
    values[0, 0] = np.nan
    assert all(np.isfinite(interval(values)))


def rows(arm: str, offset: float) -> list[dict[str, Any]]:
    return [
        {
            "evaluation": "finetune",
            "arm": arm,
            "labelled": 2,
            "seed": seed,
            "draw": seed,
            "case": f"c{case}",
            "dice": {},
            "mean": 0.5 + 0.1 * case + offset,
        }
        for seed in (0, 1)
        for case in range(4)
    ]


def test_differences_are_paired_and_tables_hold_the_number_of_cases() -> None:
    scores = [*rows("scratch", 0.0), *rows("emim", 0.02)]
    summary = summarise(scores)
    scratch, emim = summary
    assert "difference" not in scratch
    assert emim["difference"] == pytest.approx(0.02)
    assert emim["difference_low"] == pytest.approx(0.02)  # paired: the spread of the cases cancels
    assert emim["high"] - emim["low"] > 0.1
    assert emim["better_in"] == emim["num_cases"] == 4
    results = {
        "dataset": "D",
        "configuration": "c",
        "cases": {"unlabelled": 5, "labelled_pool": 3, "test": 4},
        "test_cases": ["c0", "c1", "c2", "c3"],
        "seeds": [0, 1],
        "draws": [0, 1],
        "labelled_sets": {2: 2},
        "files": {},
        "until": None,
        "worth": [],
        "power": power_rows(scores),
        "speed": [],
        "labelled": [2],
        "compute": {},
        "budget": {
            "finetune_num_epochs": 10,
            "finetune_num_iterations_per_epoch": 20,
            "finetune_initial_lr": 1e-3,
            "finetune_scratch_lr": 1e-2,
        },
        "spectra": [],
        "summary": summary,
    }
    text = markdown(results)
    assert "| emim | 0.670 |" in text
    assert "| +0.020 | +0.020 to +0.020 | 4 of 4 | 4, 2 |" in text
    assert "Fine-tuning: 200 steps, peak rate 0.001 from a pretrained encoder, 0.01 from scratch." in text
    assert "**Fewer than 1000 steps of fine-tuning**" in text
    enough = markdown(results | {"budget": results["budget"] | {"finetune_num_epochs": 50}})
    assert "Fewer than" not in enough
    other = [row | {"evaluation": "linear_first"} for row in summary]
    rates = {"linear_first_lr": 5e-4, "linear_first_scratch_lr": 1e-3}
    first = markdown(results | {"summary": other, "budget": results["budget"] | rates})
    assert (
        "Linear head first: 200 steps with AdamW, peak rate 0.0005 from a pretrained encoder, 0.001 from scratch."
        in first
    )
    assert "Fewer than" not in first
    assert "Pretraining on 8 cases (5 without label" in text


def test_commands_at_the_same_time_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "num_cores", lambda: 7)

    def threads(device: str, jobs: int, **environment: str) -> str | None:
        made = Commands(SimpleNamespace(device=device, jobs=jobs), SimpleNamespace(environment=lambda: environment))  # type: ignore[arg-type]
        return made._environment().get("OMP_NUM_THREADS")

    assert [threads("cpu", jobs) for jobs in (1, 2, 3, 20)] == [None, "3", "2", "1"]
    assert threads("cpu", 2, OMP_NUM_THREADS="5") == "5"
    assert threads("cuda", 2) is None


def test_a_comparison_runs_resumes_and_reports(
    nnunet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = tmp_path / "out"
    options = ["1", "toy", "-o", str(out), "--labelled", "1", "--seeds", "0", "--num_test", "2", "-device", "cpu"]
    arms = ["--arms", "scratch", "wide=MIM,cell_size=[8,8,8]"]
    assert run(command.main, [*options, *arms, "--evaluate", "finetune", "--json", str(tmp_path / "r.json")]) == 0
    results = json.loads((tmp_path / "r.json").read_text())
    assert results["cases"] == {"unlabelled": 2, "labelled_pool": 3, "test": 2}
    assert {(r["arm"], r["seed"]) for r in results["scores"]} == {("scratch", 0), ("wide", 0)}
    assert len(results["scores"]) == 4
    assert results["compute"]["wide"]["steps"] == 9
    assert [s["arm"] for s in results["spectra"] if s["stage"] == 0] == ["wide"]
    for name in ("results.md", "results.json", "scores.png", "spectra.png"):
        assert (out / name).stat().st_size > 500
    capsys.readouterr()
    stamps = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.suffix == ".pth" or p.name == "summary.json"}
    assert len(stamps) >= 4
    assert run(command.main, [*options, *arms, "--evaluate", "finetune"]) == 0
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items())  # nothing is done twice
    learnt = torch.load(next(out.rglob("*MIMPretrain*/fold_0/checkpoint_final.pth")), weights_only=True)[
        "training_cases"
    ]
    assert not set(learnt) & {r["case"] for r in results["scores"]}
    assert len(learnt) == 5
    a_further_draw_and_a_checkpoint_are_added(out, options, arms, monkeypatch, capsys)
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items())
    original = nnunet / "nnUNet_preprocessed" / DATASET
    assert "toy_wide_seed0" not in json.loads((original / f"{PLANS}.json").read_text())["configurations"]
    options[options.index("--num_test") + 1] = "1"
    assert run(command.main, [*options, *arms]) == 2
    assert "holds a comparison with other cases" in capsys.readouterr().err
    options[options.index("--num_test") + 1] = "2"
    assert run(command.main, [*options, "--arms", "scratch", "wide=MIM,cell_size=[8,8,8],finetune_scratch_lr=0.5"]) == 2
    said = "holds a comparison with other settings of toy_wide_seed0 (finetune_scratch_lr 0.01 there, 0.5 now): choose"
    assert said in capsys.readouterr().err
    rates = {arm: set(re.findall(r"Peak learning rate: (\S+)", log_of_arm(out, arm))) for arm in ("wide", "scratch")}
    assert rates == {"wide": {"0.001"}, "scratch": {"0.01"}}


def a_further_draw_and_a_checkpoint_are_added(
    out: Path, options: list[str], arms: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Job by job. Exports run in this process; of a training the command is kept, and results of the first draw stand in."""
    trainings = []

    def instead(_: Processes, line: list[str], env: dict[str, str], stdout: Any) -> int:
        if line[2].endswith(".train"):
            trainings.append(line[4:6] + line[12:])
            first = next(out.glob(f"nnUNet_results/*/*__{line[4].removesuffix('_draw1')}/fold_1"))
            shutil.copytree(first, first.parent.with_name(f"{first.parent.name}_draw1") / f"fold_{line[5]}")
            return 0
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout):
            for name in FOLDERS:
                patch.setenv(name, env[name])
            return run(import_module(line[2]).main, line[3:])

    monkeypatch.setattr(Processes, "call", instead)
    checkpoint = next(out.rglob("*MIMPretrain*/fold_0/checkpoint_final.pth"))
    more = [*options, "--evaluate", "finetune", "--draws", "2"]
    given = [*more, *arms, f"given=file:{checkpoint}"]
    capsys.readouterr()
    assert run(command.main, [*given, "--list_jobs"]) == 0
    names = [
        "export_given",
        "pretrain_wide_seed0",
        *(f"draw{d}_{a}" for d in (0, 1) for a in ("scratch", "wide", "given")),
    ]
    done = {"pretrain_wide_seed0", "draw0_scratch", "draw0_wide"}
    listed = [f"{n} {name} {'finished' if name in done else 'open'}" for n, name in enumerate(names)]
    assert capsys.readouterr().out.splitlines() == listed
    assert run(command.main, [*given, "--only", "draw1_given"]) == 2
    assert "needs the weights of export_given: run that first (--only export_given)" in capsys.readouterr().err
    with acquire(out, "the comparison"):  # jobs do not hold this lock: plans and splits are there
        assert run(command.main, [*given, "--only", "0"]) == 0
    assert run(command.main, [*given, "--list_jobs"]) == 0
    assert "0 export_given finished" in capsys.readouterr().out
    assert run(command.main, [*given, "--only", "draw7_given"]) == 2
    assert "must be a name of --list_jobs, or a number from 0 to 7" in capsys.readouterr().err
    changed = [*more, *arms, f"given=file:{next(out.glob('weights/wide_seed0.pth'))}"]
    assert run(command.main, [*changed, "--only", "0"]) == 2
    assert "holds a comparison with another file than" in capsys.readouterr().err
    assert run(command.main, [*more, *arms]) == 0
    weights = ["-pretrained_weights", str(out / "weights" / "wide_seed0.pth")]
    assert trainings == [["toy_scratch_seed0_draw1", "2"], ["toy_wide_seed0_draw1", "2", *weights]]
    folds = json.loads(next(out.glob("nnUNet_preprocessed/*/splits_final.json")).read_text())
    assert folds[2]["val"] == folds[0]["val"]
    assert folds[2]["train"] != folds[1]["train"]
    page = capsys.readouterr().out
    assert "2 draws of labelled cases use the encoders of these seeds in turn" in page
    results = json.loads((out / "results.json").read_text())
    assert {(r["arm"], r["draw"], r["seed"]) for r in results["scores"]} == {
        (arm, d, 0) for arm in ("scratch", "wide") for d in (0, 1)
    }
    assert len({r["case"] for r in results["scores"]}) == 2  # draws of a seed share the test cases
    assert [len(curve["dice"]) for curve in results["curves"]] == [2] * 4
    assert results["power"][0]["draws"] == results["speed"][0]["draws"] == 2
    assert "The smallest difference of Dice that this run could have seen is" in page
    blocks = json.loads(next(out.glob(f"nnUNet_preprocessed/*/{PLANS}.json")).read_text())["configurations"]
    seeds = {(b["emim"]["seed"], b["emim"]["finetune_seed"]) for n, b in blocks.items() if n.endswith("_draw1")}
    assert seeds == {(0, 1)}
    assert (out / "efficiency.png").stat().st_size > 500


def log_of_arm(out: Path, arm: str) -> str:
    return "".join(file.read_text() for file in (out / "logs").glob(f"finetune_{arm}_*.txt"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--arms", "mim", "--reference", "emim"], "--reference emim: must be one of the arms that pretrain, mim"),
        (["--arms", "x=MIM,cel_size=[4,4,4]"], "unknown key 'cel_size'"),
        (["--until", "0.1", "--draws", "4"], "--draws 4: --until decides after 8 draws at the earliest"),
        (["--until", "0.1", "--draws", "9", "--arms", "mim"], "--until needs scratch and a pretrained arm in --arms"),
        (["--num_test", "5"], "--num_test 5: there are 5 labelled cases"),
        (
            ["--num_test", "2", "--labelled", "4"],
            "--labelled 4: of 5 labelled cases 2 are for the test, which leaves 3",
        ),
    ],
)
def test_impossible_comparisons_are_refused_at_once(
    options: list[str], message: str, nnunet: Path, tmp_path: Path, capsys: Any
) -> None:
    assert (
        run(command.main, ["1", "toy", "-o", str(tmp_path / "out"), "--labelled", "1", "-device", "cpu", *options]) == 2
    )
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "nnUNet_results").exists()


def test_all_commands_stop_with_the_process_that_is_asked_to_and_none_starts(tmp_path: Path) -> None:
    child = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('stopped', flush=True), sys.exit(75)))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)"
    )
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]

    def stop() -> None:
        while not all(file.exists() and "ready" in file.read_text() for file in files):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    def call(file: Path) -> int:
        with file.open("a") as stream:
            return processes.call([sys.executable, "-c", child], os.environ, stream)

    processes = Processes()
    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=stop).start()
    with processes.stopped_together(), ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(call, file) for file in files]:
            with pytest.raises(SystemExit) as ended:
                future.result()
            assert ended.value.code == 75
    assert [file.read_text().split() for file in files] == [["ready", "stopped"]] * 2
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(SystemExit):
        call(files[0])
    assert files[0].read_text().split() == ["ready", "stopped"]  # did not begin
