"""Medical Segmentation Decathlon: all channels of a case in one four-dimensional image."""

from __future__ import annotations

from emim_nnunet.dataset_conversion.case import LABEL
from emim_nnunet.dataset_conversion.family import ENDING, STACK, DatasetFamily, FileRule

CITATION = "arXiv:1902.09063; arXiv:2106.05735"


def _rules(case: str, example: str) -> tuple[FileRule, ...]:
    """Images and labels of a task by the regular expression of its case ids, and an id that it matches."""
    return (
        FileRule(rf"(?:.*/)?images(?:Tr|Ts)/(?P<case>{case}){ENDING}", STACK, f"imagesTr/{example}.nii.gz"),
        FileRule(rf"(?:.*/)?labelsTr/(?P<case>{case}){ENDING}", LABEL, f"labelsTr/{example}.nii.gz"),
    )


FAMILIES = (
    DatasetFamily(
        name="msd01_brain",
        title="MSD Task01 BrainTumour (4D: FLAIR, T1w, t1gd, T2w)",
        default_dataset_name="MSD01BrainTumour",
        channels=("T1", "T1ce", "T2", "Flair"),
        stack={"Flair": 0, "T1": 1, "T1ce": 2, "T2": 3},
        rules=_rules(r"BRATS_\d+", "BRATS_001"),
        # 1 oedema, 2 non-enhancing, 3 enhancing: 1 and 2 are swapped against BraTS
        label_map={0: 0, 1: 1, 2: 2, 3: 3},
        labels={"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]},
        regions_class_order=(1, 2, 3),
        overlaps="BraTS 2016 and 2017",
        licence="CC BY-SA 4.0",
        citation=CITATION,
    ),
    DatasetFamily(
        name="msd05_prostate",
        title="MSD Task05 Prostate (4D: T2, ADC)",
        default_dataset_name="MSD05Prostate",
        channels=("T2", "ADC"),
        stack={"T2": 0, "ADC": 1},
        rules=_rules(r"prostate_\d+", "prostate_00"),
        label_map={0: 0, 1: 1, 2: 2},
        labels={"background": 0, "peripheral zone": 1, "transition zone": 2},
        licence="CC BY-SA 4.0",
        citation=CITATION,
    ),
)
