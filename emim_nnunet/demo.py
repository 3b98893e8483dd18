"""The demo: runs every command that a user would type, in order, on phantoms, and writes a report."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
from copy import deepcopy
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import SimpleITK as sitk

from emim_nnunet.errors import UserError
from emim_nnunet.phantom import write_brats2023
from emim_nnunet.storage.files import read_json, write_json
from emim_nnunet.storage.locks import acquire
from emim_nnunet.storage.tables import markdown_table
from emim_nnunet.training.plots import plot_overlay

TRAIN_ID, TEST_ID = 991, 992
TRAIN_NAME, TEST_NAME = "Dataset991_Phantom", "Dataset992_PhantomTest"
PLANS = "nnUNetEMIMPlans"
NUM_LABELLED, NUM_UNLABELLED, NUM_TEST = 5, 12, 8
SHAPE = (48, 48, 48)
MARKER = ".emim_demo"
LABEL_NAMES = {1: "necrotic core", 2: "oedema", 3: "enhancing tumour"}

# a small network and short schedules, so that two CPU cores are enough; any run can be shortened in this way
DEMO_CONFIGURATION: dict[str, Any] = {
    "inherits_from": "3d_fullres",
    "batch_size": 2,
    "patch_size": [32, 32, 32],
    "emim": {
        "cell_size": [8, 8, 8],
        "pyramid_levels": [1, 2, 3],
        "projector_widths": [64, 64, 64],
        "batch_size": 4,
        "num_epochs": 10,
        "num_iterations_per_epoch": 40,
        "num_val_iterations_per_epoch": 4,
        "initial_lr": 3e-3,
        "reconstruction_every": 3,
        "checkpoint_minutes": 0,
        "finetune_num_epochs": 10,
        "finetune_num_iterations_per_epoch": 20,
        "finetune_num_val_iterations_per_epoch": 2,
        "finetune_initial_lr": 1e-2,
    },
}
FEATURES, BLOCKS = [8, 16, 32, 64], [1, 1, 1, 1]
RUNS = {"pretrained": ("nnUNetTrainerEMIM", "3d_demo"), "scratch": ("nnUNetTrainerEMIMFinetune", "3d_demo_scratch")}


def run_demo(output: Path, *, device: str = "cpu", seed: int = 0, overwrite: bool = False) -> Path:
    """Run the whole workflow on phantoms.

    Args:
        output: The folder to write to; nothing outside it is written.
        device: The device to train on: ``cpu``, ``cuda`` or ``mps``.
        seed: Seed of the phantoms.
        overwrite: Whether to replace the result of an earlier demo.

    Returns:
        The folder of the report.

    Raises:
        UserError: ``output`` exists or is being written by another process, or a command failed.
    """
    output = output.absolute()
    with acquire(output, f"the demo {output}"):
        return _run_demo(output, device, seed, overwrite)


def _run_demo(output: Path, device: str, seed: int, overwrite: bool) -> Path:
    start = monotonic()
    _prepare_folder(output, overwrite)
    environment = _environment(output)
    raw = output / "nnUNet_raw"
    print(
        f"Writing phantoms: {NUM_LABELLED} labelled, {NUM_UNLABELLED} unlabelled, {NUM_TEST} for the test", flush=True
    )
    write_brats2023(output / "source" / "train", NUM_LABELLED, NUM_UNLABELLED, seed=seed, shape=SHAPE)
    write_brats2023(output / "source" / "test", NUM_TEST, 0, seed=seed + 10_000, shape=SHAPE, first_case=501)

    def call(program: str, *arguments: object) -> None:
        _call(program, [str(a) for a in arguments], environment, output)

    call("emim_convert", "brats2023", output / "source" / "train", "-d", TRAIN_ID, "--name", "Phantom")
    call("emim_convert", "brats2023", output / "source" / "test", "-d", TEST_ID, "--name", "PhantomTest")
    call(
        "emim_plan_and_preprocess", "-d", TRAIN_ID, "-c", "3d_fullres", "-gpu_memory_target", 0.5, "-np", 2, "-npfp", 2
    )
    add_demo_configurations(output / "nnUNet_preprocessed" / TRAIN_NAME / f"{PLANS}.json")
    for name, (trainer, configuration) in RUNS.items():
        call("emim_train", TRAIN_ID, configuration, 0, "-tr", trainer, "-p", PLANS, "-device", device)
        prediction = output / f"prediction_{name}"
        model = ("-d", TRAIN_ID, "-c", configuration, "-tr", trainer, "-p", PLANS, "-f", 0, "-device", device)
        images = raw / TEST_NAME / "imagesTr"
        call("nnUNetv2_predict", "-i", images, "-o", prediction, *model, "--disable_tta", "-npp", 1, "-nps", 1)
    report = write_report(output)
    results = output / "nnUNet_results" / TRAIN_NAME
    call("emim_report", results, *(report / f"metrics_{name}.json" for name in RUNS), "-o", report / "report.html")
    print(f"\nDone in {(monotonic() - start) / 60:.1f} minutes. Look at {report / 'report.html'}", flush=True)
    return report


def _prepare_folder(output: Path, overwrite: bool) -> None:
    if output.exists() and any(output.iterdir() if output.is_dir() else [output]):
        if not (overwrite and (output / MARKER).is_file()):
            raise UserError(f"{output} exists: choose another folder with -o, or --overwrite the result of a demo")
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / MARKER).touch()


def _environment(output: Path) -> dict[str, str]:
    """The environment of this process, with nnU-Net's folders inside the output and settings for a small machine."""
    folders = {name: str(output / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for folder in folders.values():
        Path(folder).mkdir()
    small = {
        "nnUNet_n_proc_DA": "1",
        "nnUNet_def_n_proc": "1",
        "OMP_WAIT_POLICY": "PASSIVE",  # nnU-Net's CPU training uses all cores, so waiting threads must not use any
        "MPLBACKEND": "Agg",
    }
    return os.environ | folders | small


def _call(program: str, arguments: list[str], environment: dict[str, str], output: Path) -> None:
    """Run a console script of this environment; its command line and its output go to ``demo.log``."""
    script = shutil.which(program, path=sysconfig.get_path("scripts")) or shutil.which(program)
    if script is None:
        raise UserError(f"the command {program} is not installed in this environment: pip install emim_nnunet")
    print(f"\n$ {' '.join([program, *arguments])}", flush=True)
    start, log = monotonic(), output / "demo.log"
    with log.open("a") as file:
        file.write(f"\n$ {' '.join([program, *arguments])}\n")
        file.flush()
        process = subprocess.Popen(
            [script, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            if _worth_showing(line):
                print(f"  {line.rstrip()}", flush=True)
    if process.wait() != 0:
        raise UserError(f"{program} failed with exit code {process.returncode}: see the end of {log}")
    print(f"  ({monotonic() - start:.0f} s)", flush=True)


def _worth_showing(line: str) -> bool:
    keys = (
        "SSL stage",
        "Learning from",
        "Measured on",
        "Skill over",
        "Collapse monitor",
        "train_loss",
        "Encoder",
        "Mean Validation",
        "error",
    )
    return any(key in line for key in keys)


def add_demo_configurations(plans_file: Path) -> None:
    """Add ``3d_demo`` and its control ``3d_demo_scratch`` to plans: a small network on the same preprocessed data.

    Args:
        plans_file: Plans JSON with a ``3d_fullres`` configuration; the file is rewritten.
    """
    plans = read_json(plans_file)
    architecture = deepcopy(plans["configurations"]["3d_fullres"]["architecture"])
    kwargs, stages = architecture["arch_kwargs"], len(FEATURES)
    kwargs |= {
        "n_stages": stages,
        "features_per_stage": FEATURES,
        "n_blocks_per_stage": BLOCKS,
        "n_conv_per_stage_decoder": [1] * (stages - 1),
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
    }
    plans["configurations"]["3d_demo"] = DEMO_CONFIGURATION | {"architecture": architecture}
    plans["configurations"]["3d_demo_scratch"] = {"inherits_from": "3d_demo", "emim": {"finetune_init": "scratch"}}
    write_json(plans_file, plans, indent=4)


def write_report(output: Path) -> Path:
    """Collect pictures, the Dice table and the log of the SSL stage in a report.

    Args:
        output: The folder of a finished demo.

    Returns:
        The folder ``report`` in it, with ``README.md``, ``dice.json``, ``overlay_*.png``, ``progress.png``,
        ``ssl_log.csv``, ``collapse_spectrum.png``, ``collapse_report.json`` and ``reconstructions/``.
    """
    from emim_nnunet.nnunet.images import SimpleITKIO
    from emim_nnunet.nnunet.inference import compute_metrics_on_folder
    from emim_nnunet.nnunet.plans import LabelManager

    report = output / "report"
    report.mkdir()
    test = output / "nnUNet_raw" / TEST_NAME
    dataset = read_json(test / "dataset.json")
    labels = LabelManager(dataset["labels"], dataset["regions_class_order"])
    dice: dict[str, Any] = {"num_test_cases": NUM_TEST, "num_labelled": NUM_LABELLED, "num_unlabelled": NUM_UNLABELLED}
    for name in RUNS:
        metrics = compute_metrics_on_folder(
            str(test / "labelsTr"),
            str(output / f"prediction_{name}"),
            str(report / f"metrics_{name}.json"),
            SimpleITKIO(),
            ".nii.gz",
            labels.foreground_regions,
            num_processes=1,
        )
        regions = zip([r for r in dataset["labels"] if r != "background"], labels.foreground_regions, strict=True)
        dice[name] = {
            region: [float(case["metrics"][key]["Dice"]) for case in metrics["metric_per_case"]]
            for region, key in regions
        }
    (report / "dice.json").write_text(json.dumps(dice, indent=2))
    _copy_ssl_results(output, report)
    _draw_overlays(output, report)
    table = dice_table(dice)
    (report / "README.md").write_text(REPORT.format(table=table))
    print("\n" + table, flush=True)
    return report


REPORT = """# Demo report

{table}

- `report.html`: all of it on one page
- `progress.png`, `ssl_log.csv`: the SSL stage, epoch by epoch
- `collapse_spectrum.png`, `collapse_report.json`: whether it has collapsed
- `reconstructions/`: input, masked input, output and error of fixed cases
- `overlay_*.png`: predicted and true segmentation of a test case
- `dice.json`, `metrics_*.json`: every number
"""


def dice_table(dice: dict[str, Any]) -> str:
    """Make a Markdown table of the mean Dice per region, from scratch and pretrained, with the number of cases.

    Args:
        dice: The content of ``dice.json``.

    Returns:
        The table and a line that explains it.
    """
    regions = list(dice["scratch"])
    arms = ("scratch", "pretrained")
    rows = [[name, *(f"{np.nanmean(dice[name][region]):.3f}" for region in regions)] for name in arms]
    lines = markdown_table(["Dice", *regions], rows)
    pairs = zip(_by_case(dice, "pretrained"), _by_case(dice, "scratch"), strict=True)
    better = sum(np.nanmean(pretrained) > np.nanmean(scratch) for pretrained, scratch in pairs)
    note = (
        f"Mean over {dice['num_test_cases']} held-out phantoms, one seed, equal fine-tuning budget; "
        f"{dice['num_labelled'] - 1} labelled training cases, {dice['num_unlabelled']} more without label for the SSL "
        f"stage. Pretrained is better in {better} of {dice['num_test_cases']} cases. A demo shows behaviour, not a benefit: "
        f"nnU-Net's training is not seeded, and the order of the two can change when you repeat it."
    )
    return "\n".join([*lines, "", note])


def _by_case(dice: dict[str, Any], name: str) -> list[tuple[float, ...]]:
    return list(zip(*dice[name].values(), strict=True))


def _copy_ssl_results(output: Path, report: Path) -> None:
    stage = output / "nnUNet_results" / TRAIN_NAME / f"nnUNetTrainerEMIMPretrain__{PLANS}__3d_demo" / "fold_0"
    for name in ("progress.png", "ssl_log.csv", "collapse_spectrum.png", "collapse_report.json"):
        shutil.copy(stage / name, report / name)
    shutil.copytree(stage / "reconstructions", report / "reconstructions")


def _draw_overlays(output: Path, report: Path) -> None:
    test = output / "nnUNet_raw" / TEST_NAME
    reference_file = sorted((test / "labelsTr").glob("*.nii.gz"))[0]
    case = reference_file.name.removesuffix(".nii.gz")
    image = _read(test / "imagesTr" / f"{case}_0003.nii.gz")
    for name in RUNS:
        prediction = _read(output / f"prediction_{name}" / f"{case}.nii.gz")
        plot_overlay(
            image, prediction, report / f"overlay_{name}.png", reference=_read(reference_file), label_names=LABEL_NAMES
        )


def _read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
