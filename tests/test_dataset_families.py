"""Every data set that emim_convert knows, as a miniature with its quirks, through the command and nnU-Net's own check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

from emim_nnunet.cli import convert as command
from emim_nnunet.cli._run import run
from emim_nnunet.dataset_conversion import FAMILIES
from emim_nnunet.dataset_conversion.generic import made_of_options
from tests.replicas import REPLICAS
from tests.replicas.brats import brats2020, brats2021
from tests.replicas.others import folders, isles, nnssl
from tests.replicas.replica import label, write


def test_every_family_has_a_replica() -> None:
    assert set(REPLICAS) == {*FAMILIES, "bids", "folders"}


@pytest.mark.parametrize("name", REPLICAS)
def test_a_replica_arrives_as_it_should(name: str, nnunet_dirs: Path, tmp_path: Path, capsys: Any) -> None:
    replica = REPLICAS[name]
    replica.build(tmp_path / "source")
    before = {p: p.read_bytes() for p in (tmp_path / "source").rglob("*") if p.is_file()}
    assert run(command.main, [name, str(tmp_path / "source"), "-d", "7", "--name", "X", *replica.options]) == 0
    out = nnunet_dirs / "nnUNet_raw" / "Dataset007_X"
    if replica.labelled:
        verify_dataset_integrity(str(out), 1)
    assert sorted(p.name for p in (out / "labelsTr").iterdir()) == sorted(f"{case}.nii.gz" for case in replica.labelled)
    for case, values in replica.labelled.items():
        voxels = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "labelsTr" / f"{case}.nii.gz")))
        assert sorted(set(np.unique(voxels)) - {0}) == values
    for case in (*replica.labelled, *replica.unlabelled):
        folder = out / ("imagesTr" if case in replica.labelled else "imagesUnlabelled")
        images = sorted(folder.glob(f"{case}_????.nii.gz"))
        found = [sitk.GetArrayFromImage(sitk.ReadImage(str(image))) for image in images]
        assert [round(float(voxels[1:-1].max())) for voxels in found] == replica.channels
        assert len({voxels.shape for voxels in found}) == 1
    assert len(list((out / "imagesUnlabelled").iterdir())) == len(replica.unlabelled) * len(replica.channels)
    dataset = json.loads((out / "dataset.json").read_text())
    assert dataset["licence" if "licence" in dataset else "license"]
    provenance = json.loads((out / "provenance.json").read_text())
    assert set(provenance["cases"]) == {*replica.labelled, *replica.unlabelled}
    assert str(tmp_path) not in (out / "provenance.json").read_text()
    if name == "ucsf_pdgm":  # five files called volume.nii
        assert len(provenance["cases"]["UCSF-PDGM-0004_FU007d"]["sha256"]) == 5
    assert (out / "splits_final.json").is_file() == replica.patients
    if replica.patients:
        patients = {case: about["patient"] for case, about in provenance["cases"].items()}
        for fold in json.loads((out / "splits_final.json").read_text()):
            assert not {patients[c] for c in fold["train"]} & {patients[c] for c in fold["val"]}
    assert all(p.read_bytes() == content for p, content in before.items())
    printed = capsys.readouterr().out
    family = FAMILIES.get(name)
    if family is not None and family.overlaps:
        assert f"may be in {family.overlaps}" in printed


@pytest.mark.parametrize("name", [n for n, f in FAMILIES.items() if f.regions_class_order])
def test_regions_restore_the_label_values(name: str) -> None:
    """nnU-Net writes region i with value order[i], later over earlier: the result must be the converted label."""
    family = FAMILIES[name]
    regions = [v for k, v in family.labels.items() if k != "background"]
    values = np.array(sorted({0, *family.label_map.values()}))
    restored = np.zeros_like(values)
    for region, value in zip(regions, family.regions_class_order or (), strict=True):
        restored[np.isin(values, region)] = value
    assert restored.tolist() == values.tolist()
    assert values.tolist() == list(range(len(values)))  # nnU-Net allows no gaps


def test_other_grids_are_refused_unless_resampling_is_asked_for(nnunet_dirs: Path, tmp_path: Path, capsys: Any) -> None:
    isles(tmp_path)
    assert run(command.main, ["isles2022", str(tmp_path), "-d", "7"]) == 2
    assert "is on another grid than" in (message := capsys.readouterr().err)
    assert "--resample-to CHANNEL puts all on one" in message
    assert run(command.main, ["isles2022", str(tmp_path), "-d", "7", "--resample-to", "T1"]) == 2
    assert "--resample-to T1: the channels are DWI, ADC, Flair" in capsys.readouterr().err
    far = next(tmp_path.rglob("*0001_FLAIR.nii.gz"))
    write(far, 3, origin=(500.0, 500.0, 500.0))
    assert run(command.main, ["isles2022", str(tmp_path), "-d", "7", "--resample-to", "DWI"]) == 2
    assert "does not overlap with" in capsys.readouterr().err
    assert list((nnunet_dirs / "nnUNet_raw").iterdir()) == []


def test_resampling_is_linear_for_images_and_nearest_for_labels(nnunet_dirs: Path, tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(8, dtype=np.float32) + 1, (6, 7, 8))
    write(tmp_path / "s" / "a" / "T1.nii.gz", 1, spacing=(0.5, 1.0, 1.0), shape=(6, 7, 15))
    write(tmp_path / "s" / "a" / "T2.nii.gz", np.ascontiguousarray(ramp))
    write(tmp_path / "s" / "a" / "seg.nii.gz", np.ascontiguousarray((ramp > 4) * 5).astype(np.uint8))
    channels = ["--channel", "T1={case}/T1.nii.gz", "--channel", "T2={case}/T2.nii.gz"]
    labels = ["--label", "{case}/seg.nii.gz", "--classes", "lesion=5", "--resample-to", "T1"]
    assert run(command.main, ["folders", str(tmp_path / "s"), "-d", "7", *channels, *labels]) == 0
    out = nnunet_dirs / "nnUNet_raw" / "Dataset007_Own"
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "imagesTr" / "a_0001.nii.gz")))
    assert np.allclose(image[2, 2], 1 + np.arange(15) / 2)
    assert set(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(out / "labelsTr" / "a.nii.gz"))))) == {0, 1}


def test_links_point_to_what_is_right_already(nnunet_dirs: Path, tmp_path: Path) -> None:
    brats2020(tmp_path / "nii")  # .nii: must be rewritten
    brats2021(tmp_path / "gz")
    for number, (name, folder) in enumerate((("brats2020", "nii"), ("brats2021", "gz")), 7):
        assert run(command.main, [name, str(tmp_path / folder), "-d", str(number), "--link"]) == 0
    raw = nnunet_dirs / "nnUNet_raw"
    assert not any(p.is_symlink() for p in (raw / "Dataset007_BraTS2020" / "imagesTr").iterdir())
    links = list((raw / "Dataset008_BraTS2021" / "imagesTr").iterdir())
    assert all(p.is_symlink() and p.resolve().is_file() for p in links)
    verify_dataset_integrity(str(raw / "Dataset008_BraTS2021"), 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bids", "SOURCE"], "bids needs --channel NAME=..."),
        (["bids", "SOURCE", "--channel", "T1"], "--channel T1: expected NAME=VALUE"),
        (["folders", "SOURCE", "--channel", "T1=T1.nii.gz"], "must contain {case}"),
        (["folders", "SOURCE", "--channel", "T1={case}.nii.gz", "--label", "x{case}"], "--label needs --classes"),
        (["bids", "SOURCE", "--channel", "T1=T1w", "--label", "m", "--classes", "a=0"], "from 1 to 255"),
        (["bids", "SOURCE", "--channel", "T1=T1w", "--label", "m", "--classes", "a=1", "b=1"], "must be different"),
        (["brats2021", "SOURCE", "--channel", "T1=T1w"], "brats2021 has fixed channels and labels"),
        (["nnssl", "SOURCE"], "expected a folder with pretrain_data.json"),
    ],
)
def test_impossible_options_are_named(
    arguments: list[str], message: str, nnunet_dirs: Path, tmp_path: Path, capsys: Any
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    given = [str(source) if a == "SOURCE" else a for a in arguments]
    assert run(command.main, [*given, "-d", "7"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[]", '{"datasets": {"a": {}}}', '{"datasets": {}}', "[" * 200_000])
def test_a_broken_nnssl_description_is_refused(content: str, nnunet_dirs: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "pretrain_data.json").write_text(content)
    assert run(command.main, ["nnssl", str(tmp_path), "-d", "7"]) == 2
    assert "pretrain_data.json" in capsys.readouterr().err


def test_an_nnssl_description_cannot_lead_out_of_its_folder(nnunet_dirs: Path, tmp_path: Path, capsys: Any) -> None:
    nnssl(tmp_path / "s")
    file = tmp_path / "s" / "pretrain_data.json"
    file.write_text(file.read_text().replace("$nnssl_raw/OpenMind", "../../OpenMind"))
    assert run(command.main, ["nnssl", str(tmp_path / "s"), "-d", "7"]) == 2
    assert "leads out of s" in capsys.readouterr().err


def test_segmentations_without_images_are_told(nnunet_dirs: Path, tmp_path: Path, caplog: Any) -> None:
    folders(tmp_path)
    write(tmp_path / "patient99" / "GOLD_STANDARD.nii.gz", label([1]))
    assert run(command.main, ["folders", str(tmp_path), "-d", "7", *REPLICAS["folders"].options]) == 0
    assert "1 segmentations without images are ignored: patient99" in caplog.text


def test_the_list_and_the_page_name_all(capsys: Any) -> None:
    assert run(command.main, ["--list"]) == 0
    printed = capsys.readouterr().out
    page = (Path(__file__).parent.parent / "documentation" / "reference" / "data-sets.md").read_text()
    for name in (*FAMILIES, "bids", "folders"):
        assert name in printed
        assert f"`{name}`" in page
    for family in FAMILIES.values():
        assert family.advice in printed


def test_the_example_of_every_rule_is_matched_by_it() -> None:
    """It stands in messages, and decides which rule is a special case of which."""
    made = [
        made_of_options(name, {"T1": what}, None, {})
        for name, what in (("bids", "T1w"), ("folders", "{patient}/{visit}/*{visit}_T1.nii.gz"), ("fomo60k", "t1"))
    ]
    for family in (*FAMILIES.values(), *made):
        for rule in family.rules:
            assert rule.match(rule.example) is not None, rule


def test_picai_takes_the_ids_that_its_own_tools_write(nnunet_dirs: Path, tmp_path: Path) -> None:
    for patient, study in (("ProstateX-0000", "07-07-2011"), ("ProstateX-0000", "08-07-2012"), ("10000", "1000000")):
        for number, channel in enumerate(("t2w", "adc", "hbv"), 1):
            write(tmp_path / "images" / patient / f"{patient}_{study}_{channel}.mha", number)
        kind = "annotations/ProstateX" if patient.startswith("P") else "picai_labels/human_expert/resampled"
        write(tmp_path / kind / f"{patient}_{study}.nii.gz", label([3]))
    assert run(command.main, ["picai", str(tmp_path), "-d", "7"]) == 0
    out = nnunet_dirs / "nnUNet_raw" / "Dataset007_PICAI"
    cases = ["10000_1000000", "ProstateX-0000_07-07-2011", "ProstateX-0000_08-07-2012"]
    assert sorted(p.name for p in (out / "labelsTr").iterdir()) == [f"{case}.nii.gz" for case in cases]
    whose = ["10000", "ProstateX-0000", "ProstateX-0000"]
    assert json.loads((out / "patients.json").read_text()) == dict(zip(cases, whose, strict=True))
