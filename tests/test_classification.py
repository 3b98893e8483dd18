"""emim_classify: labels, folds, features of whole cases, scores, and the three commands on phantoms."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score
from torch import Tensor, nn

from emim_nnunet.checkpoints.io import load_checkpoint
from emim_nnunet.classification.evaluate import bootstrap, evaluate, scores, write_predictions
from emim_nnunet.classification.finetune import UNFINISHED, UNFINISHED_FORMAT, class_weights, cross_entropy
from emim_nnunet.classification.model import (
    CaseClassifier,
    _starts,
    case_vector,
    load_classifier,
    probabilities,
    tiles,
)
from emim_nnunet.classification.settings import Settings
from emim_nnunet.classification.table import check_cases, read_table, split
from emim_nnunet.classification.train import fit_heads
from emim_nnunet.cli import classify
from emim_nnunet.cli._run import run
from emim_nnunet.datasets.dataset import PreprocessedDataset
from emim_nnunet.errors import EXIT_INTERRUPTED, UserError
from tests.pipeline import DATASET, PLANS, PRETRAIN, trained
from tests.toy import toy_unet

CASES = [f"BraTS-GLI-{number:05d}-000" for number in range(1, 8)]  # 1 to 5 with segmentation
GRADES = ["high", "low", "high", "low", "high", "low", "high"]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def labels_file(folder: Path, **columns: list[str]) -> Path:
    columns = {"case": CASES, "grade": GRADES} | columns
    rows = [",".join(columns), *(",".join(row) for row in zip(*columns.values(), strict=True))]
    return write(folder / "labels.csv", "\n".join(rows) + "\n")


# ---------------------------------------------------------------------------------------------------------- labels and folds


def test_a_table_has_classes_patients_and_gaps(tmp_path: Path) -> None:
    text = "\ufeffcase;patient; grade ;idh\na;p1;high;0\nb;p1;low;\nc;;high;1\n"
    table = read_table(write(tmp_path / "t.csv", text))
    assert table.targets == ["grade", "idh"]
    assert table.classes == {"grade": ["high", "low"], "idh": ["0", "1"]}
    assert [table.numbers(case) for case in "abc"] == [[0, 0], [1, -1], [0, 1]]
    assert table.patients == {"a": "p1", "b": "p1", "c": "c"}
    assert read_table(write(tmp_path / "t.csv", text), ["idh"]).targets == ["idh"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("case,grade\n", "is empty"),
        ("id,grade\na,1\n", "has no column 'case'; it has id, grade"),
        ("case\na\n", "has no column of classes"),
        ("case,grade\na,1\nb,1\n", "column 'grade' has 1 class"),
        ("case,grade\na,1\na,2\n", "line 3: case a is there twice"),
        ("case,grade\na,1\n,2\n", "line 3: the case has no name"),
        ("case,grade\na,1,3\nb,2\n", "line 2: expected 2 cells"),
        ("case,grade\na\nb,2\n", "line 2: expected 2 cells"),
        ("case,grade,grade\na,1,1\nb,2,2\n", "column 'grade' is there twice"),
        ("case,grade, case\na,1,1\nb,2,2\n", "column 'case' is there twice"),
        (f"case,grade\na,1\nb,{'x' * 140_000}\n", "line 3: field larger than field limit"),
    ],
)
def test_unreadable_tables_are_refused_by_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_table(write(tmp_path / "t.csv", text))


def test_files_that_are_no_text_and_unknown_columns_and_cases_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match=r"t.csv cannot be read as a CSV file in UTF-8"):
        read_table(tmp_path / "t.csv")
    file = labels_file(tmp_path)
    with pytest.raises(UserError, match="has no column stage; it has case, grade"):
        read_table(file, ["stage"])
    with pytest.raises(UserError, match=r"not preprocessed in Dataset009: BraTS-GLI-00007-000"):
        check_cases(read_table(file), CASES[:6], "Dataset009")


def test_no_patient_is_in_two_parts(tmp_path: Path) -> None:
    cases = [f"c{number:02d}" for number in range(20)]
    rows = [f"{case},p{number // 2},{'xyyx'[number % 4]}" for number, case in enumerate(cases)]  # two cases a patient
    table = read_table(write(tmp_path / "t.csv", "\n".join(["case,patient,kind", *rows])))
    folds = [{"train": cases[2:10], "val": cases[:2]}, {"train": cases[:8], "val": [cases[9]]}]  # c10 to c19: not split
    write(tmp_path / "splits_final.json", json.dumps(folds))
    seen = []
    for fold in (0, 1):
        training, validation = split(table, tmp_path, fold)
        assert not {table.patients[c] for c in training} & {table.patients[c] for c in validation}
        assert set(folds[fold]["val"]) <= set(validation)
        seen += [c for c in validation if c >= "c10"]
    assert sorted(seen) == cases[10:]  # every case that nnU-Net does not split is held out once
    assert "c08" not in split(table, tmp_path, 1)[0]  # the other case of a held-out patient is not learnt from
    assert split(table, tmp_path, "all") == (cases, [])
    with pytest.raises(UserError, match=r"-f 2: the split has 2 folds \(0 to 1\)"):
        split(table, tmp_path, 2)


def test_folds_of_a_single_class_are_refused(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "t.csv", "case,kind\na,x\nb,x\nc,y\nd,y\n"))
    splits = write(tmp_path / "splits_final.json", json.dumps([{"train": ["a", "c", "d"], "val": ["b"]}]))
    with pytest.raises(UserError, match=r"validation set of fold 0 \(1 cases\) has only the class x of 'kind'"):
        split(table, tmp_path, 0)
    splits.write_text(json.dumps([{"train": ["a", "b"], "val": ["c", "d"]}]))
    with pytest.raises(UserError, match=r"training set of fold 0 \(2 cases\) has only the class x"):
        split(table, tmp_path, 0)


# ---------------------------------------------------------------------------------------------------------- model


def test_heads_equal_scikit_learns_logistic_regression() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 28)).astype(np.float32)
    numbers = np.stack([rng.integers(2, size=40), rng.integers(3, size=40)], 1)
    numbers[:3, 1] = -1
    model = CaseClassifier(toy_unet().encoder, [2, 4])  # no training case has the class 3
    fit_heads(model, torch.from_numpy(vectors), numbers, Settings())
    rows = (vectors - vectors.mean(0)) / vectors.std(0)
    ours = probabilities(model, torch.from_numpy(vectors))
    for column, part in enumerate(ours):
        known = numbers[:, column] >= 0
        reference = LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000)
        reference.fit(rows[known], numbers[known, column])
        assert np.allclose(part[:, : 2 + column], reference.predict_proba(rows), atol=1e-3)
    assert ours[1][:, 3].max() < 1e-6


def test_a_single_class_cannot_be_learnt() -> None:
    model = CaseClassifier(toy_unet().encoder, [2])
    with pytest.raises(UserError, match="a single class"):
        fit_heads(model, torch.zeros(4, 28), np.zeros((4, 1), dtype=int), Settings())


def test_class_weights_make_classes_count_alike() -> None:
    column = np.array([0, 0, 0, 1, -1])
    weights = class_weights(column, 3, Settings())
    assert weights.tolist() == pytest.approx([4 / 6, 4 / 2, 1.0])
    assert class_weights(column, 3, Settings(class_weights=False)).tolist() == [1.0] * 3
    logits = torch.zeros(5, 3)
    loss = cross_entropy(logits, torch.from_numpy(column), weights)
    assert loss.item() == pytest.approx(np.log(3))  # weights are 1 on average
    assert cross_entropy(logits[:1], torch.tensor([-1]), weights).item() == 0.0


@pytest.mark.parametrize(("length", "patch"), [(30, 16), (16, 16), (10, 16), (33, 16), (5, 1)])
def test_tiles_cover_an_axis(length: int, patch: int) -> None:
    covered = {voxel for start in _starts(length, patch) for voxel in range(start, start + patch)}
    assert set(range(length)) <= covered
    assert len(_starts(length, patch)) == -(-length // patch)


@pytest.mark.parametrize("configuration", ["toy", "toy_2d"])
def test_a_case_vector_is_the_average_over_the_body(configuration: str, nnunet: Path) -> None:
    data = PreprocessedDataset.find(1, PLANS, configuration)
    assert sorted(data.cases) == CASES
    case = data.cases[CASES[0]]
    num_axes = 2 if configuration == "toy_2d" else 3
    encoder = toy_unet(num_axes=num_axes).encoder
    model = CaseClassifier(encoder, [2]).eval()
    vector = case_vector(model, data, case, torch.device("cpu"))
    totals = counts = 0.0
    number = 0
    for image, foreground in tiles(data, case):
        assert image.shape[2:] == (16,) * num_axes
        full = encoder(image)[0]
        totals = totals + (full * foreground).flatten(2).sum(2)
        counts = counts + foreground.sum()
        number += 1
    assert number > 1
    assert torch.allclose(vector[:4], (totals / counts)[0].detach(), atol=1e-4)
    assert model(image, foreground)[0].shape == (1, 2)


# ---------------------------------------------------------------------------------------------------------- scores


def test_scores_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    for classes in (2, 3):
        true, predicted = rng.integers(classes, size=50), rng.dirichlet(np.ones(classes), size=50)
        area = roc_auc_score(true, predicted[:, 1] if classes == 2 else predicted, multi_class="ovr")
        chosen = predicted.argmax(1)
        expected = [area, balanced_accuracy_score(true, chosen), f1_score(true, chosen, average="macro")]
        assert list(scores(true, predicted).values()) == pytest.approx(expected)


def test_intervals_come_from_patients_and_are_wider_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emim_nnunet.classification.evaluate.RESAMPLES", 150)
    rng = np.random.default_rng(0)
    true = np.repeat(rng.integers(2, size=30), 4)  # four cases a patient, which agree
    good = np.repeat(rng.random(30) < 0.8, 4)
    shown = np.where(good, true, 1 - true)
    predicted = np.stack([1 - shown, shown], 1) * 0.8 + 0.1
    by_case = bootstrap(true, predicted, [str(i) for i in range(120)])
    by_patient = bootstrap(true, predicted, [str(i // 4) for i in range(120)])
    value = scores(true, predicted)["balanced_accuracy"]
    for low, high in (by_case["balanced_accuracy"], by_patient["balanced_accuracy"]):
        assert low < value < high
    widths = [high - low for low, high in (by_case["balanced_accuracy"], by_patient["balanced_accuracy"])]
    assert widths[1] > 1.5 * widths[0]
    assert by_patient == bootstrap(true, predicted, [str(i // 4) for i in range(120)])


def test_evaluate_scores_several_folds_together_and_refuses_nonsense(tmp_path: Path, capsys: Any) -> None:
    labels = labels_file(tmp_path, patient=[f"p{i // 2}" for i in range(7)])
    classes = {"grade": ["high", "low"]}
    sure = np.array([[0.9, 0.1] if grade == "high" else [0.2, 0.8] for grade in GRADES])
    sure[1] = [0.7, 0.3]
    for name, part in (("a", slice(0, 4)), ("b", slice(4, 7))):
        write_predictions(tmp_path / f"{name}.csv", CASES[part], classes, {"grade": sure[part]})
    files = [str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]
    options = ["--labels", str(labels), "-o", str(tmp_path / "out")]
    assert run(classify.main, ["evaluate", *files, *options]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())["grade"]
    assert metrics["num_cases"] == 7
    assert metrics["num_patients"] == 4
    assert metrics["confusion"] == [[4, 0], [1, 2]]
    assert metrics["scores"]["auroc"]["value"] == 1.0
    assert metrics["scores"]["balanced_accuracy"]["value"] == pytest.approx((1 + 2 / 3) / 2)
    assert (tmp_path / "out" / "confusion_grade.png").stat().st_size > 5000
    assert metrics["scores"]["auroc"] == {"value": 1.0, "low": None, "high": None}
    assert metrics["remark"].startswith("too few patients for an interval")
    page = (tmp_path / "out" / "metrics.md").read_text()
    assert "| grade | 1.000 (too few) | " in page
    assert "grade (4): too few patients for an interval, at least 10 are needed" in page
    assert page in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "out" / "per_case.csv").open()))
    assert [row["right"] for row in rows] == ["True", "False", *["True"] * 5]
    assert run(classify.main, ["evaluate", files[0], files[0], *options]) == 2
    assert "predicted twice" in capsys.readouterr().err
    write_predictions(tmp_path / "c.csv", CASES[:1], classes, {"grade": sure[:1]})
    assert run(classify.main, ["evaluate", str(tmp_path / "c.csv"), *options]) == 2
    assert "all 1 predicted cases are of the class high" in capsys.readouterr().err
    write_predictions(tmp_path / "d.csv", ["unheard"], classes, {"grade": sure[:1]})
    assert run(classify.main, ["evaluate", str(tmp_path / "d.csv"), *options]) == 2
    assert "has no row for case unheard" in capsys.readouterr().err
    assert run(classify.main, ["evaluate", str(labels), *options]) == 2
    assert "has no column 'p(grade=high)'" in capsys.readouterr().err


def test_ten_patients_are_enough_for_an_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emim_nnunet.classification.evaluate.RESAMPLES", 100)
    cases = [f"c{number}" for number in range(10)]
    rows = [f"{case},{'ab'[number % 2]}" for number, case in enumerate(cases)]
    table = read_table(write(tmp_path / "t.csv", "\n".join(["case,kind", *rows])))
    shares = np.array([[0.8, 0.2], [0.3, 0.7]] * 5)
    write_predictions(tmp_path / "p.csv", cases, table.classes, {"kind": shares})
    lines = evaluate(table, [tmp_path / "p.csv"], tmp_path / "out")
    assert "| kind | 1.000 (1.000 to 1.000) | " in lines[2]
    assert "too few" not in "".join(lines)


# ---------------------------------------------------------------------------------------------------------- the commands


def test_cases_left_out_by_patient_are_counted(nnunet: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr("emim_nnunet.classification.table.split", lambda *_: (CASES[:3], CASES[3:5]))
    command = ["train", "1", "toy", "0", str(labels_file(tmp_path)), "--scratch", "--frozen", "-device", "cpu"]
    assert run(classify.main, [*command, "-o", str(tmp_path / "out")]) == 0
    assert "2 more cases are of patients of the validation set: they are left out" in capsys.readouterr().out


def test_a_classifier_of_a_primus(nnunet: Path, tmp_path: Path) -> None:
    checkpoint = trained(PRETRAIN, "toy_primus")
    labels = labels_file(tmp_path, grade=["low", "high"] * 3 + ["low"])
    common = ["1", "toy_primus", "all", str(labels), "--checkpoint", str(checkpoint), "-device", "cpu"]
    assert run(classify.main, ["train", *common, "-o", str(tmp_path / "out"), "--steps", "2"]) == 0
    model, table = str(tmp_path / "out" / "classifier.pth"), tmp_path / "out.csv"
    assert run(classify.main, ["predict", model, "1", "-o", str(table), "-device", "cpu"]) == 0
    assert len(table.read_text().splitlines()) == 8


def test_train_predict_evaluate_from_a_pretrained_encoder(nnunet: Path, tmp_path: Path, capsys: Any) -> None:
    checkpoint = trained(PRETRAIN, fold="all") / "checkpoint_final.pth"
    # fold 0 of the labelled cases and of the others; two of the classes must be on both sides
    splits = json.loads((nnunet / "nnUNet_preprocessed" / DATASET / "splits_final.json").read_text())
    validation = splits[0]["val"][0]
    grades = ["low" if case in (validation, CASES[0], CASES[5]) else "high" for case in CASES]
    grades[CASES.index(validation)] = "low"
    labels = labels_file(tmp_path, grade=grades, side=["left", "right", "left", "right", "left", "", "right"])
    common = ["1", "toy", "all", str(labels), "--checkpoint", str(checkpoint.parent), "-device", "cpu"]
    for name, options in (("frozen", ["--frozen"]), ("tuned", ["--steps", "3"])):
        assert run(classify.main, ["train", *common, "-o", str(tmp_path / name), *options]) == 0
        model = tmp_path / name / "classifier.pth"
        assert (
            run(classify.main, ["predict", str(model), "1", "-o", str(tmp_path / f"{name}.csv"), "-device", "cpu"]) == 0
        )
        rows = list(csv.DictReader((tmp_path / f"{name}.csv").open()))
        assert [row["case"] for row in rows] == CASES
        shares = [float(rows[0][f"p(side={side})"]) for side in ("left", "right")]
        assert sum(shares) == pytest.approx(1.0, abs=1e-5)
        options = ["--labels", str(labels), "-o", str(tmp_path / f"{name}_scores")]
        assert run(classify.main, ["evaluate", str(tmp_path / f"{name}.csv"), *options]) == 0
        metrics = json.loads((tmp_path / f"{name}_scores" / "metrics.json").read_text())
        assert metrics["side"]["num_cases"] == 6
    weights = {}
    for name in ("frozen", "tuned"):
        model, about = load_classifier(tmp_path / name / "classifier.pth")
        weights[name] = next(model.encoder.parameters())
        assert about["training_cases"] == CASES
    stored = torch.load(checkpoint, weights_only=True)["network_weights"]
    first = next(key for key in stored if key.startswith("encoder."))
    assert torch.equal(weights["frozen"], stored[first])
    assert not torch.equal(weights["tuned"], stored[first])
    assert run(classify.main, ["train", *common, "-o", str(tmp_path / "frozen"), "--frozen"]) == 2
    assert "exists: choose another folder" in capsys.readouterr().err


def test_an_interrupted_training_continues_bit_for_bit(
    nnunet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import emim_nnunet.classification.finetune as module

    labels = labels_file(tmp_path)
    command = ["train", "1", "toy", "all", str(labels), "--scratch", "-device", "cpu", "--steps", "4"]
    assert run(classify.main, [*command, "-o", str(tmp_path / "whole")]) == 0
    whole = load_classifier(tmp_path / "whole" / "classifier.pth")[0].state_dict()
    original, calls = nn.utils.clip_grad_norm_, iter(range(100))

    def interrupted(*args: Any) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return original(*args)

    clock = iter(range(0, 10**6, 10**4))
    monkeypatch.setattr(module, "monotonic", lambda: next(clock))  # a state after every step
    monkeypatch.setattr(module.nn.utils, "clip_grad_norm_", interrupted)
    assert run(classify.main, [*command, "-o", str(tmp_path / "parts")]) == 130
    assert run(classify.main, [*command, "-o", str(tmp_path / "parts")]) == 2
    assert "continue it with --c" in capsys.readouterr().err
    other = [*command, "--seed", "1", "--c", "-o", str(tmp_path / "parts")]
    assert run(classify.main, other) == 2
    assert "another value of settings" in capsys.readouterr().err
    assert run(classify.main, [*command, "--c", "-o", str(tmp_path / "parts")]) == 0
    parts = load_classifier(tmp_path / "parts" / "classifier.pth")[0].state_dict()
    assert all(torch.equal(parts[key], value) for key, value in whole.items())
    assert not (tmp_path / "parts" / "unfinished.pth").exists()


def test_a_signal_ends_a_training_after_its_step_and_it_continues(
    nnunet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    command = ["train", "1", "toy", "all", str(labels_file(tmp_path)), "--scratch", "-device", "cpu", "--steps", "4"]
    assert run(classify.main, [*command, "-o", str(tmp_path / "whole")]) == 0
    whole = load_classifier(tmp_path / "whole" / "classifier.pth")[0].state_dict()
    original, calls = nn.utils.clip_grad_norm_, iter(range(100))

    def signalled(*args: Any) -> Any:
        if next(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(nn.utils, "clip_grad_norm_", signalled)
        with pytest.raises(SystemExit) as ended:
            run(classify.main, [*command, "-o", str(tmp_path / "parts")])
    assert ended.value.code == EXIT_INTERRUPTED
    assert load_checkpoint(tmp_path / "parts" / UNFINISHED, formats=(UNFINISHED_FORMAT,))["step"] == 2
    assert run(classify.main, [*command, "--c", "-o", str(tmp_path / "parts")]) == 0
    parts = load_classifier(tmp_path / "parts" / "classifier.pth")[0].state_dict()
    assert all(torch.equal(parts[key], value) for key, value in whole.items())


def test_steps_that_are_not_finite_change_nothing_and_too_many_end_the_training(
    nnunet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    command = ["train", "1", "toy", "all", str(labels_file(tmp_path)), "--scratch", "-device", "cpu", "--steps", "8"]
    calls = iter(range(100))

    def once(*args: Any) -> Tensor:
        return cross_entropy(*args) * (float("nan") if next(calls) == 1 else 1.0)

    monkeypatch.setattr("emim_nnunet.classification.finetune.cross_entropy", once)
    assert run(classify.main, [*command, "-o", str(tmp_path / "once")]) == 0
    weights = load_classifier(tmp_path / "once" / "classifier.pth")[0].state_dict()
    assert all(value.isfinite().all() for value in weights.values())
    assert [file.name for file in (tmp_path / "once" / "non_finite").iterdir()] == ["epoch_0000_step_0001_rank_0.pth"]
    monkeypatch.setattr(
        "emim_nnunet.classification.finetune.cross_entropy", lambda *a: cross_entropy(*a) * float("nan")
    )
    assert run(classify.main, [*command, "-o", str(tmp_path / "always")]) == 2
    assert "loss or gradient not finite in 6 of 6 steps, more than 5" in capsys.readouterr().err.splitlines()[-1]


def test_a_dead_worker_ends_in_one_line(
    nnunet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    original, before = nn.utils.clip_grad_norm_, set(multiprocessing.active_children())

    def killing(*args: Any) -> Any:
        for worker in set(multiprocessing.active_children()) - before:
            worker.kill()
        return original(*args)

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", killing)
    command = ["train", "1", "toy", "all", str(labels_file(tmp_path)), "--scratch", "-device", "cpu", "--steps", "50"]
    assert run(classify.main, [*command, "-o", str(tmp_path / "out")]) == 2
    assert "error: a data-loading worker died (Killed)" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["1", "toy", "x", "LABELS", "--scratch"], "fold x: must be a number or 'all'"),
        (["1", "nothing", "0", "LABELS", "--scratch"], "have no configuration 'nothing'"),
        (["1", "toy", "0", "missing.csv", "--scratch"], "missing.csv cannot be read"),
        (
            ["1", "toy", "all", "LABELS", "--checkpoint", "missing.pth"],
            "CHECKPOINT missing.pth: neither a file nor a folder",
        ),
    ],
)
def test_mistakes_end_in_one_line_and_leave_nothing(
    arguments: list[str], message: str, nnunet: Path, tmp_path: Path, capsys: Any
) -> None:
    labels = str(labels_file(tmp_path))
    given = [labels if a == "LABELS" else a for a in arguments]
    assert run(classify.main, ["train", *given, "-o", str(tmp_path / "out"), "-device", "cpu"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
