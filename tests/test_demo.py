"""The demo: what it says follows from the numbers, its configurations can be trained, and, slowly, all of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emim_nnunet.compare.report import summarise
from emim_nnunet.demo import ARM, BASE, GAPS, LABELLED, add_demo_configurations, dice_lines, missing_lines, run_demo
from emim_nnunet.settings.block import config_from_block
from emim_nnunet.settings.stages import FinetuneConfig
from emim_nnunet.training.stage import read_block
from tests.pipeline import PLANS


def results_of(scratch: list[float], pretrained: list[float]) -> dict[str, object]:
    """What a comparison with one number of labelled cases and these Dice per case leaves."""
    scores = [
        {"evaluation": "linear_first", "labelled": 4, "arm": arm, "draw": 0, "case": f"c{number}", "mean": dice}
        for arm, values in (("scratch", scratch), (ARM, pretrained))
        for number, dice in enumerate(values)
    ]
    return {"labelled": [4], "cases": {"test": len(scratch)}, "summary": summarise(scores)}


@pytest.mark.parametrize(
    ("pretrained", "word", "better_in"),
    [
        ([0.7, 0.8, 0.75, 0.7], "is better", 4),
        ([0.3, 0.4, 0.35, 0.3], "is worse", 0),
        ([0.5, 0.6, 0.45, 0.61], "and scratch are level", 1),
    ],
)
def test_the_verdict_follows_from_the_interval(pretrained: list[float], word: str, better_in: int) -> None:
    text = "\n".join(dice_lines(results_of([0.5, 0.6, 0.5, 0.6], pretrained)))
    assert f"With 4 labelled, pretrained {word}: Dice" in text
    assert f"better in {better_in} of 4 cases." in text
    assert "| scratch | 0.550 |" in text
    assert "over 4 held-out brains" in text


def test_missing_modalities_stand_side_by_side() -> None:
    rows = {"usual": [{"modalities": ["T1", "Flair"], "dice": 0.5}], "dropout": [{"modalities": ["T1"], "dice": 0.25}]}
    lines = missing_lines(rows, 8)
    assert "| T1+Flair | 0.500 | 0.250 |" in lines
    assert "over 8 held-out brains" in lines[-1]


def test_both_configurations_can_be_read_and_differ_in_dropout_only(nnunet: Path, tmp_path: Path) -> None:
    file = next((nnunet / "nnUNet_preprocessed").glob(f"*/{PLANS}.json"))
    copy = tmp_path / file.name
    copy.write_text(file.read_text())
    add_demo_configurations(copy, seed=3)
    plans = json.loads(copy.read_text())
    blocks = [read_block(plans, name) for name in (BASE, GAPS)]
    configs = [config_from_block(FinetuneConfig, block) for block in blocks]
    assert [config.finetune_p_drop_modality for config in configs] == [0, 0.4]
    assert [block["seed"] for block in blocks] == [config.finetune_seed for config in configs] == [3, 3]
    assert configs[0].finetune_ssl_trainer == "nnUNetTrainerMoCoZCAPretrain"


@pytest.mark.slow
def test_the_whole_demo(tmp_path: Path) -> None:
    report = run_demo(tmp_path / "demo", seed=1)
    results = json.loads((tmp_path / "demo" / "comparison" / "results.json").read_text())
    most = [row for row in results["scores"] if row["labelled"] == LABELLED[-1]]
    for arm in ("scratch", ARM, "emim"):
        cases = [row["dice"] for row in most if row["arm"] == arm]
        for region in cases[0]:
            defined = [case[region] for case in cases if case[region] == case[region]]
            assert sum(defined) / len(defined) > 0.1, (arm, region)
    page = (report / "report.html").read_text("utf-8")
    assert "Dice by modalities" in page
    assert "Label efficiency" in page
    assert len(page) < 10e6
