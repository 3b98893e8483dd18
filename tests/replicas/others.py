"""Miniatures of the data sets that are not BraTS, and of data sets of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from tests.replicas.replica import SHAPE, Replica, inside, label, suffixed, write


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


OTHERS: dict[str, Replica] = {
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
