"""Data sets of one's own: what a pattern matches, whose a case is, and what is said where names are not clear."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

from emim_nnunet.cli import convert as command
from emim_nnunet.cli._run import run
from tests.conftest import shared_data
from tests.replicas.others import folders
from tests.replicas.replica import label, write

OPEN_MS = {"T1": "T1", "T1ce": "T1POST", "T2": "T2", "Flair": "FLAIR"}


def visits(root: Path) -> None:
    """Two patients with two visits each, of which one folder per patient; a third patient with one."""
    for patient, visit in (("p01", "a"), ("p01", "b"), ("p02", "a"), ("p02", "b"), ("p03", "a")):
        write(root / patient / f"{visit}_T1.nii.gz", 1)
        write(root / patient / f"{visit}_seg.nii.gz", label([1]))


def convert_folders(source: Path, t1: str, *options: str, lesion: str = "") -> int:
    """``folders`` with a pattern of T1 and perhaps one of the lesions."""
    labels = ["--label", lesion, "--classes", "lesion=1"] if lesion else []
    return run(command.main, ["folders", str(source), "-d", "7", "--channel", f"T1={t1}", *labels, *options])


def test_segmentations_beside_images_are_no_images(nnunet_dirs: Path, tmp_path: Path, capsys: Any) -> None:
    """The special case counts: {case}_mask.nii.gz is one of {case}.nii.gz, in whatever order they are given."""
    for case in ("p0", "p1"):
        write(tmp_path / "s" / f"{case}.nii.gz", 1)
        write(tmp_path / "s" / f"{case}_gd.nii.gz", 2)
        write(tmp_path / "s" / f"{case}_mask.nii.gz", label([1]))
    gd = ["--channel", "T1ce={case}_gd.nii.gz"]
    assert convert_folders(tmp_path / "s", "{case}.nii.gz", *gd, lesion="{case}_mask.nii.gz") == 0
    out = nnunet_dirs / "nnUNet_raw" / "Dataset007_Own"
    assert sorted(p.name for p in (out / "labelsTr").iterdir()) == ["p0.nii.gz", "p1.nii.gz"]
    assert list((out / "imagesUnlabelled").iterdir()) == []
    gadolinium = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "imagesTr" / "p0_0001.nii.gz")))
    assert gadolinium.max() == 2


def test_ids_that_are_longer_than_others_are_told(nnunet_dirs: Path, tmp_path: Path, caplog: Any) -> None:
    for case in ("p0", "p00", "p0_mask"):
        write(tmp_path / f"{case}.nii.gz", 1)
    assert convert_folders(tmp_path, "{case}.nii.gz") == 0
    assert "ids that are others with something added: p0_mask." in caplog.text


def test_a_file_of_two_patterns_and_a_label_that_is_nowhere_are_refused(
    nnunet_dirs: Path, tmp_path: Path, capsys: Any
) -> None:
    write(tmp_path / "s" / "images" / "p0.nii.gz", 1)
    write(tmp_path / "s" / "images" / "p0_mask.nii.gz", label([1]))
    assert convert_folders(tmp_path / "s", "images/{case}.nii.gz", lesion="{case}_mask.nii.gz") == 2
    assert "'images/p0_mask.nii.gz' matches images/{case}.nii.gz and {case}_mask.nii.gz" in capsys.readouterr().err
    assert convert_folders(tmp_path / "s", "images/{case}.nii.gz", lesion="{case}_seg.nii.gz") == 2
    assert "--label {case}_seg.nii.gz: none of the 2 cases" in capsys.readouterr().err
    assert list((nnunet_dirs / "nnUNet_raw").iterdir()) == []


@pytest.mark.parametrize("deep", [False, True])
def test_visits_of_a_patient_are_cases_of_one_patient(deep: bool, nnunet_dirs: Path, tmp_path: Path) -> None:
    visits(tmp_path)
    if deep:  # a folder per visit
        for file in list(tmp_path.rglob("*.nii.gz")):
            visit, what = file.name.split("_")
            (file.parent / visit).mkdir(exist_ok=True)
            file.rename(file.parent / visit / what)
    t1, lesion = (
        ("{patient}/{visit}/T1.nii.gz", "{patient}/{visit}/seg.nii.gz")
        if deep
        else ("{patient}/{visit}_T1.nii.gz", "{patient}/{visit}_seg.nii.gz")
    )
    assert convert_folders(tmp_path, t1, lesion=lesion) == 0
    out = nnunet_dirs / "nnUNet_raw" / "Dataset007_Own"
    expected = {"p01_a": "p01", "p01_b": "p01", "p02_a": "p02", "p02_b": "p02", "p03_a": "p03"}
    assert json.loads((out / "patients.json").read_text()) == expected
    provenance = json.loads((out / "provenance.json").read_text())["cases"]
    assert {case: about["patient"] for case, about in provenance.items()} == expected
    folds = json.loads((out / "splits_final.json").read_text())
    assert [fold["val"] for fold in folds] == [["p01_a", "p01_b"], ["p02_a", "p02_b"], ["p03_a"]]
    assert all(sorted(fold["train"] + fold["val"]) == sorted(expected) for fold in folds)


def test_visits_that_cannot_be_told_from_patients_are_refused(nnunet_dirs: Path, tmp_path: Path, capsys: Any) -> None:
    write(tmp_path / "s" / "p_01_study_1.nii.gz", 1)
    assert convert_folders(tmp_path / "s", "{patient}_{visit}.nii.gz") == 2
    message = capsys.readouterr().err
    assert "can be read in two ways" in message
    assert "patient p and visit 01_study_1, or patient p_01_study and visit 1" in message
    assert convert_folders(tmp_path / "s", "{patient}_study_{visit}.nii.gz") == 0
    out = nnunet_dirs / "nnUNet_raw" / "Dataset007_Own"
    assert json.loads((out / "provenance.json").read_text())["cases"]["p_01_1"]["patient"] == "p_01"


def test_patients_of_cases_with_ids_of_their_own(nnunet_dirs: Path, tmp_path: Path) -> None:
    for case in ("x7", "x8"):
        write(tmp_path / "anna" / f"{case}.nii.gz", 1)
    assert convert_folders(tmp_path, "{patient}/{case}.nii.gz") == 0
    out = nnunet_dirs / "nnUNet_raw" / "Dataset007_Own"
    assert json.loads((out / "patients.json").read_text()) == {"x7": "anna", "x8": "anna"}


def test_ids_that_look_like_visits_are_told(nnunet_dirs: Path, tmp_path: Path, caplog: Any) -> None:
    for case in ("patient01_study1", "patient01_study2", "patient02_study1", "patient02_study2"):
        write(tmp_path / case / "T1.nii.gz", 1)
    assert convert_folders(tmp_path, "{case}/T1.nii.gz") == 0
    assert "patient01_study1, patient01_study2 look like visits of one patient" in caplog.text


def test_no_case_found_shows_a_name_that_would_match_and_what_is_there(
    nnunet_dirs: Path, tmp_path: Path, capsys: Any
) -> None:
    folders(tmp_path)
    assert run(command.main, ["brats2018", str(tmp_path), "-d", "7"]) == 2
    message = capsys.readouterr().err
    assert "expected files such as Brats18_2013_2_1_t1.nii.gz" in message
    assert (
        "there are 'patient07/FLAIR.nii.gz', 'patient07/GOLD_STANDARD.nii.gz', 'patient07/T1.nii.gz' and 5 more"
        in message
    )
    assert "`emim_convert folders` takes other names" in message
    assert convert_folders(tmp_path, "{patient}/{visit}/T2.nii.gz") == 2
    assert "expected files such as patient01/visit1/T2.nii.gz" in capsys.readouterr().err


def test_real_open_ms(nnunet_dirs: Path) -> None:
    source = shared_data("open_ms")
    channels = [f"--channel={name}={{case}}/{file}.nii.gz" for name, file in OPEN_MS.items()]
    options = ["--label", "{case}/GOLD_STANDARD.nii.gz", "--classes", "lesion=1", "--name", "OpenMS"]
    assert run(command.main, ["folders", str(source), "-d", "138", *channels, *options]) == 0
    out = nnunet_dirs / "nnUNet_raw" / "Dataset138_OpenMS"
    verify_dataset_integrity(str(out), 1)
    assert len(list((out / "labelsTr").iterdir())) == 3
