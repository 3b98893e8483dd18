"""Stroke, white matter hyperintensities, multiple sclerosis."""

from __future__ import annotations

from emim_nnunet.dataset_conversion.case import LABEL
from emim_nnunet.dataset_conversion.family import ENDING, DatasetFamily, FileRule, suffix_rules

STROKE = {"DWI": ["dwi"], "ADC": ["adc"], "Flair": ["flair"], LABEL: ["msk"]}
SCLEROSIS = {"T1": ["T1"], "T2": ["T2"], "Flair": ["FLAIR"], LABEL: ["MASK"]}
SITE_AND_NUMBER = r"(?:.*/)?(?P<site>[^/]+)/(?P<number>\d+)"

FAMILIES = (
    DatasetFamily(
        name="isles2022",
        title="ISLES 2022, stroke (dwi, adc, FLAIR on a grid of its own: --resample-to DWI)",
        default_dataset_name="ISLES2022",
        channels=("DWI", "ADC", "Flair"),
        rules=suffix_rules(r"(?P<patient>sub-strokecase\d+)_ses-\d+", STROKE, "sub-strokecase0001_ses-0001_dwi.nii.gz"),
        label_map={0: 0, 1: 1},
        labels={"background": 0, "lesion": 1},
        advice="FLAIR is not registered to DWI: resampling puts it on the grid, it does not align it",
        licence="CC BY 4.0",
        citation="doi:10.1038/s41597-022-01875-5",
    ),
    DatasetFamily(
        name="wmh2017",
        title="WMH 2017, white matter hyperintensities (bias-corrected pre/T1, pre/FLAIR)",
        default_dataset_name="WMH2017",
        channels=("T1", "Flair"),
        rules=(
            FileRule(
                rf"{SITE_AND_NUMBER}/pre/(?P<what>T1|FLAIR){ENDING}",
                {"t1": "T1", "flair": "Flair"},
                "Utrecht/0/pre/T1.nii.gz",
            ),
            FileRule(rf"{SITE_AND_NUMBER}/wmh{ENDING}", LABEL, "Utrecht/0/wmh.nii.gz"),
        ),
        case_format="{site}_{number}",
        # 2 = other pathology, which the challenge does not score
        label_map={0: 0, 1: 1, 2: 2},
        labels={"background": 0, "WMH": 1, "ignore": 2},
        licence="see doi:10.34894/AECRSD",
        citation="doi:10.1109/TMI.2019.2905770; doi:10.34894/AECRSD",
    ),
    DatasetFamily(
        name="mslesseg",
        title="MSLesSeg, multiple sclerosis (T1, T2, FLAIR; several time points)",
        default_dataset_name="MSLesSeg",
        channels=("T1", "T2", "Flair"),
        # P1_T1_T2 is time point 1, modality T2
        rules=suffix_rules(r"(?P<patient>P\d+)(?:_T\d+)?", SCLEROSIS, "P1_T1_FLAIR.nii.gz"),
        label_map={0: 0, 1: 1},
        labels={"background": 0, "lesion": 1},
        licence="see the terms of the challenge",
        citation="doi:10.1038/s41597-025-05250-y",
    ),
)
