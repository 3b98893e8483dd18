"""Cohorts of single centres: UPENN-GBM and UCSF-PDGM."""

from __future__ import annotations

from emim_nnunet.dataset_conversion.brats import CHANNELS, FOUR_TO_THREE, GLIOMA
from emim_nnunet.dataset_conversion.case import LABEL
from emim_nnunet.dataset_conversion.family import ENDING, DatasetFamily, FileRule, suffix_rules

UPENN = {"T1": ["T1"], "T1ce": ["T1GD"], "T2": ["T2"], "Flair": ["FLAIR"], LABEL: ["segm"]}
UCSF = {"t1": "T1", "t1c": "T1ce", "t2": "T2", "flair": "Flair", "tumor_segmentation": LABEL}

FAMILIES = (
    DatasetFamily(
        name="upenn_gbm",
        title="UPENN-GBM (T1, T1GD, T2, FLAIR; manual segmentations only)",
        default_dataset_name="UPENNGBM",
        channels=CHANNELS,
        rules=suffix_rules(r"(?P<patient>UPENN-GBM-\d+)_\d+", UPENN, "UPENN-GBM-00001_11_T1.nii.gz"),
        label_map=FOUR_TO_THREE,
        overlaps="BraTS",
        advice="most cases have automatic segmentations only: they become unlabelled cases",
        licence="CC BY 4.0",
        citation="doi:10.1038/s41597-022-01560-7",
        **GLIOMA,
    ),
    DatasetFamily(
        name="ucsf_pdgm",
        title="UCSF-PDGM (T1, T1c, T2, FLAIR)",
        default_dataset_name="UCSFPDGM",
        channels=CHANNELS,
        # some mirrors unpack every file into a folder of its name
        rules=(
            FileRule(
                rf"(?:.*/)?(?P<case>(?P<patient>UCSF-PDGM-\d+)(?:_FU\d+d)?)_(?P<what>{'|'.join(UCSF)})"
                rf"(?:{ENDING}|{ENDING}/[^/]+{ENDING})",
                UCSF,
                "UCSF-PDGM-0004_T1.nii.gz",
            ),
        ),
        label_map=FOUR_TO_THREE,
        overlaps="BraTS 2021 and 2023 (298 exams)",
        licence="CC BY 4.0",
        citation="doi:10.1148/ryai.220058",
        **GLIOMA,
    ),
)
