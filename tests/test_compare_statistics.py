"""Statistics of emim_compare: draws, power, the interval that holds after every draw, worth in labelled cases, speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from emim_nnunet.compare.efficiency import labelled_equivalents, worth
from emim_nnunet.compare.power import detectable, draw_differences, power_rows
from emim_nnunet.compare.sentences import conclusions, number_text, stopping
from emim_nnunet.compare.sequential import LEVEL, anytime_interval, decide
from emim_nnunet.compare.sources import remark
from emim_nnunet.compare.speed import read_curves, share_until, speed_rows

COUNTS = [1, 2, 4, 8]


def rows(arm: str, dice: Callable[[int, int, int], float], counts: Sequence[int] = COUNTS) -> list[dict[str, Any]]:
    """Scores of 6 draws of 2 seeds on 5 test cases each, one of which the seeds share."""
    return [
        {
            "evaluation": "finetune",
            "arm": arm,
            "labelled": labelled,
            "seed": draw % 2,
            "draw": draw,
            "case": f"c{case}",
            "mean": dice(labelled, draw, case),
        }
        for labelled in counts
        for draw in range(6)
        for case in range(4 * (draw % 2), 4 * (draw % 2) + 5)
    ]


def curve(labelled: float) -> float:
    """Dice of scratch, linear in the logarithm: 0.3, 0.4, 0.5, 0.6."""
    return 0.3 + 0.1 * float(np.log2(labelled))


def test_detectable_is_the_known_effect_size() -> None:
    assert detectable(34) == pytest.approx(0.495, abs=0.003)  # 0.5 takes 34 pairs (Cohen; G*Power)
    assert detectable(1000) == pytest.approx((7.85 / 1000) ** 0.5, rel=0.002)
    assert 10 < detectable(2) < 13


def test_differences_are_paired_by_draw_and_say_what_could_be_seen() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 6)
    scores = [
        *rows("scratch", lambda n, d, c: curve(n) + 0.05 * c),
        *rows("emim", lambda n, d, c: curve(n) + 0.05 * c + noise[d]),
    ]
    assert draw_differences(scores, "finetune", 2, "emim", "scratch") == pytest.approx(noise)
    row = power_rows(scores)[1]
    assert (row["labelled"], row["arm"], row["draws"]) == (2, "emim", 6)
    assert row["detectable"] == pytest.approx(noise.std(ddof=1) * detectable(6))
    assert row["by_seed"] == pytest.approx({0: noise[::2].mean(), 1: noise[1::2].mean()})


def bayes_factor(values: np.ndarray) -> float:
    """Of the t-test with a standard normal prior on the effect size, by integration of the non-central t density."""
    n = len(values)
    t = values.mean() / values.std(ddof=1) * n**0.5
    evidence, _ = integrate.quad(
        lambda effect: stats.nct.pdf(t, n - 1, effect * n**0.5) * stats.norm.pdf(effect), -9, 9, points=[0, t / n**0.5]
    )
    return evidence / stats.t.pdf(t, n - 1)


@pytest.mark.parametrize("number", [8, 16, 48])
def test_the_interval_ends_where_the_bayes_factor_rejects(number: int) -> None:
    values = np.random.default_rng(number).normal(0.1, 0.2, number)
    low, high = anytime_interval(values)
    assert low < values.mean() < high
    for end in (low, high):
        assert bayes_factor(values - end) == pytest.approx(1 / LEVEL, rel=1e-3)


def ever_outside(values: np.ndarray, mean: float) -> bool:
    ends = (anytime_interval(values[:number]) for number in range(2, len(values) + 1))
    return any(not low <= mean <= high for low, high in ends)


def test_the_interval_covers_the_mean_at_all_times() -> None:
    rng, runs = np.random.default_rng(0), 400
    limit = 0.05 + 2 * (0.05 * 0.95 / runs) ** 0.5
    assert np.mean([ever_outside(rng.normal(0.3, 0.08, 32), 0.3) for _ in range(runs)]) < limit

    def failing() -> np.ndarray:  # both arms fail in a fifth of the draws
        return np.where(rng.random(32) < 0.2, -0.3, 0) + rng.normal(0, 0.02, 32)

    assert np.mean([ever_outside(failing() - failing(), 0) for _ in range(runs)]) < limit
    assert np.mean([ever_outside(rng.choice([-0.1, 0.1], 32), 0) for _ in range(runs)]) < limit
    naive = [stats.ttest_1samp(values[:n], 0).pvalue for values in rng.normal(0, 1, (40, 32)) for n in range(8, 33)]
    assert np.mean(np.reshape(naive, (40, -1)).min(1) < 0.05) > 0.12  # looking at the usual test after every draw


def test_draws_end_once_the_difference_is_known() -> None:
    rng = np.random.default_rng(0)
    clear, none = rng.normal(0.1, 0.03, 12), rng.normal(0, 0.02, 32)
    assert decide(clear[:7], 0.02).reason is None
    assert decide(clear[:7], 0.02).low == -np.inf
    assert decide(clear, 0.02).reason == "the interval excludes 0"
    assert decide(-clear, 0.02).reason == "the interval excludes 0"
    assert decide(none[:8], 0.02).reason is None
    decision = decide(none, 0.02)
    assert decision.reason == "the interval lies within +-0.02"
    assert decision.mean == pytest.approx(none.mean())
    about = {"difference": 0.02, "arm": "emim", "labelled": 2}
    text = stopping(about | vars(decision), 64)
    assert text.startswith(
        "Ended after 32 of at most 64 draws, because the interval lies within +-0.02 (--until 0.02)."
    )
    assert "unbounded" in stopping(about | vars(decide(clear[:7], 0.02)), 4)


@pytest.mark.parametrize(
    ("dice", "number"), [(0.3, 1), (0.35, 2**0.5), (0.4, 2), (0.55, 2**2.5), (0.6, 8), (0.29, 0.5), (0.61, 16)]
)
def test_labelled_equivalent_inverts_the_curve_on_the_logarithm(dice: float, number: float) -> None:
    scratch = np.array([curve(n) for n in COUNTS])
    assert labelled_equivalents(np.array([dice, np.nan]), scratch, COUNTS) == pytest.approx(
        [number, np.nan], nan_ok=True
    )


def test_a_curve_that_falls_is_levelled() -> None:
    found = labelled_equivalents(np.array([0.45, 0.525]), np.array([0.3, 0.5, 0.4, 0.6]), COUNTS)
    assert found == pytest.approx([2, 4 * 2**0.5])
    assert np.isnan(labelled_equivalents(np.array([0.4]), np.array([0.3, np.nan]), [1, 2])).all()


def test_worth_is_found_with_an_interval_and_said_in_a_sentence() -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, (6, 9))
    scores = [
        *rows("scratch", lambda n, d, c: curve(n) + 0.03 * (c % 4)),
        *rows("good", lambda n, d, c: curve(1.8 * n) + 0.03 * (c % 4) + noise[d, c]),
        *rows("same", lambda n, d, c: curve(n) + 0.03 * (c % 4) + noise[d, c]),
    ]
    found = {(row["arm"], row["labelled"]): row for row in worth(scores, COUNTS)}
    assert len(found) == 8
    good = found["good", 2]
    assert 3.4 < good["low"] < good["worth"] < good["high"] < 3.8
    assert found["same", 2]["low"] < 2 < found["same", 2]["high"]
    assert number_text(found["good", 8]["high"], COUNTS) == "more than 8"
    assert number_text(0.5, COUNTS) == "fewer than 1"
    assert worth(scores, COUNTS) == list(found.values())
    assert worth([row for row in scores if row["labelled"] == 2], [2]) == []
    other = [row | {"evaluation": "linear_first"} for row in scores]
    assert worth(other, COUNTS) == list(found.values())
    assert worth([*other[:5], *scores], COUNTS) == list(found.values())  # nnU-Net's fine-tuning comes first
    assert worth([row | {"evaluation": "linear"} for row in scores], COUNTS) == []
    summary = [
        {
            "evaluation": "finetune",
            "labelled": 1,
            "arm": arm,
            "difference": 0.1,
            "difference_low": 0,
            "difference_high": 0.2,
        }
        for arm in ("good", "same")
    ]
    results = {"labelled": COUNTS, "summary": summary, "worth": list(found.values()), "power": power_rows(scores)}
    results["files"] = {}
    said, unseen = conclusions(results)
    assert "pretraining with good and 1 labelled case is worth about as much as training from scratch with 1.8" in said
    assert "could have seen is 0.0" in said
    assert "paired t-test over 6 draws" in said
    assert unseen.startswith("On these data no difference was seen between pretraining with same and")
    assert "linear head" not in said
    for by_seed, end in (
        (
            {0: 0.1},
            "One encoder was pretrained, and the interval knows of no other: give several with --seeds.",
        ),
        ({0: 0.1, 1: -0.02}, "paired t-test over 6 draws). By seed of the encoder: +0.100, -0.020."),
        ({0: 0.1, 1: 0.02}, "paired t-test over 6 draws)."),
    ):
        of_seeds = results | {"power": [row | {"by_seed": by_seed} for row in results["power"]]}
        assert conclusions(of_seeds)[0].endswith(end)
        assert conclusions(of_seeds | {"files": {"good": {}}})[0].endswith(
            "over 6 draws)."
        )  # it is the only one there is
    head = [row | {"evaluation": "linear_first"} for row in summary]
    power = [row | {"evaluation": "linear_first"} for row in results["power"]]
    assert conclusions(results | {"summary": head, "power": power}) == [
        f"{before} Both have a fitted linear head. The{after}"
        for before, after in (s.split(" The") for s in (said, unseen))
    ]
    alone = conclusions(results | {"worth": [], "power": []})[0]
    assert "changes the Dice with 1 labelled case by +0.100" in alone
    assert alone.endswith("One draw cannot tell a difference from chance: give more with --draws.")


def test_speed_is_read_from_nnunets_log(tmp_path: Path) -> None:
    curves = {("scratch", 0): [0.1, 0.2, 0.3, 0.4], ("mim", 0): [0.3, 0.4, 0.5, 0.5], ("mim", 1): [0.1] * 4}
    curves["scratch", 1] = [0.0, 0.0, 0.1, 0.5]
    files = []
    for (arm, draw), values in curves.items():
        folder = tmp_path / f"{arm}{draw}"
        folder.mkdir()
        logging = {"ema_fg_dice": [np.float64(value) for value in values]}
        torch.save({"logging": logging, "network_weights": {"a": torch.zeros(3)}}, folder / "checkpoint_final.pth")
        about = {"evaluation": "finetune", "arm": arm, "labelled": 2, "seed": 0, "draw": draw}
        files.append((about, folder / "validation" / "summary.json"))
    gone = files[0][0] | {"draw": 9}
    read = read_curves(
        [*files, (files[0][0] | {"evaluation": "linear"}, files[0][1]), (gone, tmp_path / "x" / "y" / "z")]
    )
    assert len(read_curves([(about | {"evaluation": "linear_first"}, file) for about, file in files])) == 4
    assert {(row["arm"], row["draw"]): row["dice"] for row in read} == curves
    scratch, mim = speed_rows(read)
    assert (scratch["share"], scratch["reached"], scratch["draws"]) == (1.0, 2, 2)
    assert (mim["share"], mim["reached"]) == (0.5, 1)  # 0.36 after the second of four epochs; 0.45 never
    assert (mim["quarter"], mim["half"], mim["end"]) == pytest.approx((0.2, 0.25, 0.3))
    assert share_until([0.1, 0.2], 0.3) == float("inf")
    assert "share" not in speed_rows([row for row in read if row["arm"] == "mim"])[0]


def test_a_checkpoint_that_knows_test_cases_is_named() -> None:
    about = {"kind": "SSL stage", "epochs": 3, "dataset": "D", "labelled_cases_seen": ["a", "b"]}
    assert "learnt from the images of 1 test case.**" in remark("x", about, "D", ["b", "c"])
    assert "learnt" not in remark("x", about, "Other", ["b", "c"])
    assert "may know the test cases" in remark("x", about | {"labelled_cases_seen": None}, "D", ["b"])
    unknown = remark("x", about | {"dataset": None, "epochs": 0}, "D", ["b"])
    assert "an unknown data set, an unknown number of epochs" in unknown
