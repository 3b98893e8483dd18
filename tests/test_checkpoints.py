"""Writing that never leaves half a file, reading that never runs code."""

from __future__ import annotations

import os
import pickle
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from emim_nnunet.checkpoints.io import (
    EXPORT_FORMAT,
    FAULT_FORMAT,
    FORMAT_VERSION,
    SSL_FORMAT,
    load_checkpoint,
    save_checkpoint,
)
from emim_nnunet.classification.finetune import UNFINISHED_FORMAT
from emim_nnunet.classification.model import CLASSIFIER_FORMAT
from emim_nnunet.datasets.splits import (
    alike,
    check_splits,
    ensure_splits,
    read_patients,
    read_patients_csv,
    take_over_splits,
)
from emim_nnunet.errors import UserError
from emim_nnunet.storage.files import atomic_write

GOOD = {"format": FAULT_FORMAT, "format_version": FORMAT_VERSION}  # what it must hold is not checked
read = partial(load_checkpoint, formats=(FAULT_FORMAT,))


def test_round_trip_reads_with_weights_only(tmp_path: Path) -> None:
    content = GOOD | {
        "weights": {"a": torch.arange(3.0, requires_grad=True), "b": [torch.ones(2, dtype=torch.bool), None]},
        "epoch": np.int64(4),
        "loss": np.float32(0.5),
        "names": ("T1", "T2"),
    }
    save_checkpoint(content, tmp_path / "c.pth")
    loaded = torch.load(tmp_path / "c.pth", weights_only=True)
    assert torch.equal(loaded["weights"]["a"], torch.arange(3.0))
    assert (loaded["epoch"], loaded["loss"], loaded["names"]) == (4, 0.5, ("T1", "T2"))
    assert os.listdir(tmp_path) == ["c.pth"]
    assert read(tmp_path / "c.pth")["epoch"] == 4


def test_a_tensor_under_several_names_is_written_once(tmp_path: Path) -> None:
    weight = torch.randn(100, 1000)
    save_checkpoint(GOOD | {"weights": {"a": weight, "b": weight.detach(), "c": weight.clone()}}, tmp_path / "c.pth")
    assert 0.8e6 < (tmp_path / "c.pth").stat().st_size < 0.81e6  # a = b, and c
    loaded = read(tmp_path / "c.pth")["weights"]
    assert all(torch.equal(value, weight) for value in loaded.values())


def test_what_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"checkpoint\['a'\]\[1\] is a Path|PosixPath"):
        save_checkpoint({"a": [1, tmp_path]}, tmp_path / "c.pth")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_keeps_the_last_good_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "c.pth"
    save_checkpoint(GOOD | {"epoch": 1}, path)

    def fail(file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise error

    with pytest.raises(type(error)):
        atomic_write(path, fail)
    assert read(path)["epoch"] == 1
    assert os.listdir(tmp_path) == ["c.pth"]


def test_a_kill_before_the_rename_keeps_the_last_good_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.pth"
    save_checkpoint(GOOD | {"epoch": 1}, path)
    process = os.fork()
    if process == 0:
        os.replace = lambda *args: os._exit(9)  # dies where the rename would be
        save_checkpoint(GOOD | {"epoch": 2}, path)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
    assert read(path)["epoch"] == 1


class Malicious:
    """Its unpickling creates a file."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.victim),))


def test_a_malicious_checkpoint_is_refused_and_does_not_run(tmp_path: Path) -> None:
    torch.save(GOOD | {"x": Malicious(tmp_path / "victim")}, tmp_path / "evil.pth")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Malicious(tmp_path / "victim")))
    for name in ("evil.pth", "evil.pkl"):
        with pytest.raises(UserError, match=name):
            read(tmp_path / name)
    assert not (tmp_path / "victim").exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert (tmp_path / "victim").exists()  # it would have run


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    save_checkpoint(GOOD, tmp_path / "good.pth")
    content = (tmp_path / "good.pth").read_bytes()
    (tmp_path / "truncated.pth").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty.pth").touch()
    torch.save({"network_weights": {}, "best": np.float64(1)}, tmp_path / "stock.pth")
    torch.save({"network_weights": {}}, tmp_path / "foreign.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save(GOOD | {"format_version": FORMAT_VERSION + 1}, tmp_path / "newer.pth")
    messages = {
        "missing": "does not exist",
        "truncated": "damaged or no checkpoint",
        "text": "",
        "empty": "damaged or no checkpoint",
        "stock": "not a checkpoint of emim_nnunet",
        "foreign": "not a checkpoint of emim_nnunet",
        "list": "not a checkpoint: it holds a list",
        "newer": "newer emim_nnunet",
    }
    for name, message in messages.items():
        with pytest.raises(UserError, match=f"{name}.pth.*{message}") as error:
            read(tmp_path / f"{name}.pth")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("num_cases", [1, 2, 4])
def test_small_data_sets_are_split_leave_one_out(tmp_path: Path, num_cases: int) -> None:
    cases = [f"case{i}" for i in range(num_cases)]
    ensure_splits(tmp_path, cases[::-1])
    path = tmp_path / "splits_final.json"
    assert path.exists() == (num_cases >= 2)
    if path.exists():
        import json

        splits = json.loads(path.read_text())
        assert [s["val"] for s in splits] == [[c] for c in cases]
        assert all(sorted(s["train"] + s["val"]) == cases for s in splits)
        path.write_text("[]")
        ensure_splits(tmp_path, cases)
        assert path.read_text() == "[]"  # a user's file stays


def test_patients_and_folds_of_a_conversion_reach_the_training(tmp_path: Path) -> None:
    raw, preprocessed = tmp_path / "raw", tmp_path / "preprocessed"
    raw.mkdir()
    preprocessed.mkdir()
    assert read_patients(preprocessed) == {}
    take_over_splits(raw, preprocessed)
    assert list(preprocessed.iterdir()) == []
    (raw / "splits_final.json").write_text("[1]")
    (raw / "patients.json").write_text('{"a": "p"}')
    take_over_splits(raw, preprocessed)
    assert read_patients(preprocessed) == {"a": "p"}
    (raw / "splits_final.json").write_text("[2]")
    (raw / "patients.json").write_text('{"a": "q"}')
    take_over_splits(raw, preprocessed)
    assert (preprocessed / "splits_final.json").read_text() == "[1]"  # the user may have changed it
    assert read_patients(preprocessed) == {"a": "q"}


@pytest.mark.parametrize(
    ("cases", "looks"),
    [
        (["patient01_study1", "patient01_study2", "patient02_study1", "patient02_study2"], True),
        (["sub-01_ses-a", "sub-01_ses-b", "sub-02_ses-a", "sub-02_ses-b"], True),
        (["TCGA_CS_4941_19960909_1", "TCGA_CS_4941_19960909_2", "p7-1", "p7-2"], True),
        (["p1_slice01", "p1_slice02", "p2_slice01", "p2_slice02"], True),
        (["BraTS-GLI-00001-000", "BraTS-GLI-00002-000"], False),
        (["BRATS_001", "BRATS_002", "BRATS_003"], False),
        (["BraTS2021_00000", "BraTS2021_00002"], False),
        (["Brats18_2013_2_1", "Brats18_2013_3_1", "Brats18_TCIA09_141_1"], False),
        (["Utrecht_50", "Utrecht_51", "Amsterdam_50", "Amsterdam_51"], False),
        (["TCGA_CS_4941", "TCGA_CS_4942", "TCGA_DU_5849", "TCGA_DU_5851"], False),
        (["IXI002-Guys-0828", "IXI012-HH-1211", "UPENN-GBM-00001_11", "UPENN-GBM-00002_11"], False),
        (["patient01", "patient02", "patient03"], False),
    ],
)
def test_ids_that_look_like_several_of_a_patient(cases: list[str], looks: bool) -> None:
    assert bool(alike(cases)) == looks


def test_a_table_of_patients(tmp_path: Path) -> None:
    file = tmp_path / "patients.csv"
    file.write_bytes("\ufeffage;case;patient\n50;a_1;a\n51; a_2 ;a\n\n60;b_1;b\n".encode())
    assert read_patients_csv(file) == {"a_1": "a", "a_2": "a", "b_1": "b"}
    for content, message in (
        ("case,who\na,b\n", "must have a head line with 'case' and 'patient'; it has case, who"),
        ("", "it has none"),
        ("case,patient\na_1,\n", "row 1 below the head line: the case or the patient is missing"),
        ("case,patient\na_1\n", "the case or the patient is missing"),
        ("case,patient\na_1,a\na_1,b\n", "row 2 below the head line: case a_1 is there twice"),
        ("case,patient\n" + "x" * 200_000 + ",a\n", "cannot be read as a CSV file"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=re.escape(message)):
            read_patients_csv(file)


def test_folds_that_part_a_patient_are_found(tmp_path: Path) -> None:
    check_splits(tmp_path, {"a": "p", "b": "p"})
    (tmp_path / "splits_final.json").write_text('[{"train": ["a", "c"], "val": ["b"]}]')
    check_splits(tmp_path, {"a": "p", "b": "q"})
    with pytest.raises(UserError, match=r"fold 0 of .* trains and validates on cases of patient p"):
        check_splits(tmp_path, {"a": "p", "b": "p"})


@pytest.mark.parametrize("kind", [SSL_FORMAT, EXPORT_FORMAT, FAULT_FORMAT, CLASSIFIER_FORMAT, UNFINISHED_FORMAT])
def test_a_newer_version_of_every_format_is_refused(kind: str, tmp_path: Path) -> None:
    torch.save({"format": kind, "format_version": FORMAT_VERSION + 1}, tmp_path / "newer.pth")
    with pytest.raises(UserError, match="newer emim_nnunet"):
        load_checkpoint(tmp_path / "newer.pth", formats=(kind,))
