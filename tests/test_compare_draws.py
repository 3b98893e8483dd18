"""emim_compare: draws of labelled cases, and the jobs that a comparison consists of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emim_nnunet.cli import compare as command
from emim_nnunet.compare.comparison import _run_draws
from emim_nnunet.compare.jobs import Job, all_jobs, find_job, weights_job, weights_jobs
from emim_nnunet.compare.workspace import make_splits
from tests.test_compare import protocol_of


def test_draws_take_turns_with_the_seeds_and_keep_what_was_there() -> None:
    labelled, tests = [f"c{i}" for i in range(9)], {2: ["c0"], 1: ["c5", "c6"]}
    protocol = protocol_of("--seeds", "2", "1", "--draws", "6", "--labelled", "2", "4")
    assert protocol.draws == {2: 2, 1: 1, 0: 2, 3: 1, 4: 2, 5: 1}
    assert protocol_of("--seeds", "2", "1").draws == {2: 2, 1: 1}
    splits = make_splits(labelled, tests, protocol.counts, {}, protocol.draws)
    assert splits[:6] == make_splits(labelled, tests, protocol.counts, {})
    folds = {(draw, count): protocol.fold(draw, count) for draw in protocol.draws for count in (2, 4)}
    assert sorted([*folds.values(), *map(protocol.ssl_fold, (2, 1))]) == list(range(len(splits)))
    for draw, seed in protocol.draws.items():
        small, large = (splits[folds[draw, count]] for count in (2, 4))
        assert small["val"] == large["val"] == splits[protocol.ssl_fold(seed)]["val"] == sorted(tests[seed])
        assert set(small["train"]) < set(large["train"]) <= set(splits[protocol.ssl_fold(seed)]["train"])
    assert len({tuple(splits[folds[draw, 4]]["train"]) for draw in protocol.draws}) == 6


def test_jobs_are_weights_first_and_a_checkpoint_has_one() -> None:
    arms = ["--arms", "scratch", "mim", f"given=file:{__file__}"]
    protocol = protocol_of("--seeds", "0", "1", "--draws", "3", *arms)
    weights = ["export_given", "pretrain_mim_seed0", "pretrain_mim_seed1"]
    draws = [f"draw{draw}_{arm}" for draw in range(3) for arm in ("scratch", "mim", "given")]
    assert [job.name for job in all_jobs(protocol)] == [*weights, *draws]
    assert weights_job(protocol, protocol.arms[2], 1) == weights_jobs(protocol)[0]
    assert find_job(protocol, "8").name == find_job(protocol, "draw1_given").name == "draw1_given"
    assert [job.name for job in all_jobs(protocol_of(*arms, "--evaluate"))][-1] == "pretrain_mim_seed2"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--draws", "2"], "--draws must be at least the number of --seeds, 3"),
        (["--until", "0.03"], "--until needs --draws"),
        (["--until", "1.5", "--draws", "9"], "--until must be a difference of Dice above 0 and below 1"),
        (["--list_jobs", "--only", "0"], "not allowed with argument --list_jobs"),
    ],
)
def test_impossible_draws_are_refused(options: list[str], message: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        command.main(["1", "toy", "-o", "out", *options])
    assert message in capsys.readouterr().err


class Recorded:
    """Commands whose trainings have these results: scratch 0.5, mim more by the difference of the draw."""

    def __init__(self, folder: Path, differences: np.ndarray) -> None:
        self.folder, self.differences, self.ran = folder, differences, []

    def run_all(self, jobs: list[Job], title: str) -> None:
        self.ran += [job.name for job in jobs]

    def score_files(self, draws: list[int]) -> list[tuple[dict[str, Any], Path]]:
        files = []
        for draw in draws:
            for arm, dice in (("scratch", 0.5), ("mim", 0.5 + self.differences[draw])):
                file = self.folder / f"{arm}{draw}.json"
                case = {"reference_file": "c0.nii.gz", "metrics": {"1": {"Dice": dice}}}
                file.write_text(json.dumps({"metric_per_case": [case]}))
                about = {"evaluation": "finetune", "arm": arm, "labelled": 2, "seed": draw % 3, "draw": draw}
                files.append((about, file))
        return files


@pytest.mark.parametrize(
    ("mean", "until", "ended", "reason"),
    [
        (0.2, 0.03, 8, "the interval excludes 0"),
        (0.0, 0.09, 8, "the interval lies within +-0.09"),
        (0.0, 0.001, 12, None),
    ],
)
def test_draws_are_run_until_the_interval_decides(
    mean: float, until: float, ended: int, reason: str | None, tmp_path: Path
) -> None:
    options = ["--labelled", "2", "4", "--draws", "12", "--until", str(until), "--arms", "scratch", "mim"]
    commands: Any = Recorded(tmp_path, np.random.default_rng(1).normal(mean, 0.04, 12))
    draws, decision = _run_draws(protocol_of(*options), commands)
    assert decision is not None
    assert (len(draws), decision.draws, decision.reason) == (ended, ended, reason)
    assert commands.ran == [f"draw{draw}_{arm}" for draw in range(ended) for arm in ("scratch", "mim")]
