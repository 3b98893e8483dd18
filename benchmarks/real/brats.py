"""Labelled cases of BraTS in the files of the LGG patients: the same three sequences, slices as thick, whole tumours.

    python benchmarks/real/brats.py FOLDER      in the files that run.py takes with --data FOLDER

The brains have no skulls, and most cases of the shared data are slabs around the tumour. BraTS and the LGG patients come from
TCGA in part, so that a patient may be in both.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import SimpleITK as sitk

from real.brains import resampled
from real.data import BRATS, SPACING

SOURCE = Path(__file__).resolve().parents[3] / "shared" / "data" / "brats2023_gli"
FILES = {"T1": "t1n", "T1ce": "t1c", "FLAIR": "t2f", "mask": "seg"}


def main() -> None:
    """Write every case that has a label."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write; cases that are there stay")
    parser.add_argument("--source", type=Path, default=SOURCE, help="BraTS (default: ../shared/data/brats2023_gli)")
    arguments = parser.parse_args()
    labels = sorted(arguments.source.rglob("*-seg.nii.gz"))
    if not labels:
        parser.error(f"no *-seg.nii.gz in {arguments.source}: give the folder with --source")
    for label in labels:
        write_case(label.parent, arguments.folder)


def write_case(source: Path, folder: Path) -> None:
    """Write a case as ``brats_<number>``, see :func:`data.prepare`.

    Args:
        source: The folder ``BraTS-GLI-<number>`` of the case.
        folder: Gets a folder with the files ``<name>_<sequence>.nii.gz`` and ``<name>_mask.nii.gz``.
    """
    name = f"{BRATS}_{source.name.removeprefix('BraTS-GLI-')}"
    target = folder / name
    if target.is_dir():
        return
    partial = target.with_name(f"{name}.part")
    partial.mkdir(parents=True, exist_ok=True)
    for kind, ending in FILES.items():
        image = sitk.ReadImage(source / f"{source.name}-{ending}.nii.gz", sitk.sitkFloat32)
        voxels = sitk.GetArrayFromImage(image)
        sizes = zip(image.GetSize(), image.GetSpacing(), SPACING, strict=True)
        shape = [max(1, round(number * own / wanted)) for number, own, wanted in sizes][::-1]
        inside = resampled((voxels > 0).astype(np.float32), shape) > 0.5
        coarse = inside.astype(np.uint8) if kind == "mask" else resampled(voxels, shape) * inside
        written = sitk.GetImageFromArray(coarse)
        written.SetSpacing(SPACING)
        sitk.WriteImage(written, partial / f"{name}_{kind}.nii.gz")
    partial.rename(target)


if __name__ == "__main__":
    main()
