"""BraTS, all editions. Channels in the order of nnU-Net's converters, label values as on disk except where they had a gap."""

from __future__ import annotations

from typing import Any

from emim_nnunet.dataset_conversion.case import LABEL
from emim_nnunet.dataset_conversion.family import ENDING, DatasetFamily, FileRule, suffix_rules

CHANNELS = ("T1", "T1ce", "T2", "Flair")
OLD = {"T1": ["t1"], "T1ce": ["t1ce"], "T2": ["t2"], "Flair": ["flair"], LABEL: ["seg"]}
NEW = {"T1": ["t1n"], "T1ce": ["t1c"], "T2": ["t2w"], "Flair": ["t2f"], LABEL: ["seg"]}
CITATION = "arXiv:2107.02314; doi:10.1109/TMI.2014.2377694; doi:10.1038/sdata.2017.117"
TERMS = "see the terms of the challenge"

# 1 necrotic core, 2 oedema, 3 enhancing tumour; nnU-Net writes regions in the order given, later ones over earlier ones
GLIOMA: dict[str, Any] = {
    "labels": {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [1, 3], "enhancing tumor": [3]},
    "regions_class_order": (2, 1, 3),
}
FOUR_TO_THREE = {0: 0, 1: 1, 2: 2, 4: 3}
THREE = {0: 0, 1: 1, 2: 2, 3: 3}
# 4 = resection cavity, which belongs to no other region
WITH_CAVITY: dict[str, Any] = {
    "label_map": THREE | {4: 4},
    "labels": GLIOMA["labels"] | {"resection cavity": [4]},
    "regions_class_order": (2, 1, 3, 4),
}


def _old(year: int, case: str, example: str, **more: Any) -> DatasetFamily:
    """An edition up to 2021, with the names and label values of those years.

    Args:
        year: Year of the challenge.
        case: Regular expression of a case id.
        example: An id that it matches.
        more: Fields that differ.
    """
    return DatasetFamily(
        name=f"brats{year}",
        title=f"BraTS {year}, glioma (t1, t1ce, t2, flair)",
        default_dataset_name=f"BraTS{year}",
        channels=CHANNELS,
        label_map=FOUR_TO_THREE,
        licence=TERMS,
        citation=CITATION,
        **{"rules": suffix_rules(case, OLD, f"{example}_t1.nii.gz")} | GLIOMA | more,
    )


def _new(name: str, title: str, dataset: str, letters: str, **more: Any) -> DatasetFamily:
    """A part of an edition from 2023 on, with the names and label values of those years.

    Args:
        name: Name of the family.
        title: Its title.
        dataset: NAME in DatasetXXX_NAME.
        letters: Of the part, as they stand in its case ids.
        more: Fields that differ.
    """
    case = rf"(?P<patient>BraTS-{letters}-\d{{5}})-\d{{3}}"  # the last number is the time point
    rules = suffix_rules(case, NEW, f"BraTS-{letters}-00001-000-t1n.nii.gz")
    return DatasetFamily(
        name=name,
        title=title,
        default_dataset_name=dataset,
        channels=CHANNELS,
        **{"label_map": THREE, "licence": TERMS, "citation": CITATION, "rules": rules} | GLIOMA | more,
    )


# the Kaggle copy of BraTS 2020 holds one segmentation under a name of its own
MISNAMED_2020 = FileRule(
    rf"(?:.*/)?(?P<case>BraTS20_Training_355)/W39_1998\.09\.19_Segm{ENDING}",
    LABEL,
    "BraTS20_Training_355/W39_1998.09.19_Segm.nii",
)
RADIOTHERAPY = {"T1ce": ["t1c"], LABEL: ["gtv"]}

FAMILIES = (
    _old(2018, r"Brats18_[^/]+?", "Brats18_2013_2_1"),
    _old(2019, r"BraTS19_[^/]+?", "BraTS19_2013_2_1"),
    _old(
        2020,
        r"BraTS20_[^/]+?",
        "BraTS20_Training_001",
        rules=(*suffix_rules(r"BraTS20_[^/]+?", OLD, "BraTS20_Training_001_t1.nii.gz"), MISNAMED_2020),
    ),
    _old(
        2021,
        r"BraTS2021_\d{5}",
        "BraTS2021_00000",
        overlaps="UCSF-PDGM, UPENN-GBM and other TCIA collections; BraTS 2023 GLI holds the same cases",
    ),
    _new(
        "brats2023",
        "BraTS 2023 GLI, adult glioma (t1n, t1c, t2w, t2f; with or without seg)",
        "BraTS2023GLI",
        "GLI",
        licence="CC BY 4.0 (BraTS 2021 on TCIA); see the terms of the challenge",
        overlaps="BraTS 2021 (the same cases), UCSF-PDGM, UPENN-GBM",
    ),
    _new("brats2023_men", "BraTS 2023 MEN, meningioma", "BraTS2023MEN", "MEN"),
    _new(
        "brats2023_met", "BraTS 2023 MET, metastases", "BraTS2023MET", "MET", overlaps="TCIA Pretreat-MetsToBrain-Masks"
    ),
    _new("brats2023_ped", "BraTS 2023 PED, paediatric glioma", "BraTS2023PED", "PED"),
    _new("brats2023_ssa", "BraTS 2023 SSA, Sub-Saharan Africa", "BraTS2023SSA", "SSA"),
    _new(
        "brats2024_gli",
        "BraTS 2024 GLI, after treatment; 4 = resection cavity",
        "BraTS2024GLI",
        "GLI",
        overlaps="itself: three pairs of identical scans have different ids (compare sha256 in provenance.json)",
        **WITH_CAVITY,
    ),
    _new(
        "brats2024_ped",
        "BraTS 2024 PED; labels in another order than all others: 1 ET, 2 NET, 3 CC, 4 ED",
        "BraTS2024PED",
        "PED",
        label_map=THREE | {4: 4},
        labels={
            "background": 0,
            "whole tumor": [1, 2, 3, 4],
            "tumor core": [1, 2, 3],
            "cystic component": [3],
            "enhancing tumor": [1],
        },
        regions_class_order=(4, 2, 3, 1),
    ),
    DatasetFamily(
        name="brats2024_men_rt",
        title="BraTS 2024 MEN-RT, meningioma before radiotherapy (t1c and gtv)",
        default_dataset_name="BraTS2024MENRT",
        channels=("T1ce",),
        rules=suffix_rules(r"(?P<patient>BraTS-MEN-RT-\d{4})-\d", RADIOTHERAPY, "BraTS-MEN-RT-0001-1_t1c.nii.gz"),
        label_map={0: 0, 1: 1},
        labels={"background": 0, "gross tumor volume": 1},
        advice="native space, not skull-stripped; use the corrected release of 0402-1",
        licence=TERMS,
        citation="arXiv:2405.18383",
    ),
    _new("brats2024_met", "BraTS 2024 MET, metastases", "BraTS2024MET", "MET"),
    _new(
        "brats2024_goat",
        "BraTS 2024 GoAT, several kinds of tumour",
        "BraTS2024GoAT",
        "GoAT",
        rules=suffix_rules(r"BraTS-GoAT-\d{5}", NEW, "BraTS-GoAT-00001-t1n.nii.gz"),
    ),
    _new(
        "brats2025_gli_pre",
        "BraTS 2025 GLI-PRE, before treatment",
        "BraTS2025GLIPRE",
        "GLI",
        overlaps="BraTS 2021 and 2023 GLI",
    ),
    _new(
        "brats2025_met",
        "BraTS 2025 MET; 4 = resection cavity; T2 may be missing (--skip_incomplete)",
        "BraTS2025MET",
        "MET",
        preferred=r".*corrected.*",
        advice="some cases lack T2; those of UCSF, UCSD and Ulm are in native space; empty masks are right",
        **WITH_CAVITY,
    ),
)
