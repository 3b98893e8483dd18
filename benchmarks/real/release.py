"""An encoder to publish with a release: pretrained on drawn brains, which anybody may learn from, and exported with its card.

    python benchmarks/real/release.py FOLDER --device cuda      half an hour of an H100; FOLDER/hub is what is published

80 subjects with four contrasts at 1 mm (see brains.py), planned and preprocessed by the package's commands; nnU-Net's plain 3D
U-Net of that plan. Repeated, it goes on where it was. It shows what a release holds, not that this encoder pays.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tqdm import tqdm

from emim_nnunet.cli import convert, export, plan_and_preprocess, pretrain
from emim_nnunet.cli._run import run
from emim_nnunet.storage.files import read_json, write_json
from emim_nnunet.training.checkpoint import FINAL as FINAL_CHECKPOINT
from emim_nnunet.training.checkpoint import LATEST
from real.brains import CONTRASTS, MAPS, PER_ANATOMY, read_map, write_subject
from real.data import PLANS, enter, plain_network

DATASET_ID, NAME, CONFIGURATION, PLAIN = 502, "DrawnBrains", "3d_fullres", "3d_fullres_plain"
LICENCE = "apache-2.0"  # that of the maps and of this repository
ABOUT_DATA = {
    "licence": "Apache-2.0 (label maps of SynthSeg; the contrasts are drawn on them)",
    "reference": "Billot et al., SynthSeg, Medical Image Analysis 2023, doi:10.1016/j.media.2023.102789",
}


def main() -> None:
    """Draw, convert, plan, pretrain, export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for data, weights and, in hub, what is published")
    parser.add_argument("--maps", type=Path, default=MAPS, help="label maps (default: ../shared/data/synthseg_maps)")
    parser.add_argument("--trainer", default="nnUNetTrainerEMIMPretrain", help="SSL trainer (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=40, help="of 250 steps (default: %(default)s)")
    parser.add_argument("--steps-per-epoch", type=int, default=250, help="default: %(default)s")
    parser.add_argument("--gpu-memory-target", default="8", help="GB that the plan is made for (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=4, help="processes that draw and preprocess (default: %(default)s)"
    )
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"], help="default: cuda")
    arguments = parser.parse_args()
    work = arguments.folder.absolute()
    enter(work)
    prepare(work, arguments.maps, arguments.gpu_memory_target, arguments.workers)
    settings = {"num_epochs": arguments.epochs, "num_iterations_per_epoch": arguments.steps_per_epoch}
    add_configuration(work, settings)
    stage = work / "nnUNet_results" / _dataset() / f"{arguments.trainer}__{PLANS}__{PLAIN}" / "fold_all"
    if not (stage / FINAL_CHECKPOINT).is_file():
        go_on = ["--c"] if (stage / LATEST).is_file() else []
        about = [str(DATASET_ID), PLAIN, "all", "-tr", arguments.trainer, "-p", PLANS, "-device", arguments.device]
        _command(pretrain.main, [*about, *go_on])
    hub = work / "hub"
    if not hub.is_dir():
        _command(export.main, [str(stage), "--hub", str(hub), "--licence", LICENCE, "--half"])


def prepare(work: Path, maps: Path, memory: str, workers: int) -> None:
    """Draw the subjects at 1 mm, and convert, plan and preprocess them; nothing where that is done."""
    files = sorted(maps.glob("*.nii.gz"))
    if not files:
        raise SystemExit(f"no label maps in {maps}: give the folder with --maps")
    keys = [(file, anatomy, number) for anatomy, file in enumerate(files, 1) for number in range(PER_ANATOMY)]
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        running = [pool.submit(_draw, *key, work / "source") for key in keys]
        for future in tqdm(running, desc="subjects", mininterval=5):
            future.result()
    raw = work / "nnUNet_raw" / _dataset()
    if not raw.is_dir():
        channels = [word for name in CONTRASTS for word in ("--channel", f"{name}={{case}}/{{case}}_{name}.nii.gz")]
        _command(convert.main, ["folders", str(work / "source"), "-d", str(DATASET_ID), "--name", NAME, *channels])
    write_json(raw / "dataset.json", read_json(raw / "dataset.json") | ABOUT_DATA, indent=4)
    options = ["-c", CONFIGURATION, "-gpu_memory_target", memory, "-np", str(workers), "-npfp", str(workers)]
    _command(plan_and_preprocess.main, ["-d", str(DATASET_ID), *options])


def _draw(file: Path, anatomy: int, number: int, folder: Path) -> None:
    name = f"drawn_{anatomy:02d}_{number}"
    if not (folder / name).is_dir():
        write_subject(read_map(file), PER_ANATOMY * anatomy + number, name, folder, spacing=1.0, per_slice=1)


def add_configuration(work: Path, settings: dict[str, int]) -> None:
    """Add the configuration that is pretrained: the planned one with nnU-Net's plain network, which is smaller."""
    file = work / "nnUNet_preprocessed" / _dataset() / f"{PLANS}.json"
    plans = read_json(file)
    planned = plans["configurations"][CONFIGURATION]
    plans["configurations"][PLAIN] = {
        "inherits_from": CONFIGURATION,
        "architecture": plain_network(planned["architecture"]),
        "emim": planned["emim"] | settings,
    }
    write_json(file, plans, indent=4)


def _dataset() -> str:
    return f"Dataset{DATASET_ID}_{NAME}"


def _command(main: Any, arguments: list[str]) -> None:
    code = run(main, arguments)
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    main()
