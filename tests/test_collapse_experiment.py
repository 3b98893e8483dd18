"""The experiment behind the claims about collapse: it runs, and the effects it rests on are still there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from scipy import stats

from emim_nnunet.diagnostics import Thresholds, judge

MEAN_OF_ARMS = [("2", "+0.049"), ("4", "+0.034")]  # as the page says
FOLDER = Path(__file__).resolve().parent.parent / "benchmarks" / "collapse"


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the benchmark."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import experiment

    return experiment


@pytest.fixture
def arms(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Its arms."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import arms

    return arms


def test_pyramid_barlow_twins_raise_the_rank(experiment: Any, arms: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """R2. Seen on seeds 0, 1, 2: participation ratio of stage 2 x 3.2, 6.8, 6.1; effective rank x 2.0, 2.2, 2.5."""
    monkeypatch.setattr(experiment, "FEATURES", (8, 16, 32))
    budget = experiment.Budget(unlabelled=8, probe=8, ssl_steps=60, ssl_batch=2, evaluations=1, ssl_lr=1e-2)
    twins = {"pyramid_levels": (1, 2), "projector_widths": (0, 0), "barlow_weight": 1.0}
    plain, with_twins = (
        experiment.pretrain(arms.Arm(arms.FRACTION | settings), 0, budget)[1][-1]["stages"][2]
        for settings in (arms.PLAIN, twins)
    )
    assert with_twins["participation_ratio"] > 2 * plain["participation_ratio"]
    assert with_twins["effective_rank"] > 1.3 * plain["effective_rank"]


def test_the_detectable_difference_is_found_in_four_of_five_experiments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    import power

    draws = np.random.default_rng(0).standard_normal((20_000, 5)) + power.detectable(5)
    found = stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.01)
    rows = list(power.rows(json.loads((FOLDER / "results" / "ten_seeds.json").read_text())))
    assert [row[:3] for row in rows if "mean" in row[1]] == [[n, "mean of the arms", d] for n, d in MEAN_OF_ARMS]


def test_a_fill_far_from_the_data_takes_that_away(experiment: Any, arms: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why fill_start is 0. Seen on seeds 0 to 3: with -3, twins / plain is 0.6, 0.7, 0.8, 0.8; the skill of plain is
    .001, .006, .002, .007 against .022, .006, .025, .013.
    """
    monkeypatch.setattr(experiment, "FEATURES", (8, 16, 32))
    budget = experiment.Budget(unlabelled=8, probe=8, ssl_steps=60, ssl_batch=2, evaluations=1, ssl_lr=1e-2)
    twins = {"pyramid_levels": (1, 2), "projector_widths": (0, 0)}
    last = []
    for settings in (arms.PLAIN, arms.PLAIN | {"fill_start": -3.0}, twins | {"fill_start": -3.0}):
        last.append(experiment.pretrain(arms.Arm(arms.FRACTION | settings), 0, budget)[1][-1])
    near, far, far_with_twins = last
    assert far_with_twins["stages"][2]["participation_ratio"] < far["stages"][2]["participation_ratio"]
    assert far["reconstruction"]["all"]["foreground_skill"] < near["reconstruction"]["all"]["foreground_skill"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [5, 6])
def test_a_plateau_is_flagged_while_it_lasts_and_cleared_after_it(experiment: Any, arms: Any, seed: int) -> None:
    """R3, "plateau at fixed budget": a mask of large cells without skip connections."""
    arm = arms.PLATEAU_ARMS["position, 16^3 cells, no skips"]
    _, history = experiment.pretrain(arm, seed, experiment.Budget(ssl_steps=240, evaluations=48))
    every_look = Thresholds(patience_steps=0)  # the whole run has 240 steps
    verdicts = [judge(history[: i + 1], warmup_epochs=4, thresholds=every_look) for i in range(1, len(history))]
    flagged = [i for i, v in enumerate(verdicts) if any(f.rule == "no_skill" for f in v.findings)]
    assert flagged
    assert max(flagged) < 20
    assert verdicts[-1].level in ("ok", "note")


@pytest.mark.slow
def test_the_command_regenerates_its_table_and_goes_on_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, str(FOLDER / "run.py"), "--quick", "--json", str(out), "--workers", "1"]
    environment = os.environ | {"PYTHONPATH": str(FOLDER.parent.parent)}
    for arms in (["HMP"], ["HMP", "scratch", "HMP, 16^3 cells"]):
        done = subprocess.run(
            [*command, "--seeds", "0", "--arms", *arms], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert "2/2" in done.stderr  # the first job was kept
    report = json.loads(out.read_text())
    assert list(report["arms"]) == ["HMP", "scratch", "HMP, 16^3 cells"]
    hmp = report["arms"]["HMP"]["dice"]["2"]
    scratch = report["arms"]["scratch"]["dice"]["2"]["dice"]["mean"]
    assert hmp["minus_scratch"]["mean"] == pytest.approx(hmp["dice"]["mean"] - scratch)
    assert "| HMP |" in done.stdout
    assert (tmp_path / "out.md").read_text().strip() in done.stdout
    for name in ("out_curves.png", "out_dice.png"):
        assert imread(tmp_path / name).std() > 0.05
    wrong = subprocess.run([*command, "--arms", "HPM"], env=environment, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "unknown HPM" in wrong.stderr


@pytest.fixture
def claim(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the other benchmark."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import claim

    return claim


@pytest.mark.parametrize(
    ("network", "mask", "alike"),
    [
        ("zero", "position", True),
        ("zero", "hybrid", False),
        ("sin-cos", "position", False),
        ("learned", "position", False),
    ],
)
def test_without_positions_fully_masked_tokens_are_predicted_alike(
    network: str, mask: str, alike: bool, claim: Any
) -> None:
    method = claim.make_method(claim.Job(network, mask, claim.SCALES[0], 0, 1)).eval()
    image = torch.randn(1, 4, *claim.PATCH, generator=torch.Generator().manual_seed(0))
    draws = method.draw(torch.Generator().manual_seed(1))
    with torch.no_grad():
        shown = method(image, torch.ones(1, 1, *claim.PATCH, dtype=torch.bool), draws).reconstruction
    hidden = shown.hidden[0, 0].reshape(3, 8, 6, 8, 6, 8)[:, 0, :, 0, :, 0]
    cells = shown.prediction[0, 0].reshape(3, 8, 6, 8, 6, 8).permute(0, 2, 4, 1, 3, 5)[hidden]
    assert len(cells) > 2
    assert torch.allclose(cells, cells[:1].expand_as(cells), atol=1e-5) == alike


def test_sine_cosine_positions_tell_every_place(claim: Any) -> None:
    codes = claim.sin_cos((3, 6, 6), 128)[0]
    assert codes.shape == (108, 128)
    apart = torch.cdist(codes, codes) + 1e9 * torch.eye(108)
    assert apart.min() > 0.5
    assert codes[0, :21].abs().max() == 0  # the sines of the first axis at its origin


def test_the_criterion_is_counted_over_seeds(claim: Any) -> None:
    def run(mask: str, seed: int, within: float) -> dict[str, Any]:
        measured = {"loss": 0.9, "collapsed_loss": 1.0, "skill": 0.1, "within": within, "effective_rank": 3.0}
        first = measured | {
            "step": 0,
            "baselines": {"sample_constant": 0.9, "outline": 1.0, "depth": 0.8, "constant": 1.0},
        }
        about = {"network": "zero", "mask": mask, "scale": claim.SCALES[0], "seed": seed, "steps": 10, "probe_r2": 0.2}
        return about | {"history": [first, measured | {"step": 10}]}

    summary, text = claim.report(
        [run("position", 0, 0.001), run("position", 1, 0.03), run("hybrid", 0, 0.2), run("hybrid", 1, 0.06)]
    )
    body = "z-score, body"
    assert summary["criterion"] == {f"{body}, position": {"met": 1, "of": 2}, f"{body}, hybrid": {"met": 2, "of": 2}}
    assert "position: 1 of 2" in text
