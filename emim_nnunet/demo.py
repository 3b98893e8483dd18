"""The demo: runs every command that a user would type, in order, on drawn brains, and writes a report."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import SimpleITK as sitk

from emim_nnunet.anatomy import SPACING, make_brain
from emim_nnunet.datasets.images import read_image_file
from emim_nnunet.errors import UserError
from emim_nnunet.phantom import write_brats2023
from emim_nnunet.storage.files import read_json, write_json
from emim_nnunet.storage.locks import acquire
from emim_nnunet.storage.tables import markdown_table
from emim_nnunet.training.plots import plot_overlay

DATASET_ID, NAME = 991, "DrawnBrains"
DATASET = f"Dataset{DATASET_ID}_{NAME}"
PLANS = "nnUNetEMIMPlans"
NUM_LABELLED, NUM_UNLABELLED = 40, 8
LABELLED = (1, 4, 16)  # numbers of labelled cases of the comparison
SUBSETS = ("T1+T1ce+T2+Flair", "T1+T2+Flair", "T1+T1ce+T2", "T1ce+Flair", "Flair")
MARKER = ".emim_demo"
LABEL_NAMES = {1: "necrotic core", 2: "oedema", 3: "enhancing tumour"}
# what did best on real patients with few labels, see documentation/how-to/few-labelled-cases.md; the comparison adds E-MIM
ARM, PRETRAIN, FINETUNE = "moco_zca", "nnUNetTrainerMoCoZCAPretrain", "nnUNetTrainerLinearFirst"
PRETRAIN_EMIM = "nnUNetTrainerEMIMPretrain"
BASE, GAPS = "2d_demo", "2d_demo_gaps"

# slices, a small network and short schedules, so that two CPU cores are enough; any run can be shortened in this way
DEMO_CONFIGURATION: dict[str, Any] = {
    "inherits_from": "2d",
    "batch_size": 8,
    "patch_size": [64, 48],
    "emim": {
        "cell_size": [8, 8],
        "pyramid_levels": [1, 2, 3],
        "projector_widths": [64, 64, 64],
        "decoder_min_width": 16,
        "batch_size": 12,
        "num_epochs": 12,
        "num_iterations_per_epoch": 25,
        "num_val_iterations_per_epoch": 4,
        "initial_lr": 3e-3,
        "reconstruction_every": 5,
        "checkpoint_minutes": 0,
        "finetune_num_epochs": 5,
        "finetune_num_iterations_per_epoch": 20,
        "finetune_num_val_iterations_per_epoch": 2,
        "finetune_ssl_trainer": PRETRAIN,
    },
}
FEATURES = [16, 32, 64, 128]
Command = Callable[..., None]


def run_demo(output: Path, *, device: str = "cpu", seed: int = 0, overwrite: bool = False) -> Path:
    """Run the whole workflow on drawn brains.

    Args:
        output: The folder to write to; nothing outside it is written.
        device: The device to train on: ``cpu``, ``cuda`` or ``mps``.
        seed: Seed of the brains. Everything else is seeded too: a demo that is repeated on a CPU gives the same numbers.
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

    def call(program: str, *arguments: object) -> None:
        _call(program, [str(a) for a in arguments], environment, output)

    _prepare_data(output, seed, call)
    _train(output, device, call)
    _compare(output, device, call)
    report = output / "report"
    report.mkdir()
    call("emim_report", output / "nnUNet_results" / DATASET, output / "comparison", "-o", report / "report.html")
    print("\n" + write_report(output), flush=True)
    print(f"\nDone in {(monotonic() - start) / 60:.1f} minutes. Look at {report / 'report.html'}", flush=True)
    return report


def _prepare_data(output: Path, seed: int, call: Command) -> None:
    """Draw the brains, convert, plan and preprocess them, and add the small configurations."""
    print(f"Drawing brains with gliomas: {NUM_LABELLED} labelled, {NUM_UNLABELLED} without label", flush=True)
    source, first = output / "source", seed * (NUM_LABELLED + NUM_UNLABELLED)
    write_brats2023(source, NUM_LABELLED, NUM_UNLABELLED, seed=first, draw=make_brain, spacing=SPACING)
    call("emim_convert", "brats2023", source, "-d", DATASET_ID, "--name", NAME)
    planning = ("-c", "2d", "-gpu_memory_target", 1, "-np", 2, "-npfp", 2)
    call("emim_plan_and_preprocess", "-d", DATASET_ID, *planning)
    add_demo_configurations(output / "nnUNet_preprocessed" / DATASET / f"{PLANS}.json", seed)


def _train(output: Path, device: str, call: Command) -> None:
    """Pretrain and segment, segment once more with modality dropout, measure both without some modalities, and predict."""
    common = ("-p", PLANS, "-device", device)
    fold = (DATASET_ID, BASE, 0)
    _at_once(*(partial(call, "emim_pretrain", *fold, "-tr", trainer, *common) for trainer in (PRETRAIN, PRETRAIN_EMIM)))
    encoder, images = output / "encoder.pth", output / "nnUNet_raw" / DATASET / "imagesUnlabelled"
    call("emim_export", _model(output, PRETRAIN, BASE) / "fold_0", "-d", DATASET_ID, "-c", GAPS, "-o", encoder)
    given = ("-pretrained_weights", encoder)
    _at_once(
        partial(call, "emim_train", *fold, "-tr", FINETUNE, *common),
        partial(call, "emim_train", DATASET_ID, GAPS, 0, "-tr", FINETUNE, *common, *given),
    )
    usual, gaps = (
        ("-d", DATASET_ID, "-c", name, "-tr", FINETUNE, "-f", 0, "-device", device, "--disable_tta")
        for name in (BASE, GAPS)
    )
    _at_once(*(partial(call, "emim_evaluate_modalities", *model, "--subsets", *SUBSETS) for model in (usual, gaps)))
    call("emim_predict", "-i", images, "-o", output / "segmentations", *usual)


def _compare(output: Path, device: str, call: Command) -> None:
    """Train from scratch, from the pretrained encoder and from one of E-MIM, all with few labelled cases."""
    stages = {ARM: _model(output, PRETRAIN, BASE), "emim": _model(output, PRETRAIN_EMIM, BASE)}
    pretrained = [f"{name}=file:{folder / 'fold_0'}" for name, folder in stages.items()]
    arms = ("--arms", "scratch", *pretrained, "--labelled", *LABELLED, "--seeds", 0)
    how = ("--evaluate", "linear_first", "--jobs", 2, "-device", device)
    call("emim_compare", DATASET_ID, BASE, "-o", output / "comparison", *arms, *how)


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
        "nnUNet_n_proc_DA": "0",  # no workers beside the training: it is exactly seeded only so
        "nnUNet_def_n_proc": "1",
        "OMP_NUM_THREADS": "1",  # of commands that run at once, which gains more than threads of so small networks
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
    lines = [f"\n$ {' '.join([program, *arguments])}\n"]
    process = subprocess.Popen(
        [script, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            lines.append(line)
            if _worth_showing(line):
                print(f"  {line.rstrip()[:150]}", flush=True)
    finally:
        with log.open("a") as file:  # all at once: another command may be running
            file.writelines(lines)
    if process.wait() != 0:
        raise UserError(f"{program} failed with exit code {process.returncode}: see {log}")
    print(f"  ({program}: {monotonic() - start:.0f} s)", flush=True)


def _at_once(*calls: Callable[[], None]) -> None:
    """Run commands that do not need each other; all come to their end before one that failed ends the demo."""
    with ThreadPoolExecutor(len(calls)) as pool:
        running = [pool.submit(one) for one in calls]
    for future in running:
        future.result()


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


def add_demo_configurations(plans_file: Path, seed: int = 0) -> None:
    """Add ``2d_demo``, a small network on the same preprocessed data, and ``2d_demo_gaps``, which learns to do without.

    Args:
        plans_file: Plans JSON with a ``2d`` configuration; the file is rewritten.
        seed: Seed of both stages.
    """
    plans = read_json(plans_file)
    architecture = deepcopy(plans["configurations"]["2d"]["architecture"])
    kwargs, stages = architecture["arch_kwargs"], len(FEATURES)
    kwargs |= {
        "n_stages": stages,
        "features_per_stage": FEATURES,
        "n_blocks_per_stage": [1] * stages,
        "n_conv_per_stage_decoder": [1] * (stages - 1),
        "kernel_sizes": [[3, 3]] * stages,
        "strides": [[1, 1]] + [[2, 2]] * (stages - 1),
    }
    block = DEMO_CONFIGURATION["emim"] | {"seed": seed, "finetune_seed": seed}
    plans["configurations"][BASE] = DEMO_CONFIGURATION | {"architecture": architecture, "emim": block}
    plans["configurations"][GAPS] = {"inherits_from": BASE, "emim": {"finetune_p_drop_modality": 0.4}}
    write_json(plans_file, plans, indent=4)


def write_report(output: Path) -> str:
    """Collect tables and pictures beside ``report.html``.

    Args:
        output: The folder of a finished demo, with a folder ``report``.

    Returns:
        The tables, which are in ``report/README.md`` too.
    """
    report, comparison = output / "report", output / "comparison"
    results = read_json(comparison / "results.json")
    shutil.copy(comparison / "efficiency.png", report / "label_efficiency.png")
    models = {"usual": _model(output, FINETUNE, BASE), "dropout": _model(output, FINETUNE, GAPS)}
    for name, model in models.items():
        shutil.copy(model / "modality_subsets.png", report / f"modalities_{name}.png")
    shutil.copytree(_model(output, PRETRAIN_EMIM, BASE) / "fold_0" / "reconstructions", report / "reconstructions")
    _draw_overlay(output, models["usual"], report / "overlay.png")
    subsets = {name: read_json(model / "modality_subsets.json")["subsets"] for name, model in models.items()}
    text = "\n".join([*dice_lines(results), "", *missing_lines(subsets, results["cases"]["test"])])
    (report / "README.md").write_text(REPORT.format(text=text), "utf-8")
    return text


def _model(output: Path, trainer: str, configuration: str) -> Path:
    return output / "nnUNet_results" / DATASET / f"{trainer}__{PLANS}__{configuration}"


REPORT = """# Demo report

{text}

- `report.html`: all of it on one page
- `label_efficiency.png`: Dice against the number of labelled cases, from scratch and pretrained
- `modalities_usual.png`, `modalities_dropout.png`: Dice with some of the modalities
- `reconstructions/`: input, masked input, output and error of fixed cases of E-MIM's stage
- `overlay.png`: predicted and true segmentation of a test case
"""


def dice_lines(results: dict[str, Any]) -> list[str]:
    """Say what the pretraining was worth: a Markdown table of the mean Dice, and a sentence that says no more than it.

    Args:
        results: The content of ``results.json`` of the comparison.
    """
    counts, cases = results["labelled"], results["cases"]
    rows = {(row["arm"], row["labelled"]): row for row in results["summary"]}
    arms = list(dict.fromkeys(arm for arm, _ in rows))
    table = [[arm, *(f"{rows[arm, count]['mean']:.3f}" for count in counts)] for arm in arms]
    lines = markdown_table(["Dice with", *(f"{count} labelled" for count in counts)], table)
    said = [_verdict(rows[ARM, count]) for count in counts]
    return [
        *lines,
        "",
        f"Mean of the three regions over {cases['test']} held-out brains; one SSL stage, one draw of labelled cases.",
        *said,
        "These brains are drawn by code: a demo shows how the tools behave, not what pretraining does for patients.",
    ]


def _verdict(row: dict[str, Any]) -> str:
    low, high = row["difference_low"], row["difference_high"]
    word = "is better" if low > 0 else "is worse" if high < 0 else "and scratch are level"
    return (
        f"With {row['labelled']} labelled, pretrained {word}: Dice {row['difference']:+.3f} (95 % interval {low:+.3f} to "
        f"{high:+.3f}), better in {row['better_in']} of {row['num_cases']} cases."
    )


def missing_lines(subsets: dict[str, list[dict[str, Any]]], num_cases: int) -> list[str]:
    """Say what missing modalities cost: a Markdown table of the mean Dice of each model and subset.

    Args:
        subsets: Name of a model -> the rows of its ``modality_subsets.json``.
        num_cases: Number of test cases.
    """
    table = [
        ["+".join(rows[0]["modalities"]), *(f"{row['dice']:.3f}" for row in rows)]
        for rows in zip(*subsets.values(), strict=True)
    ]
    lines = markdown_table(["Dice with", "usual training", "modality dropout"], table)
    note = f"Mean over {num_cases} held-out brains; both from the pretrained encoder, with all labelled cases."
    return [*lines, "", note]


def _draw_overlay(output: Path, model: Path, file: Path) -> None:
    raw = output / "nnUNet_raw" / DATASET
    prediction = min((model / "fold_0" / "validation").glob("*.nii.gz"))
    case = prediction.name.removesuffix(".nii.gz")
    image, reference = _read(raw / "imagesTr" / f"{case}_0003.nii.gz"), _read(raw / "labelsTr" / f"{case}.nii.gz")
    plot_overlay(image, _read(prediction), file, reference=reference, label_names=LABEL_NAMES)


def _read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(read_image_file(path))
