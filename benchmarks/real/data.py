"""The LGG patients (see SOURCES.md beside them) as a preprocessed nnU-Net data set, with folds by patient and site.

Drawn brains (see brains.py) can take their place, with folds by anatomy, and cases of BraTS (see brats.py).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import SimpleITK as sitk
import torch

from emim_nnunet.cli import convert, plan_and_preprocess
from emim_nnunet.cli._run import run
from emim_nnunet.datasets.dataset import PreprocessedDataset
from emim_nnunet.datasets.preprocessed import open_case
from emim_nnunet.datasets.splits import SPLITS
from emim_nnunet.storage.files import read_json, write_json

DATASET_ID, NAME, PLANS, CONFIGURATION = 501, "LGG", "nnUNetEMIMPlans", "2d_real"
PLANNED = f"{CONFIGURATION}_planned"  # the same with the network that nnU-Net plans for such patches
CHANNELS = ("T1", "T1ce", "FLAIR")
SPACING = (2.0, 2.0, 6.0)  # mm, about: none is published, and the headers say 1
FEATURES = [12, 24, 48, 96, 192]
PLANNED_FEATURES, PLANNED_BLOCKS = [32, 64, 128, 256, 512], [1, 3, 4, 6, 6]  # of nnU-Net's ResEnc presets
PATCH, BATCH = [96, 96], 8
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")

# fold -> sites that only test in it; the search never sees patients of HT, the final test trains on all others
FINAL, SEARCH = 0, 1
TEST_SITE, SEARCH_SITE = "HT", "DU"
COHORT = (2, 3, 4)  # folds of the second hypothesis: patients of all sites learn, other patients of all sites test
PATIENTS = {  # fold -> what learns in it, who tests
    SEARCH: ("search", SEARCH_SITE),
    FINAL: ("final", TEST_SITE),
} | {fold: (f"cohort {fold}", f"all sites, {fold}") for fold in COHORT}
DRAWN = "drawn"  # the site of brains that were drawn; every fold holds out a fifth of the anatomies
BRATS = "brats"  # that of cases of BraTS, so few that there is one fold

# what all arms have in common; the rest are the planner's rules and the methods' defaults
BLOCK: dict[str, Any] = {
    "cell_size": [8, 8],
    "pyramid_levels": [2, 3, 4],
    "projector_widths": [256, 256, 256],  # the planner asks for 512 at least: half the time of a step of this network
    "batch_size": BATCH,
    "cells_per_sample": 72,  # half of the cells of a patch are air
    "num_epochs": 20,
    "num_val_iterations_per_epoch": 12,
    "warmup_epochs": 1,
    "checkpoint_minutes": 3,
    "reconstruction_every": 5,
    "key_momentum": 0.99,  # 0.999 belongs to runs of many more steps
}


def enter(work: Path) -> None:
    """Let nnU-Net's folders of this process and its children lie in ``work``, the folder of data and weights."""
    for name in FOLDERS:
        (work / name).mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(work / name)


def prepare(source: Path, work: Path) -> None:
    """Convert, plan and preprocess the patients that have all three sequences; nothing where that is done.

    Args:
        source: The folder ``lgg`` of the shared data, or one of drawn brains.
        work: The folder of data and weights; :func:`enter` was called with it.

    Raises:
        SystemExit: The data are missing, or a command failed.
    """
    file = preprocessed(work) / f"{PLANS}.json"
    if file.is_file() and "2d" in read_json(file)["configurations"]:
        _write_plans(file, work)
        return
    patients = [folder for folder in sorted(source.glob("*_*")) if _is_complete(folder)]
    if not patients:
        raise SystemExit(f"no patients in {source}: give the folder of the data with --data")
    for folder in patients:
        _copy(folder, work / "source" / folder.name)
    files = {name: f"{{case}}/{{case}}_{name}.nii.gz" for name in (*CHANNELS, "mask")}
    channels = [word for name in CHANNELS for word in ("--channel", f"{name}={files[name]}")]
    label = ["--label", files["mask"], "--classes", "lesion=1"]
    target = ["-d", str(DATASET_ID), "--name", NAME]
    for command, arguments in (
        (convert.main, ["folders", str(work / "source"), *target, *channels, *label]),
        (plan_and_preprocess.main, ["-d", str(DATASET_ID), "-c", "2d", "-gpu_memory_target", "0.5", "-np", "2"]),
    ):
        code = run(command, arguments)
        if code:
            raise SystemExit(code)
    _write_plans(file, work)


def _write_plans(file: Path, work: Path) -> None:
    """Folds and the configuration of the experiment, which may be newer than the preprocessed data."""
    write_json(file.parent / SPLITS, folds(patients_of(work)))
    write_json(file, _with_configurations(read_json(file)), indent=4)


def preprocessed(work: Path) -> Path:
    """The folder of the preprocessed data set."""
    return work / "nnUNet_preprocessed" / f"Dataset{DATASET_ID}_{NAME}"


def patients_of(work: Path) -> list[str]:
    """The names of the patients that :func:`prepare` took."""
    return sorted(path.name for path in (work / "source").iterdir() if path.suffix != ".part")


def folds(patients: list[str]) -> list[dict[str, list[str]]]:
    """The final fold, which tests on a site of its own; that of the search, within the largest other site; and three that
    each hold out a third of the patients, site by site, whom the search did not test on.

    Args:
        patients: Names ``TCGA_<site>_<id>_<date>``, ``drawn_<anatomy>_<number>``, or ``brats_<number>``.

    Returns:
        Folds as in ``splits_final.json``, by :data:`FINAL`, :data:`SEARCH` and :data:`COHORT`.
    """
    if all(name.startswith(DRAWN) for name in patients):
        anatomies = sorted({name.split("_")[1] for name in patients})
        held_out = [anatomies[number :: len(COHORT) + 2] for number in range(len(COHORT) + 2)]
        return [_by_anatomy(patients, fifth) for fifth in held_out]
    if all(name.startswith(BRATS) for name in patients):
        return [{"train": patients[::2], "val": patients[1::2]}]
    seen = [name for name in patients if _site(name) != TEST_SITE]
    within = [name for name in seen if _site(name) == SEARCH_SITE][::2]
    fresh = sorted(set(patients) - set(within))  # by site, because names begin with it
    thirds = [fresh[number :: len(COHORT)] for number in range(len(COHORT))]
    return [
        {"train": seen, "val": [name for name in patients if _site(name) == TEST_SITE]},
        {"train": [name for name in seen if name not in within], "val": within},
        *({"train": [name for name in patients if name not in third], "val": third} for third in thirds),
    ]


def load(names: list[str], channels: Sequence[str] = CHANNELS) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Whole cases: image (slices, C, H, W) float32 as the segmentation stage takes it, and lesion (slices, H, W) bool."""
    kept = [CHANNELS.index(channel) for channel in channels]
    dataset = PreprocessedDataset.find(DATASET_ID, PLANS, CONFIGURATION)
    cases = {}
    for name in names:
        case = dataset.cases[name]
        image, seg = open_case(case.folder, name)
        lesion = torch.from_numpy(seg[:][0] > 0)
        cases[name] = (torch.from_numpy(image[:][kept]).float().movedim(0, 1).contiguous(), lesion)
    return cases


def _site(name: str) -> str:
    return name.split("_")[1]


def _by_anatomy(subjects: list[str], held_out: list[str]) -> dict[str, list[str]]:
    tests = [name for name in subjects if name.split("_")[1] in held_out]
    return {"train": [name for name in subjects if name not in tests], "val": tests}


def _is_complete(folder: Path) -> bool:
    return all((folder / f"{folder.name}_{name}.nii.gz").is_file() for name in (*CHANNELS, "mask"))


def _copy(source: Path, target: Path) -> None:
    if target.is_dir():
        return
    partial = target.with_name(f"{target.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in (*CHANNELS, "mask"):
        image = sitk.ReadImage(source / f"{source.name}_{name}.nii.gz")
        image.SetSpacing(SPACING)
        sitk.WriteImage(image, partial / f"{source.name}_{name}.nii.gz")
    partial.rename(target)


def _with_configurations(plans: dict[str, Any]) -> dict[str, Any]:
    """The plans with the networks of the experiment: nnU-Net's plain one, so small that a step takes a third of a second, and
    its residual one with the widths that it plans.
    """
    planned = plans["configurations"]["2d"]
    residual = _with_stages(planned["architecture"], PLANNED_FEATURES)
    residual["arch_kwargs"] |= {
        "n_blocks_per_stage": PLANNED_BLOCKS,
        "n_conv_per_stage_decoder": [1] * (len(PLANNED_BLOCKS) - 1),
    }
    plain = plain_network(_with_stages(planned["architecture"], FEATURES))
    about = {"inherits_from": "2d", "batch_size": BATCH, "patch_size": PATCH, "emim": planned["emim"] | BLOCK}
    plans["configurations"] |= {
        CONFIGURATION: about | {"architecture": plain},
        PLANNED: about | {"architecture": residual},
    }
    return plans


def plain_network(architecture: dict[str, Any]) -> dict[str, Any]:
    """nnU-Net's plain U-Net with the stages and widths of a planned residual one, an architecture of the plans."""
    changed = deepcopy(architecture)
    stages = changed["arch_kwargs"]["n_stages"]
    changed["network_class_name"] = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
    changed["arch_kwargs"].pop("n_blocks_per_stage")
    changed["arch_kwargs"] |= {"n_conv_per_stage": [2] * stages, "n_conv_per_stage_decoder": [2] * (stages - 1)}
    return changed


def _with_stages(architecture: dict[str, Any], features: list[int]) -> dict[str, Any]:
    """An architecture of the plans with other widths, and as many stages as these are."""
    changed = deepcopy(architecture)
    changed["arch_kwargs"] |= {
        "n_stages": len(features),
        "features_per_stage": features,
        "kernel_sizes": [[3, 3]] * len(features),
        "strides": [[1, 1]] + [[2, 2]] * (len(features) - 1),
    }
    return changed
