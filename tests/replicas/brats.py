"""Miniatures of the editions of BraTS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.replicas.replica import Replica, label, suffixed, write

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


OLD_TWO = [1, 2, 3]
GLI = ["00000-000", "00002-000"]
BRATS: dict[str, Replica] = {
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
}
