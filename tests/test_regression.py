"""Numbers of whole cases in emim_classify: the table, the fit, the scores beside the mean predictor, and the commands."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeCV
from sklearn.metrics import mean_absolute_error, r2_score
from torch import nn

from emim_nnunet.classification.model import CaseClassifier, load_classifier, probabilities
from emim_nnunet.classification.regression import (
    PENALTIES,
    calibration,
    regression_scores,
    squared_error,
    standardised,
    to_units,
)
from emim_nnunet.classification.settings import Settings
from emim_nnunet.classification.table import read_table
from emim_nnunet.classification.train import fit_heads
from emim_nnunet.cli import classify
from emim_nnunet.cli._run import run
from emim_nnunet.errors import UserError
from tests.pipeline import PRETRAIN, trained
from tests.toy import toy_unet

CASES = [f"BraTS-GLI-{number:05d}-000" for number in range(1, 8)]
AGES = ["61.5", "48", "", "70", "55", "66.5", "39"]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def ages(folder: Path) -> Path:
    rows = [f"{case},{age},{'ab'[number % 2]}" for number, (case, age) in enumerate(zip(CASES, AGES, strict=True))]
    return write(folder / "ages.csv", "\n".join(["case,age,side", *rows]) + "\n")


def test_a_table_of_numbers_has_gaps_and_means(tmp_path: Path) -> None:
    table = read_table(ages(tmp_path), None, None, ["age"])
    assert table.targets == ["age"]  # other columns are no classes unless they are asked for
    assert table.numbers(CASES[0]) == [61.5]
    assert np.isnan(table.numbers(CASES[2])).all()
    assert table.means(CASES[:4]) == {"age": pytest.approx((61.5 + 48 + 70) / 3)}
    both = read_table(tmp_path / "ages.csv", ["side"], None, ["age"])
    assert (both.targets, both.numeric) == (["side", "age"], [1])
    assert both.numbers(CASES[1]) == [1, 48.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,age\na,old\nb,3\n", r"line 2: 'old' in column 'age' is no number, such as 12.5"),
        ("case;age\na;12,5\nb;3\n", r"line 2: '12,5' in column 'age' is no number"),
        ("case,age\na,1\nb,inf\n", r"line 3: 'inf' in column 'age' is no number"),
        ("case,age\na,1\nb,nan\n", r"line 3: 'nan' in column 'age' is no number"),
        ("case,age\na,1\nb,1.0\n", r"column 'age' has 2 number"),
        ("case,size\na,1\nb,2\n", r"has no column age; it has case, size"),
    ],
)
def test_what_is_no_number_is_refused_by_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_table(write(tmp_path / "t.csv", text), None, None, ["age"])


def test_a_head_equals_scikit_learns_ridge_regression_in_units() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 28)).astype(np.float32)
    true = 50 + 10 * vectors[:, 3] + rng.normal(size=40)
    numbers = np.stack([rng.integers(2, size=40), true], 1)
    numbers[:3, 1] = np.nan
    model = CaseClassifier(toy_unet().encoder, [2, 1])
    scaled, scales = standardised(numbers, [1])
    fit_heads(model, torch.from_numpy(vectors), scaled, Settings())
    to_units(model.heads, scales)
    rows = ((vectors - vectors.mean(0)) / vectors.std(0)).astype(np.float64)
    reference = RidgeCV(PENALTIES).fit(rows[3:], scaled[3:, 1]).predict(rows)
    found = probabilities(model, torch.from_numpy(vectors))[1]
    assert found.shape == (40, 1)
    mean, std = scales[1]
    assert np.allclose(found[:, 0], mean + std * reference, atol=1e-3)
    with pytest.raises(UserError, match="a single number"):
        standardised(np.full((4, 1), 3.0), [0])


def test_the_loss_counts_what_is_known() -> None:
    output = torch.tensor([[1.0], [2.0], [5.0]], requires_grad=True)
    loss = squared_error(output, torch.tensor([0.0, float("nan"), 3.0]))
    assert loss.item() == pytest.approx((1 + 4) / 2)
    loss.backward()
    assert output.grad is not None
    assert output.grad.flatten().tolist() == pytest.approx([1.0, 0.0, 2.0])
    assert squared_error(output, torch.full((3,), float("nan"))).item() == 0.0


def test_scores_are_scikit_learns_and_stand_beside_the_mean() -> None:
    rng = np.random.default_rng(0)
    true, predicted = rng.normal(60, 10, 50), rng.normal(60, 10, (50, 2))
    predicted[:, 1] = 58.0
    found = regression_scores(true, predicted)
    assert found["mae"] == pytest.approx(mean_absolute_error(true, predicted[:, 0]))
    assert found["r2"] == pytest.approx(r2_score(true, predicted[:, 0]))
    assert found["mae_of_mean"] == pytest.approx(np.abs(true - 58).mean())
    assert found["r2_of_mean"] == pytest.approx(r2_score(true, predicted[:, 1]))
    assert found["r2_of_mean"] < 0
    assert found["gain"] == pytest.approx(found["mae_of_mean"] - found["mae"])
    assert calibration(3 + 0.5 * predicted[:, 0], predicted[:, 0]) == pytest.approx({"slope": 0.5, "intercept": 3})
    assert np.isnan(calibration(true, predicted[:, 1])["slope"])


def test_train_predict_and_evaluate_numbers_beside_classes(nnunet: Path, tmp_path: Path, capsys: Any) -> None:
    checkpoint, labels = trained(PRETRAIN, fold="all"), ages(tmp_path)
    columns = ["--number", "age", "--column", "side"]
    common = ["train", "1", "toy", "all", str(labels), "--checkpoint", str(checkpoint), "-device", "cpu", *columns]
    for name, options in (("frozen", ["--frozen"]), ("tuned", ["--steps", "3"])):
        assert run(classify.main, [*common, *options, "-o", str(tmp_path / name)]) == 0
        model, out = str(tmp_path / name / "classifier.pth"), tmp_path / f"{name}.csv"
        assert run(classify.main, ["predict", model, "1", "-o", str(out), "-device", "cpu"]) == 0
        rows = list(csv.DictReader(out.open()))
        assert list(rows[0]) == ["case", "side", "p(side=a)", "p(side=b)", "age", "mean(age)"]
        mean = np.mean([float(age) for age in AGES if age])
        assert {row["mean(age)"] for row in rows} == {f"{mean:.6g}"}
        assert all(0 < float(row["age"]) < 120 for row in rows)  # in years, not standardised
    scores = tmp_path / "scores"
    assert run(classify.main, ["evaluate", str(out), "--labels", str(labels), "-o", str(scores), *columns]) == 0
    metrics = json.loads((scores / "metrics.json").read_text())
    assert metrics["age"]["num_cases"] == 6  # one is unknown
    assert metrics["age"]["scores"]["r2_of_mean"]["value"] == pytest.approx(0, abs=1e-4)
    assert metrics["age"]["remark"].startswith("too few patients")
    assert {"confusion_side.png", "calibration_age.png"} <= {file.name for file in scores.iterdir()}
    page = (scores / "metrics.md").read_text()
    assert "| target | MAE (95 %) | MAE of the mean | gain (95 %) | R2 (95 %) |" in page
    assert "side (7), age (6): too few patients" in page
    cells = {row["target"]: row for row in csv.DictReader((scores / "per_case.csv").open()) if row["case"] == CASES[0]}
    assert float(cells["age"]["error"]) == pytest.approx(float(rows[0]["age"]) - 61.5, abs=1e-3)
    assert (
        run(classify.main, ["evaluate", str(out), "--labels", str(labels), "-o", str(scores), "--number", "side"]) == 2
    )
    assert "'a' in column 'side' is no number" in capsys.readouterr().err
    assert run(classify.main, [*common, "--number", "side", "-o", str(tmp_path / "twice")]) == 2
    assert not (tmp_path / "twice").exists()


def test_intervals_of_numbers_are_over_patients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emim_nnunet.classification.evaluate.RESAMPLES", 100)
    from emim_nnunet.classification.evaluate import evaluate, write_predictions

    rng = np.random.default_rng(0)
    true = rng.normal(60, 10, 12)
    cases = [f"c{number:02d}" for number in range(12)]
    rows = [f"{case},{value}" for case, value in zip(cases, true, strict=True)]
    table = read_table(write(tmp_path / "t.csv", "\n".join(["case,age", *rows])), None, None, ["age"])
    write_predictions(tmp_path / "p.csv", cases, table.classes, {"age": true[:, None] + 1}, {"age": 60.0})
    lines = evaluate(table, [tmp_path / "p.csv"], tmp_path / "out")
    score = json.loads((tmp_path / "out" / "metrics.json").read_text())["age"]["scores"]
    assert score["mae"]["value"] == pytest.approx(1, abs=1e-3)
    assert score["mae"]["low"] == pytest.approx(1, abs=1e-3)  # the error of every case is 1
    assert 0 < score["gain"]["low"] < score["gain"]["value"] < score["gain"]["high"]
    assert "too few" not in "".join(lines)


def test_a_classifier_of_an_earlier_version_still_loads(nnunet: Path, tmp_path: Path) -> None:
    """It names no means, and all its targets have classes."""
    labels = ages(tmp_path)
    command = ["train", "1", "toy", "all", str(labels), "--column", "side", "--scratch", "--frozen", "-device", "cpu"]
    assert run(classify.main, [*command, "-o", str(tmp_path / "out")]) == 0
    model, about = load_classifier(tmp_path / "out" / "classifier.pth")
    assert "means" not in about
    head = model.heads[0]
    assert isinstance(head, nn.Linear)
    assert head.out_features == 2
