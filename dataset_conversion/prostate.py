"""PI-CAI: prostate cancer on bi-parametric MRI."""

from __future__ import annotations

from emim_nnunet.dataset_conversion.case import LABEL
from emim_nnunet.dataset_conversion.family import ENDING, DatasetFamily, FileRule

# PATIENT_STUDY: 10000_1000000 in the collection itself, ProstateX-0000_07-07-2011 where picai_prep made it of ProstateX
CASE = r"(?P<case>(?P<patient>[^/_]+)_[^/_]+)"

FAMILIES = (
    DatasetFamily(
        name="picai",
        title="PI-CAI, or ProstateX by picai_prep (t2w; adc, hbv on coarser grids: --resample-to T2; labels of human experts)",
        default_dataset_name="PICAI",
        channels=("T2", "ADC", "HBV"),
        rules=(
            FileRule(
                rf"(?:.*/)?{CASE}_(?P<what>t2w|adc|hbv){ENDING}",
                {"t2w": "T2", "adc": "ADC", "hbv": "HBV"},
                "10000/10000_1000000_t2w.mha",
            ),
            # "resampled" is on the grid of t2w; "original" and the labels of an AI lie beside it and are not taken
            FileRule(
                rf"(?:.*/)?(?:human_expert/resampled|annotations(?:/ProstateX)?)/{CASE}{ENDING}",
                LABEL,
                "human_expert/resampled/10000_1000000.nii.gz",
            ),
        ),
        # 2 to 5 = ISUP grade of a significant cancer
        label_map={0: 0, 1: 1, 2: 1, 3: 1, 4: 1, 5: 1},
        labels={"background": 0, "significant cancer": 1},
        overlaps="ProstateX (328 cases)",
        advice="cases without a label file have cancers that nobody drew: they become unlabelled cases, not empty ones",
        licence="CC BY-NC 4.0",
        citation="doi:10.5281/zenodo.6522364",
    ),
)
