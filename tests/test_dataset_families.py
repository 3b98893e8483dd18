"""Every data set that emim_convert knows, as a miniature with its quirks, through the command and nnU-Net's own check."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
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
from tests.conftest import shared_data

SHAPE = (6, 7, 8)  # z, y, x


def write(
    path: Path,
    voxels: np.ndarray | int = 1,
    *,
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0),
    origin: tuple[float, ...] = (0.0, -239.0, 0.0),
    shape: tuple[int, ...] = SHAPE,
) -> None:
    """An image whose voxels are a number everywhere inside (0 at the first plane), or an array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(voxels, int):
        voxels = inside(shape, voxels)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    sitk.WriteImage(image, str(path))


def inside(shape: tuple[int, ...], number: int) -> np.ndarray:
    """A number everywhere but in the first plane, which is 0."""
    voxels = np.zeros(shape, dtype=np.int16)
    voxels[1:] = number
    return voxels


def label(values: list[int], kind: Any = np.uint8, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """A segmentation that holds these values besides 0."""
    voxels = np.zeros(shape, dtype=kind)
    for number, value in enumerate(values):
        voxels[2 + number % 4, 2:5, 2:5] = value
    return voxels


@dataclass
class Replica:
    """A miniature data set.

    Attributes:
        build: Writes it into a folder.
        labelled: Case id -> values in the converted segmentation.
        unlabelled: Case ids.
        channels: Number that stands in the image of each channel of every case.
        options: Of the command.
        patients: Whether splits by patient must be there.
    """

    build: Callable[[Path], None]
    labelled: dict[str, list[int]] = field(default_factory=dict)
    unlabelled: list[str] = field(default_factory=list)
    channels: list[int] = field(default_factory=lambda: [1, 2, 3, 4])
    options: list[str] = field(default_factory=list)
    patients: bool = False


def suffixed(
    folder: Path, case: str, suffixes: dict[str, int | np.ndarray], separator: str, ending: str = ".nii.gz"
) -> None:
    for suffix, voxels in suffixes.items():
        write(folder / f"{case}{separator}{suffix}{ending}", voxels)


OLD = {"t1": 1, "t1ce": 2, "t2": 3, "flair": 4}
NEW = {"t1n": 1, "t1c": 2, "t2w": 3, "t2f": 4}


def brats2018(root: Path) -> None:
    for grade, case in (("HGG", "Brats18_2013_2_1"), ("LGG", "Brats18_TCIA09_141_1")):
        suffixed(root / grade / case, case, OLD | {"seg": label([1, 2, 4])}, "_", ".nii")


def brats2019(root: Path) -> None:
    for grade, case in (("HGG", "BraTS19_CBICA_AAB_1"), ("LGG", "BraTS19_TCIA10_103_1")):
        suffixed(root / "MICCAI_BraTS_2019_Data_Training" / grade / case, case, OLD | {"seg": label([1, 2, 4])}, "_")


def brats2020(root: Path) -> None:
    top = root / "MICCAI_BraTS2020_TrainingData"
    suffixed(top / "BraTS20_Training_001", "BraTS20_Training_001", OLD | {"seg": label([1, 4])}, "_", ".nii")
    suffixed(top / "BraTS20_Training_355", "BraTS20_Training_355", OLD, "_", ".nii")
    write(top / "BraTS20_Training_355" / "W39_1998.09.19_Segm.nii", label([2, 4]))
    (top / "name_mapping.csv").write_text("Grade,BraTS_2020_subject_ID\n")


def brats2021(root: Path) -> None:
    for case in ("BraTS2021_00000", "BraTS2021_00002"):
        suffixed(root / case, case, OLD | {"seg": label([1, 2, 4])}, "_")


def brats_new(
    letters: str, cases: list[str], values: list[int], top: str, unlabelled: str | None = None
) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        for case in cases:
            name = f"BraTS-{letters}-{case}"
            suffixed(root / top / name, name, NEW | {"seg": label(values)}, "-")
        if unlabelled:
            name = f"BraTS-{letters}-{unlabelled}"
            suffixed(root / "ValidationData" / name, name, NEW, "-")

    return build


def ids(letters: str, cases: list[str], values: list[int]) -> dict[str, list[int]]:
    return {f"BraTS-{letters}-{case}": values for case in cases}


def brats2024_gli(root: Path) -> None:
    for top, patient in (("training_data1_v2", "00005"), ("training_data_additional", "00008")):
        for time in ("100", "101"):
            case = f"BraTS-GLI-{patient}-{time}"
            suffixed(root / top / case, case, NEW | {"seg": label([1, 2, 3, 4])}, "-")


def men_rt(root: Path) -> None:
    for case in ("BraTS-MEN-RT-0402-1", "BraTS-MEN-RT-0007-1"):
        write(root / case / f"{case}_t1c.nii.gz", 2, spacing=(0.9, 0.9, 3.0))
        write(root / case / f"{case}_gtv.nii.gz", label([1]), spacing=(0.9, 0.9, 3.0))


def brats2025_met(root: Path) -> None:
    top = root / "MICCAI-LH-BraTS2025-MET-Challenge-Training"
    suffixed(top / "BraTS-MET-00001-000", "BraTS-MET-00001-000", NEW | {"seg": label([1, 2])}, "-")
    suffixed(
        top / "UCSD" / "BraTS-MET-00900-000", "BraTS-MET-00900-000", NEW | {"seg": label([])}, "-"
    )  # empty is right
    without = {k: v for k, v in NEW.items() if k != "t2w"}
    suffixed(top / "UCSF" / "BraTS-MET-00800-000", "BraTS-MET-00800-000", without | {"seg": label([3])}, "-")
    write(root / "MICCAI-LH-BraTS2025-MET-Challenge-corrected-labels" / "BraTS-MET-00001-000-seg.nii.gz", label([3, 4]))


def stack(path: Path, numbers: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = []
    for number in numbers:
        voxels = np.zeros(SHAPE, dtype=np.float32)
        voxels[1:] = number
        images.append(sitk.GetImageFromArray(voxels))
    sitk.WriteImage(sitk.JoinSeries(images), str(path))


def plain_label(path: Path, values: list[int]) -> None:
    write(path, label(values), origin=(0.0, 0.0, 0.0))


def msd01(root: Path) -> None:
    top = root / "Task01_BrainTumour"
    for case in ("BRATS_001", "BRATS_002"):
        stack(top / "imagesTr" / f"{case}.nii.gz", [4, 1, 2, 3])  # FLAIR, T1w, t1gd, T2w
        plain_label(top / "labelsTr" / f"{case}.nii.gz", [1, 2, 3])
        (top / "imagesTr" / f"._{case}.nii.gz").write_bytes(b"macOS")
    stack(top / "imagesTs" / "BRATS_485.nii.gz", [4, 1, 2, 3])


def msd05(root: Path) -> None:
    for case in ("prostate_00", "prostate_01"):
        stack(root / "imagesTr" / f"{case}.nii.gz", [1, 2])
        plain_label(root / "labelsTr" / f"{case}.nii.gz", [1, 2])


def isles(root: Path) -> None:
    for number in (1, 2):
        case, top = f"sub-strokecase{number:04d}_ses-0001", f"sub-strokecase{number:04d}/ses-0001"
        data = root / "ISLES-2022" / top
        write(data / "dwi" / f"{case}_dwi.nii.gz", 1)
        write(data / "dwi" / f"{case}_adc.nii.gz", 2)
        flair = inside((12, 14, 16), 3)  # finer, and larger than DWI's grid
        write(data / "anat" / f"{case}_FLAIR.nii.gz", flair, spacing=(0.8, 0.8, 0.8), origin=(-2.0, -241.0, -2.0))
        write(root / "ISLES-2022" / "derivatives" / top / f"{case}_msk.nii.gz", label([1], np.float32))


def wmh(root: Path) -> None:
    for site in ("Utrecht", "Amsterdam/GE3T"):
        top = root / site / "50"
        write(top / "pre" / "T1.nii.gz", 1)
        write(top / "pre" / "FLAIR.nii.gz", 2)
        write(top / "orig" / "T1.nii.gz", 9, shape=(9, 9, 9))
        write(top / "orig" / "3DT1.nii.gz", 9, shape=(9, 9, 9))
        write(top / "wmh.nii.gz", label([1, 2]))


def mslesseg(root: Path) -> None:
    for patient, time in ((1, 1), (1, 2), (2, 1)):
        name = f"P{patient}_T{time}"
        suffixed(
            root / "train" / f"P{patient}" / f"T{time}", name, {"T1": 1, "T2": 2, "FLAIR": 3, "MASK": label([1])}, "_"
        )
    suffixed(root / "test" / "P54", "P54", {"T1": 1, "T2": 2, "FLAIR": 3}, "_")


def picai(root: Path) -> None:
    for patient, study in ((10000, 1000000), (10001, 1000001), (10002, 1000002), (10002, 1000003)):
        top = root / "images" / str(patient) / f"{patient}_{study}"
        fine = {"shape": (6, 14, 16), "spacing": (0.5, 0.5, 3.0), "origin": (0.0, 0.0, 0.0)}
        coarse = {"shape": (6, 7, 8), "spacing": (1.0, 1.0, 3.0), "origin": (0.25, 0.25, 0.0)}
        write(top.with_name(top.name + "_t2w.mha"), 1, **fine)
        write(top.with_name(top.name + "_adc.mha"), 2, **coarse)
        write(top.with_name(top.name + "_hbv.mha"), 3, **coarse)
        write(top.with_name(top.name + "_cor.mha"), 9, shape=(5, 5, 5))
        labels = root / "picai_labels" / "csPCa_lesion_delineations"
        if patient != 10001:  # a cancer that nobody drew
            values = [3] if patient == 10000 else []
            mask = label(values, shape=(6, 14, 16))
            write(
                labels / "human_expert" / "resampled" / f"{patient}_{study}.nii.gz",
                mask,
                spacing=fine["spacing"],
                origin=(0.0, 0.0, 0.0),
            )
            write(labels / "human_expert" / "original" / f"{patient}_{study}.nii.gz", label(values))
        write(labels / "AI" / "Bosma22a" / f"{patient}_{study}.nii.gz", label([1]))


def upenn(root: Path) -> None:
    suffixes = {"T1": 1, "T1GD": 2, "T2": 3, "FLAIR": 4}
    for case in ("UPENN-GBM-00001_11", "UPENN-GBM-00002_11", "UPENN-GBM-00002_21"):
        suffixed(root / "NIfTI-files" / "images_structural" / case, case, suffixes, "_")
        write(root / "NIfTI-files" / "automated_segm" / f"{case}_automated_approx_segm.nii.gz", label([1]))
        if case.endswith("_11"):
            write(root / "NIfTI-files" / "images_segm" / f"{case}_segm.nii.gz", label([1, 2, 4]))


def ucsf(root: Path) -> None:
    names = {"T1": 1, "T1c": 2, "T2": 3, "FLAIR": 4, "tumor_segmentation": label([1, 2, 4])}
    suffixed(root / "UCSF-PDGM-v5" / "UCSF-PDGM-0004_nifti", "UCSF-PDGM-0004", names | {"T1_bias": 9, "ADC": 9}, "_")
    for suffix, voxels in names.items():  # a mirror unpacks every file into a folder of its name
        case = "UCSF-PDGM-0004_FU007d"
        write(root / "UCSF-PDGM-v5" / f"{case}_nifti" / f"{case}_{suffix}.nii" / "volume.nii", voxels)


def ixi(root: Path) -> None:
    for subject in ("IXI002-Guys-0828", "IXI012-HH-1211"):
        write(root / "IXI-T2" / f"{subject}-T2.nii.gz", 2)
        write(root / "IXI-PD" / f"{subject}-PD.nii.gz", 3)
        t1 = inside((12, 14, 16), 1)
        write(root / "IXI-T1" / f"{subject}-T1.nii.gz", t1, spacing=(0.8, 0.8, 0.8), origin=(-2.0, -241.0, -2.0))
    write(root / "IXI-T1" / "IXI013-HH-1212-T1.nii.gz", 1)  # lacks T2 and PD


def fomo(root: Path) -> None:
    for session in ("ses_1", "ses_2"):
        for name, number in {"t1": 1, "t2": 2, "flair": 3, "dwi": 9}.items():
            write(root / "PT005_IXI" / "sub_7" / session / f"{name}.nii.gz", number)
    write(root / "PT001_OASIS1" / "sub_1" / "ses_1" / "t1.nii.gz", 1)
    (root / "participants.tsv").write_text("participant_id\n")


def nnssl(root: Path) -> None:
    sessions = {}
    for session, kinds in {"ses-DEFAULT": ["T1w", "T2w", "FLAIR"], "ses-2": ["T1w"]}.items():
        images = []
        for number, kind in enumerate(kinds, 1):
            place = f"OpenMind/ds001486/sub-001/{session}/anat/sub-001_{session}_{kind}.nii.gz"
            write(root / place, number)
            masks = {"anatomy_mask": None, "anonymization_mask": None}
            images.append(
                {
                    "name": Path(place).name,
                    "modality": kind,
                    "image_path": f"$nnssl_raw/{place}",
                    "associated_masks": masks,
                }
            )
        sessions[session] = {"session_id": session, "images": images}
    subject = {"sub-001": {"subject_id": "sub-001", "sessions": sessions}}
    content = {"collection_index": 745, "datasets": {"ds001486": {"dataset_index": "1", "subjects": subject}}}
    (root / "pretrain_data.json").write_text(json.dumps(content))


def bids(root: Path) -> None:
    for subject, session in (("01", "a"), ("01", "b"), ("02", "a")):
        stem = f"sub-{subject}_ses-{session}"
        anat = root / f"sub-{subject}" / f"ses-{session}" / "anat"
        write(anat / f"{stem}_run-1_T1w.nii.gz", 1)
        write(anat / f"{stem}_acq-3D_FLAIR.nii.gz", 2)
        derived = root / "derivatives" / "masks" / f"sub-{subject}" / f"ses-{session}"
        write(derived / f"{stem}_space-orig_label-lesion_mask.nii.gz", label([3]))


def folders(root: Path) -> None:
    for case in ("patient07", "patient19"):
        write(root / case / "T1.nii.gz", 1)
        write(root / case / "FLAIR.nii.gz", 2)
        write(root / case / "GOLD_STANDARD.nii.gz", label([1]))
    write(root / "patient30" / "T1.nii.gz", 1)
    write(root / "patient30" / "FLAIR.nii.gz", 2)


OLD_TWO = [1, 2, 3]
GLI = ["00000-000", "00002-000"]
REPLICAS: dict[str, Replica] = {
    "brats2018": Replica(brats2018, {"Brats18_2013_2_1": OLD_TWO, "Brats18_TCIA09_141_1": OLD_TWO}),
    "brats2019": Replica(brats2019, {"BraTS19_CBICA_AAB_1": OLD_TWO, "BraTS19_TCIA10_103_1": OLD_TWO}),
    "brats2020": Replica(brats2020, {"BraTS20_Training_001": [1, 3], "BraTS20_Training_355": [2, 3]}),
    "brats2021": Replica(brats2021, {"BraTS2021_00000": OLD_TWO, "BraTS2021_00002": OLD_TWO}),
    "brats2023": Replica(
        brats_new("GLI", GLI, [1, 2, 3], "ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData", "00005-000"),
        ids("GLI", GLI, [1, 2, 3]),
        ["BraTS-GLI-00005-000"],
    ),
    "brats2023_men": Replica(brats_new("MEN", GLI, [1, 2, 3], "any"), ids("MEN", GLI, [1, 2, 3])),
    "brats2023_met": Replica(brats_new("MET", GLI, [1, 2, 3], "any"), ids("MET", GLI, [1, 2, 3])),
    "brats2023_ped": Replica(brats_new("PED", GLI, [1, 2, 3], "x"), ids("PED", GLI, [1, 2, 3])),
    "brats2023_ssa": Replica(
        brats_new("SSA", GLI, [1, 2, 3], "ASNR-MICCAI-BraTS2023-SSA-Challenge-TrainingData_V2"),
        ids("SSA", GLI, [1, 2, 3]),
    ),
    "brats2024_gli": Replica(
        brats2024_gli,
        ids("GLI", ["00005-100", "00005-101", "00008-100", "00008-101"], [1, 2, 3, 4]),
        patients=True,
    ),
    "brats2024_ped": Replica(
        brats_new("PED", GLI, [1, 2, 3, 4], "BraTS-PEDs2024_Training"), ids("PED", GLI, [1, 2, 3, 4])
    ),
    "brats2024_men_rt": Replica(men_rt, {"BraTS-MEN-RT-0402-1": [1], "BraTS-MEN-RT-0007-1": [1]}, channels=[2]),
    "brats2024_met": Replica(brats_new("MET", GLI, [1, 2, 3], "any"), ids("MET", GLI, [1, 2, 3])),
    "brats2024_goat": Replica(
        brats_new("GoAT", ["00001", "00002"], [1, 2, 3], "MICCAI2024-BraTS-GoAT-TrainingData-With-GroundTruth"),
        ids("GoAT", ["00001", "00002"], [1, 2, 3]),
    ),
    "brats2025_gli_pre": Replica(
        brats_new("GLI", GLI, [1, 2, 3], "BraTS2025-GLI-PRE-Challenge-TrainingData"), ids("GLI", GLI, [1, 2, 3])
    ),
    "brats2025_met": Replica(
        brats2025_met,
        {"BraTS-MET-00001-000": [3, 4], "BraTS-MET-00900-000": []},
        options=["--skip_incomplete"],
    ),
    "msd01_brain": Replica(msd01, {"BRATS_001": [1, 2, 3], "BRATS_002": [1, 2, 3]}, ["BRATS_485"]),
    "msd05_prostate": Replica(msd05, {"prostate_00": [1, 2], "prostate_01": [1, 2]}, channels=[1, 2]),
    "isles2022": Replica(
        isles,
        {"sub-strokecase0001_ses-0001": [1], "sub-strokecase0002_ses-0001": [1]},
        channels=[1, 2, 3],
        options=["--resample-to", "DWI"],
    ),
    "wmh2017": Replica(wmh, {"Utrecht_50": [1, 2], "GE3T_50": [1, 2]}, channels=[1, 2]),
    "mslesseg": Replica(
        mslesseg, {"P1_T1": [1], "P1_T2": [1], "P2_T1": [1]}, ["P54"], channels=[1, 2, 3], patients=True
    ),
    "picai": Replica(
        picai,
        {"10000_1000000": [1], "10002_1000002": [], "10002_1000003": []},
        ["10001_1000001"],
        channels=[1, 2, 3],
        options=["--resample-to", "T2"],
        patients=True,
    ),
    "upenn_gbm": Replica(
        upenn, {"UPENN-GBM-00001_11": [1, 2, 3], "UPENN-GBM-00002_11": [1, 2, 3]}, ["UPENN-GBM-00002_21"]
    ),
    "ucsf_pdgm": Replica(ucsf, {"UCSF-PDGM-0004": [1, 2, 3], "UCSF-PDGM-0004_FU007d": [1, 2, 3]}),
    "ixi": Replica(
        ixi,
        unlabelled=["IXI002-Guys-0828", "IXI012-HH-1211"],
        channels=[1, 2, 3],
        options=["--resample-to", "T2", "--skip_incomplete"],
    ),
    "fomo60k": Replica(
        fomo,
        unlabelled=["PT005_IXI_sub_7_ses_1", "PT005_IXI_sub_7_ses_2"],
        channels=[1, 2, 3],
        options=["--skip_incomplete"],
    ),
    "nnssl": Replica(
        nnssl, unlabelled=["ds001486_sub-001__ses-DEFAULT"], channels=[1, 2, 3], options=["--skip_incomplete"]
    ),
    "bids": Replica(
        bids,
        {"sub-01_ses-a": [1], "sub-01_ses-b": [1], "sub-02_ses-a": [1]},
        channels=[1, 2],
        options=["--channel", "T1=T1w", "--channel", "Flair=FLAIR", "--label", "mask", "--classes", "lesion=3"],
        patients=True,
    ),
    "folders": Replica(
        folders,
        {"patient07": [1], "patient19": [1]},
        ["patient30"],
        channels=[1, 2],
        options=[
            *("--channel", "T1={case}/T1.nii.gz", "--channel", "Flair={case}/FLAIR.nii.gz"),
            *("--label", "{case}/GOLD_STANDARD.nii.gz", "--classes", "lesion=1"),
        ],
    ),
}


def visits(root: Path) -> None:
    """Two patients with two visits each, of which one folder per patient; a third patient with one."""
    for patient, visit in (("p01", "a"), ("p01", "b"), ("p02", "a"), ("p02", "b"), ("p03", "a")):
        write(root / patient / f"{visit}_T1.nii.gz", 1)
        write(root / patient / f"{visit}_seg.nii.gz", label([1]))


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


def test_real_open_ms(nnunet_dirs: Path) -> None:
    source = shared_data("open_ms")
    channels = [f"--channel={name}={{case}}/{file}.nii.gz" for name, file in OPEN_MS.items()]
    options = ["--label", "{case}/GOLD_STANDARD.nii.gz", "--classes", "lesion=1", "--name", "OpenMS"]
    assert run(command.main, ["folders", str(source), "-d", "138", *channels, *options]) == 0
    out = nnunet_dirs / "nnUNet_raw" / "Dataset138_OpenMS"
    verify_dataset_integrity(str(out), 1)
    assert len(list((out / "labelsTr").iterdir())) == 3


OPEN_MS = {"T1": "T1", "T1ce": "T1POST", "T2": "T2", "Flair": "FLAIR"}


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


def test_the_example_of_every_rule_is_matched_by_it() -> None:
    """It stands in messages, and decides which rule is a special case of which."""
    made = [
        made_of_options(name, {"T1": what}, None, {})
        for name, what in (("bids", "T1w"), ("folders", "{patient}/{visit}/*{visit}_T1.nii.gz"), ("fomo60k", "t1"))
    ]
    for family in (*FAMILIES.values(), *made):
        for rule in family.rules:
            assert rule.match(rule.example) is not None, rule


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
