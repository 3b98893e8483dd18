"""BraTS 2023 GLI (adult glioma): BraTS-GLI-NNNNN-TTT/BraTS-GLI-NNNNN-TTT-{t1n,t1c,t2w,t2f,seg}.nii.gz."""

from __future__ import annotations

from emim_nnunet.dataset_conversion.family import DatasetFamily

BRATS2023_GLI = DatasetFamily(
    name="brats2023",
    title="BraTS 2023 GLI, adult glioma (t1n, t1c, t2w, t2f; with or without seg)",
    default_dataset_name="BraTS2023GLI",
    # the order of nnU-Net's own BraTS converters
    channels={"T1": ("t1n",), "T1ce": ("t1c",), "T2": ("t2w",), "Flair": ("t2f",)},
    label_suffixes=("seg",),
    # 1 necrotic core, 2 oedema, 3 enhancing tumour (4 in earlier editions)
    label_map={0: 0, 1: 1, 2: 2, 3: 3},
    labels={"background": 0, "whole tumor": [1, 2, 3], "tumor core": [1, 3], "enhancing tumor": [3]},
    # nnU-Net writes the regions in this order, later ones over earlier ones: oedema, core, enhancing
    regions_class_order=(2, 1, 3),
    patient_pattern=r"(.+)-\d{3}$",  # the last number is the time point
    licence="CC BY 4.0 (BraTS 2021 on TCIA); see the terms of the challenge",
    citation="arXiv:2107.02314; doi:10.1109/TMI.2014.2377694; doi:10.1038/sdata.2017.117",
)
