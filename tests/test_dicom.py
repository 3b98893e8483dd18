"""emim_convert dicom, on files that pydicom writes: what the headers say, the table, and the raw data set."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from emim_nnunet.cli import convert as command
from emim_nnunet.cli._run import run
from emim_nnunet.dataset_conversion.dicom_headers import ENHANCED, TAGS, modality

pydicom = pytest.importorskip("pydicom", reason="DICOM files are written by pydicom")

MR = "1.2.840.10008.5.1.4.1.1.4"
SHAPE = (6, 8, 10)  # z, y, x
TILTED = [0.8, 0.6, 0.0, -0.6, 0.8, 0.0]


def uid(*parts: int) -> str:
    return ".".join(map(str, (1, 2, 826, *parts)))


def write_series(
    folder: Path, patient: int, study: int, number: int, description: str, *, value: int = 100, **more: Any
) -> list[Path]:
    """A series of slices whose voxels are value + z; ``more`` are elements of all of them.

    ``slices`` gives their numbers, ``orientation`` their direction, ``class_uid`` what they are.
    """
    from pydicom.dataset import Dataset, FileMetaDataset

    slices = more.pop("slices", range(SHAPE[0]))
    orientation, class_uid = more.pop("orientation", [1, 0, 0, 0, 1, 0]), more.pop("class_uid", MR)
    normal = np.cross(orientation[:3], orientation[3:])
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for place, z in enumerate(slices):
        image = Dataset()
        image.PatientName, image.PatientID = "Mustermann^Erika", f"MRN-{patient:04d}"
        image.PatientBirthDate, image.StudyDate = "19700101", f"2020010{study}"
        image.StudyInstanceUID, image.SeriesInstanceUID = uid(patient, study), uid(patient, study, number)
        image.SOPInstanceUID, image.SOPClassUID = uid(patient, study, number, place + 1), class_uid
        image.Modality, image.SeriesDescription, image.SeriesNumber = "MR", description, number
        image.ImageType = ["ORIGINAL", "PRIMARY", "M"]
        image.RepetitionTime, image.EchoTime = 500, 10
        image.ImagePositionPatient = [float(v) for v in np.array([5.0, -7.0, 3.0]) + 2.0 * z * normal]
        image.ImageOrientationPatient, image.PixelSpacing, image.SliceThickness = orientation, [1.5, 1.25], 2.0
        image.Rows, image.Columns, image.InstanceNumber = SHAPE[1], SHAPE[2], 100 - place  # not in the order of places
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
        voxels = np.full(SHAPE[1:], value + z, np.uint16)
        voxels[0] = 0
        image.PixelData = voxels.tobytes()
        for name, element in more.items():
            setattr(image, name, element)
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        image.file_meta.MediaStorageSOPClassUID = class_uid
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        file = folder / f"IM{number:02d}{97 * (place + 1) % 64:02d}"  # names say nothing about the order
        image.save_as(file, enforce_file_format=True)
        files.append(file)
    return files


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    """Two patients, of whom one came twice; with all that a scanner leaves in an export."""
    source = tmp_path / "export"
    for patient, study in ((1, 1), (1, 2), (2, 1)):
        folder = source / f"MUSTERMANN{patient}" / f"{study}"
        write_series(folder, patient, study, 1, "localizer", slices=range(3))
        write_series(folder, patient, study, 2, "t1_mprage_sag", orientation=TILTED)
        write_series(folder, patient, study, 3, "t2_tse_tra", value=300, orientation=TILTED, EchoTime=90)
    first = source / "MUSTERMANN1" / "1"
    write_series(first, 1, 1, 4, "t1_mprage_sag KM", value=500, orientation=TILTED)
    write_series(first, 1, 1, 5, "t1_mprage_sag", value=150, orientation=TILTED)  # again: the patient had moved
    write_series(first, 1, 1, 6, "t1_mpr_cor", ImageType=["DERIVED", "SECONDARY", "MPR"])
    write_series(first, 1, 1, 7, "ADC", ImageType=["DERIVED", "PRIMARY", "DIFFUSION", "ADC"], value=900)
    write_series(first, 1, 1, 8, "perfusion", slices=[0, 1, 2, 3, 0, 1, 2, 3])
    write_series(first, 1, 1, 9, "t2_flair", slices=[0, 1, 3, 4, 5, 6])
    write_series(first, 1, 1, 10, "t1 3d", slices=[0], class_uid=f"{ENHANCED}", NumberOfFrames=1)
    write_series(first, 1, 1, 11, "CT head", Modality="CT")
    copies = write_series(first, 1, 1, 12, "resting")
    shutil.copy(copies[0], first / "COPY")
    (source / "README.txt").write_text("viewer")
    return source


def rows_of(table: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(table.open()))


def convert(source: Path, table: Path, *options: str) -> int:
    return run(command.main, ["dicom", str(source), "-d", "7", "--series_table", str(table), *options])


def test_the_table_names_what_every_series_is(hospital: Path, nnunet_dirs: Path, tmp_path: Path, capsys: Any) -> None:
    table = tmp_path / "series.csv"
    assert convert(hospital, table, "--dry_run") == 0
    assert not table.exists()
    assert convert(hospital, table) == 0
    assert list((nnunet_dirs / "nnUNet_raw").iterdir()) == []
    assert "in 3 studies have a modality" in capsys.readouterr().out
    rows = {(row["case"], row["series"]): row for row in rows_of(table)}
    assert {case for case, _ in rows} == {"p001_1", "p001_2", "p002_1"}
    assert {row["patient"] for (case, _), row in rows.items() if case != "p002_1"} == {"p001"}
    found = {number: (row["channel"], row["note"]) for (case, number), row in rows.items() if case == "p001_1"}
    assert found == {
        "1": ("", "localiser"),
        "2": ("", "another T1: series 5 is taken"),
        "3": ("T2", ""),
        "4": ("T1ce", ""),
        "5": ("T1", ""),
        "6": ("", "derived (DERIVED\\SECONDARY\\MPR)"),
        "7": ("ADC", ""),
        "8": ("", "several images at one place (echoes, b values, times or parts)"),
        "9": ("", "slices are missing or uneven: 2 to 4 mm apart"),
        "10": ("", "enhanced or multi-frame: convert it with dcm2niix, then take it with `emim_convert folders`"),
        "11": ("", "modality CT, not MR"),
        "12": ("", "another T1: series 5 is taken; recognised by TR, TE and TI alone; 1 files are there twice"),
    }
    assert "Mustermann" not in table.read_text()
    assert rows["p001_1", "5"]["patient_id"] == "MRN-0001"


def test_a_data_set_of_the_series_holds_their_voxels_and_no_name(
    hospital: Path, nnunet_dirs: Path, tmp_path: Path, capsys: Any, caplog: Any
) -> None:
    table = tmp_path / "series.csv"
    assert convert(hospital, table) == 0
    channels = ["--channel", "T1=T1", "--channel", "T2=T2"]
    assert convert(hospital, table, *channels) == 0
    assert "series of ADC, T1ce are not taken" in caplog.text
    out = nnunet_dirs / "nnUNet_raw" / "Dataset007_Dicom"
    images = sorted(file.name for file in (out / "imagesUnlabelled").iterdir())
    assert images == [f"{case}_{c:04d}.nii.gz" for case in ("p001_1", "p001_2", "p002_1") for c in range(2)]
    image = sitk.ReadImage(str(out / "imagesUnlabelled" / "p001_1_0000.nii.gz"))
    voxels = sitk.GetArrayFromImage(image)
    assert voxels.shape == SHAPE
    assert voxels[:, 1, 0].tolist() == [150 + z for z in range(SHAPE[0])]  # series 5, in the order of its places
    assert image.GetSpacing() == pytest.approx((1.25, 1.5, 2.0))
    assert image.GetOrigin() == pytest.approx((5, -7, 3))
    assert image.GetDirection()[0] == pytest.approx(TILTED[0])
    assert json.loads((out / "patients.json").read_text()) == {"p001_1": "p001", "p001_2": "p001", "p002_1": "p002"}
    provenance = json.loads((out / "provenance.json").read_text())["cases"]
    assert all(about["orientation_known"] for about in provenance.values())
    assert all(len(about["sha256"]["T1"]) == 64 for about in provenance.values())
    for file in out.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            opened = (
                content if file.suffix == ".json" else sitk.ReadImage(str(file)).GetMetaDataKeys().__repr__().encode()
            )
            assert not any(word in content + opened for word in (b"Mustermann", b"MUSTERMANN", b"MRN", b"0010|"))


def test_the_table_can_be_changed(hospital: Path, nnunet_dirs: Path, tmp_path: Path) -> None:
    """Another T1, another id, a derived series, and a series that is not wanted."""
    table = tmp_path / "series.csv"
    assert convert(hospital, table, "--patient_ids") == 0
    rows = rows_of(table)
    assert {row["case"] for row in rows} == {"MRN-0001_1", "MRN-0001_2", "MRN-0002_1"}
    kept = [row for row in rows if row["case"] == "MRN-0001_1"]
    for row in kept:
        row["case"] = row["patient"] = "anna"
        row["channel"] = {"2": "t1w", "6": "T1ce"}.get(row["series"], "")
    with table.open("w") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=";")
        writer.writeheader()
        writer.writerows(kept)
    channels = ["--channel", "T1=T1", "--channel", "Gd=T1ce", "--resample-to", "T1"]
    assert convert(hospital, table, *channels) == 0
    out = nnunet_dirs / "nnUNet_raw" / "Dataset007_Dicom" / "imagesUnlabelled"
    images = {file.name: sitk.ReadImage(str(file)) for file in out.iterdir()}
    assert sorted(images) == ["anna_0000.nii.gz", "anna_0001.nii.gz"]
    assert sitk.GetArrayFromImage(images["anna_0000.nii.gz"]).max() == 105  # series 2
    assert images["anna_0001.nii.gz"].GetDirection() == pytest.approx(images["anna_0000.nii.gz"].GetDirection())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"8": "T2", "3": ""}, "line 9: the series cannot be T2, it is several images at one place"),
        ({"2": "T1"}, "another series is T1 of case p001_1: leave one of them empty"),
        ({"3": ""}, "case p001_1: missing T2"),
        ({"6": "T1", "5": "", "3": "T2"}, "is on another grid than"),
    ],
)
def test_series_that_do_not_go_are_refused(
    change: dict[str, str], message: str, hospital: Path, nnunet_dirs: Path, tmp_path: Path, capsys: Any
) -> None:
    table = tmp_path / "series.csv"
    assert convert(hospital, table) == 0
    rows = rows_of(table)
    for row in rows:
        if row["case"] == "p001_1":
            row["channel"] = change.get(row["series"], row["channel"])
    with table.open("w") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    capsys.readouterr()
    assert convert(hospital, table, "--channel", "T1=T1", "--channel", "T2=T2") == 2
    errors = capsys.readouterr().err.splitlines()
    assert message in errors[-1]
    assert list((nnunet_dirs / "nnUNet_raw").glob("[!.]*")) == []


def test_mistakes_end_in_one_line(hospital: Path, nnunet_dirs: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.csv").write_text("case,channel\na,T1\n")
    (tmp_path / "ghost.csv").write_text("case,patient,channel,series_uid\na,a,T1,9.9\n")
    (tmp_path / "none.csv").write_text("case,patient,channel,series_uid\na,a,,9.9\n")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    new = str(tmp_path / "new.csv")
    tried = [
        ([str(hospital)], "dicom needs --series_table FILE"),
        ([str(tmp_path / "nowhere"), "--series_table", new], "nowhere is not a folder"),
        ([str(tmp_path / "empty"), "--series_table", new], "no DICOM image in"),
        ([str(hospital), "--series_table", str(tmp_path / "bad.csv")], "has no column patient, series_uid"),
        ([str(hospital), "--series_table", str(tmp_path / "ghost.csv")], "line 2: the series 9.9 is not in"),
        ([str(hospital), "--series_table", str(tmp_path / "none.csv")], "has no series of T1, T1ce, T2, Flair"),
        ([str(hospital), "--series_table", str(tmp_path / "bytes.csv")], "cannot be read as a CSV file in UTF-8"),
        ([str(hospital), "--series_table", new, "--label", "x", "--classes", "a=1"], "dicom takes no segmentations"),
        ([str(hospital), "--series_table", new, "--mask", "x"], "--mask goes with folders and bids only"),
    ]
    for words, message in tried:
        assert run(command.main, ["dicom", *words, "-d", "7"]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert run(command.main, ["brats2023", str(hospital), "-d", "7", "--series_table", new]) == 2
    assert "--series_table goes with dicom only" in capsys.readouterr().err
    assert not Path(new).exists()
    assert list((nnunet_dirs / "nnUNet_raw").iterdir()) == []


def test_damaged_slices_are_refused(nnunet_dirs: Path, tmp_path: Path, capsys: Any) -> None:
    files = write_series(tmp_path / "s", 1, 1, 2, "t1 mprage")
    table = tmp_path / "series.csv"
    assert convert(tmp_path / "s", table) == 0
    files[3].write_bytes(files[3].read_bytes()[:-40])
    assert convert(tmp_path / "s", table, "--channel", "T1=T1") == 2
    assert len([line for line in capsys.readouterr().err.splitlines() if ": error: " in line]) == 1
    assert list((nnunet_dirs / "nnUNet_raw").glob("[!.]*")) == []


@pytest.mark.parametrize(
    ("description", "more", "expected"),
    [
        ("t1_mprage_sag_p2_iso", {}, "T1"),
        ("T1W_3D_TFE +C", {}, "T1ce"),
        ("t1_tse_tra_post_gd", {}, "T1ce"),
        ("t1_tse_tra ohne KM", {}, "T1"),
        ("T1 pre contrast", {}, "T1"),
        ("Ax T1 FSPGR", {"contrast": "Gadovist"}, "T1ce"),
        ("t2_tirm_tra_dark-fluid", {}, "Flair"),
        ("Sag 3D T2 FLAIR", {"contrast": "GADOVIST"}, "Flair"),
        ("t2_space_cor", {}, "T2"),
        ("t2*_gre", {}, "T2star"),
        ("ep2d_diff_b1000", {}, "DWI"),
        ("ep2d_diff_ADC", {"image_type": "DERIVED\\PRIMARY\\DIFFUSION\\ADC"}, "ADC"),
        ("SWI_images", {}, "SWI"),
        ("PD fat sat", {}, "PD"),
        ("ax brain", {"tr": "9000", "te": "120", "ti": "2500"}, "Flair"),
        ("ax brain", {"tr": "4500", "te": "100"}, "T2"),
        ("ax brain", {"tr": "600", "te": "12", "contrast": "Dotarem"}, "T1ce"),
        ("ax brain", {}, ""),
    ],
)
def test_the_modality_by_the_header(description: str, more: dict[str, str], expected: str) -> None:
    assert modality(dict.fromkeys(TAGS, "") | {"description": description} | more) == expected
