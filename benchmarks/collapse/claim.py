"""What collapses, and why: position masks, hybrid masks and the positions that a network knows, on real MRI.

    python benchmarks/collapse/claim.py --json OUT            5 seeds, BraTS cases in voxels of 2 mm, CPU
    python benchmarks/collapse/claim.py --quick --json OUT    minutes: shows that it runs, decides nothing

E-MIM (arXiv 2407.10377) says that masked image modelling of multimodal MRI collapses completely under a position mask, and that
the hybrid mask pattern prevents it. Here a transformer (Primus's blocks and patch embedding, every token decoded by itself)
gets no positions, learned or sine-cosine ones, and nnU-Net's plain U-Net gets those that zero padding tells a convolution.
Every finished job is a small file in the folder OUT without its ending, so an interrupted run goes on where it was. One seed
of each network goes on for longer under a position mask.

The criterion, from before the runs: the variance of the prediction between masked cells of a sample, over that of the target,
is below .02 without positions under a position mask, and above .05 with the hybrid mask, in all seeds.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")  # one thread per job; set before torch is imported

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import SimpleITK as sitk
import torch
from claim_report import NETWORKS, SCALES, report, write_picture
from dynamic_network_architectures.architectures.primus import Primus
from experiment import cosine_rate, unet
from measure.common import write_results
from torch import Tensor, nn
from tqdm import tqdm

from emim_nnunet.dataloading.batch import draw
from emim_nnunet.diagnosis.collapse_monitor import update_probe
from emim_nnunet.diagnostics import CollapseProbe, cell_grid, dense_probe, foreground_rows
from emim_nnunet.masking import grid_size, voxels_to_cells
from emim_nnunet.methods.base import SSLMethod
from emim_nnunet.methods.emim import EMIM
from emim_nnunet.networks import PrimusEncoder
from emim_nnunet.randomness import Stream, seeded_generator
from emim_nnunet.storage.files import read_json, write_json
from emim_nnunet.views.augmentation import mirror_

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "brats2023_gli"
CHANNELS = ("t1n", "t1c", "t2w", "t2f")
SPACING = 2.0  # mm
PATCH, CELL, BATCH = (24, 48, 48), (8, 8, 8), 4
WIDTH, DEPTH, HEADS = 128, 4, 4
PROBE_CASES, PROBE_PATCHES = 2, 8  # held-out cases, patches of each
CLASSES = 4  # of the tumour, background included
RATE = 1e-3
STEPS, LONG = 300, 1500  # of a run, and of some that tell a collapse from a slow beginning

MASKS = {
    "position": {"position_ratio": 0.75, "patch_ratio": 0.0, "modality_mask": False},
    "hybrid": {"position_ratio": 0.25, "patch_ratio": 0.5625},  # the same masked fraction
}


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        network: One of :data:`NETWORKS`.
        mask: A key of :data:`MASKS`.
        scale: One of :data:`SCALES`.
        seed: Seed of everything random.
        steps: Number of steps.
    """

    network: str
    mask: str
    scale: str
    seed: int
    steps: int

    @property
    def name(self) -> str:
        """In files."""
        length = "" if self.steps < LONG else f"_{self.steps}steps"
        return f"{self.network}_{self.mask}_{self.scale.split(',')[0]}{length}_seed{self.seed}"


class TokenDecoder(nn.Module):
    """A linear map from the last stage's token to its voxels, the same for all: what it does not hold cannot be decoded."""

    def __init__(self, width: int, num_modalities: int) -> None:
        super().__init__()
        self.head = nn.ConvTranspose3d(width, num_modalities, CELL, stride=CELL)

    def forward(self, features: list[Tensor]) -> Tensor:
        """The patch (B, C, *P) from the outputs of all stages."""
        return self.head(features[-1])


def sin_cos(grid: Sequence[int], width: int) -> Tensor:
    """Sine and cosine of each coordinate at geometric frequencies (arXiv 2111.06377, in 3D): (1, tokens, width) float32."""
    per_axis = width // (2 * len(grid))
    frequencies = 10_000 ** (-torch.arange(per_axis) / per_axis)
    places = torch.cartesian_prod(*[torch.arange(size, dtype=torch.float32) for size in grid])
    angles = (places[..., None] * frequencies).flatten(1)
    code = torch.cat([angles.sin(), angles.cos()], 1)
    return nn.functional.pad(code, (0, width - code.shape[1]))[None]


def make_method(job: Job) -> SSLMethod:
    """E-MIM without PBT around the network of a job."""
    settings = MASKS[job.mask] | {"barlow_weight": 0.0, "fill": "zero", "foreground_only": job.scale == SCALES[0]}
    config = EMIM.config_class(cell_size=CELL, **settings)
    if job.network == "convolution":
        return EMIM(unet(job.seed).encoder, len(CHANNELS), PATCH, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        primus = Primus(
            len(CHANNELS),
            WIDTH,
            CELL,
            CLASSES,
            eva_depth=DEPTH,
            eva_numheads=HEADS,
            input_shape=PATCH,
            use_rot_pos_emb=False,
            use_abs_pos_embed=job.network != "zero",
        )
        if job.network == "sin-cos":
            primus.eva.pos_embed.requires_grad_(False).copy_(sin_cos(grid_size(PATCH, CELL), WIDTH))
        method = EMIM(PrimusEncoder(primus), len(CHANNELS), PATCH, config)
        method.decoder = TokenDecoder(WIDTH, len(CHANNELS))
        method.modelling.hidden_features = (
            True  # as in the paper's code: masked tokens enter, with nothing but their place
        )
    return method


@cache
def cases(data: Path, scale: str) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Labelled cases in voxels of 2 mm: image (4, *S) float32, body (1, *S) bool, label (*S) int64."""
    result = []
    for folder in sorted(data.glob("*TrainingData/*")):
        images = [_resampled(folder / f"{folder.name}-{name}.nii.gz", sitk.sitkLinear) for name in CHANNELS]
        label = _resampled(folder / f"{folder.name}-seg.nii.gz", sitk.sitkNearestNeighbor)
        image = torch.from_numpy(np.stack(images).astype(np.float32))
        body = (image != 0).any(0, keepdim=True)
        if scale == SCALES[0]:
            inside = image[:, body[0]]
            shape = (-1, 1, 1, 1)
            image = (image - inside.mean(1).view(shape)) / inside.std(1).view(shape) * body
        else:
            image = image / image.amax((1, 2, 3), keepdim=True)
        result.append((image, body, torch.from_numpy(label.astype(np.int64))))
    return result


def _resampled(file: Path, interpolator: int) -> np.ndarray:
    image = sitk.ReadImage(file)
    size = [round(length * old / SPACING) for length, old in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    arguments = (image.GetOrigin(), [SPACING] * 3, image.GetDirection(), 0.0, sitk.sitkFloat32)
    return sitk.GetArrayFromImage(sitk.Resample(image, size, sitk.Transform(), interpolator, *arguments))


def patches(chosen: Sequence[tuple[Tensor, ...]], seed: int, index: Sequence[int]) -> list[Tensor]:
    """Patches around voxels of the body: image (B, 4, *P), body (B, 1, *P), label (B, *P), case (B,)."""
    found: list[list[Tensor]] = [[], [], [], []]
    for number in index:
        generator = seeded_generator(seed, Stream.ORDER, number)
        case = int(torch.randint(len(chosen), (), generator=generator))
        image, body, label = chosen[case]
        voxels = body[0].nonzero()
        middle = voxels[int(torch.randint(len(voxels), (), generator=generator))]
        starts = [int(min(max(m - p // 2, 0), s - p)) for m, p, s in zip(middle, PATCH, body.shape[1:], strict=True)]
        box = (..., *[slice(start, start + size) for start, size in zip(starts, PATCH, strict=True)])
        for values, new in zip(found, (image[box], body[box], label[box], torch.tensor(case)), strict=True):
            values.append(new)
    return [torch.stack(values) for values in found]


def run_job(job: Job, data: Path, file: Path) -> None:
    """Train the network of a job, measure it ten times and at the end probe its features; write the numbers to ``file``."""
    torch.set_num_threads(1)
    everything = cases(data, job.scale)
    training, held_out = everything[:-PROBE_CASES], everything[-PROBE_CASES:]
    method = make_method(job)
    optimizer = torch.optim.AdamW(method.parameters(), lr=RATE, weight_decay=0.05, betas=(0.9, 0.95))
    measure = partial(_measure, method, held_out, job.seed)
    history = [{"step": 0} | measure(first=True)]
    for step in range(job.steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(step, job.steps, RATE)
        index = list(range(step * BATCH, (step + 1) * BATCH))
        image, body, _, _ = patches(training, job.seed, index)
        mirror_([image, body], index, job.seed)
        optimizer.zero_grad()
        method(image, body, draw(method, job.seed, index)).loss.backward()
        nn.utils.clip_grad_norm_(method.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % max(1, job.steps // 10) == 0:
            history.append({"step": step + 1} | measure())
    method.eval()
    about = {"network": job.network, "mask": job.mask, "scale": job.scale, "seed": job.seed, "steps": job.steps}
    write_json(file, about | {"history": history, "probe_r2": _probe(method, everything, job.seed)}, indent=1)


@torch.no_grad()
def _measure(
    method: SSLMethod, held_out: Sequence[tuple[Tensor, ...]], seed: int, *, first: bool = False
) -> dict[str, Any]:
    """Loss, skill and ``within`` on fixed patches of held-out cases; at first the losses of the baselines too."""
    probe = CollapseProbe(grid_size(PATCH, CELL), CHANNELS, 0, CELL if first else None)
    method.eval()
    for start in range(0, PROBE_CASES * PROBE_PATCHES, BATCH):
        index = list(range(start, start + BATCH))
        image, body, _, _ = patches(held_out, seed + 1_000_000, index)
        update_probe(probe, index, image, body, method(image, body, draw(method, 1_000_000, index)), method.encoder)
    method.train()
    found = probe.measure()
    scores = found["reconstruction"]["all"]
    result = {key: scores[key] for key in ("loss", "collapsed_loss", "skill", "within")}
    result["effective_rank"] = found["stages"][-1]["effective_rank"]
    return result | ({"baselines": found["baselines"]["all"]} if first else {})


@torch.no_grad()
def _probe(method: SSLMethod, everything: Sequence[tuple[Tensor, ...]], seed: int) -> float:
    """R2 of a linear map from the last stage to the share of each tumour class in a cell, split by case."""
    image, body, label, case = patches(everything, seed + 2_000_000, range(10 * len(everything)))
    classes = nn.functional.one_hot(label, CLASSES).movedim(-1, 1).float()
    features = torch.cat([method.encoder(part)[-1] for part in image.split(BATCH)])
    grid = grid_size(PATCH, CELL)
    rows, present = foreground_rows(features, body, grid)
    targets = voxels_to_cells(classes, cell_grid(features.shape[2:], grid)).flatten(2).transpose(1, 2)[present]
    patients = case[:, None].expand_as(present)[present]
    return float(dense_probe(rows.numpy(), targets.numpy(), patients.numpy()))


def main() -> None:
    """Read the options, run the jobs that are missing, and write table and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, metavar="OUT", help="where to write the results")
    parser.add_argument("--quick", action="store_true", help="one seed, 20 steps, z-scored images")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (default: 5)")
    parser.add_argument("--data", type=Path, default=DATA, help="BraTS cases (default: ../shared/data/brats2023_gli)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="jobs at a time (default: cores)")
    parser.add_argument("--report", action="store_true", help="run nothing, write table and picture of what is there")
    arguments = parser.parse_args()
    folder = arguments.json.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    seeds, scales, steps = (1, SCALES[:1], 20) if arguments.quick else (arguments.seeds, SCALES, STEPS)
    jobs = [Job(n, m, s, seed, steps) for seed in range(seeds) for s, n, m in product(scales, NETWORKS, MASKS)]
    jobs += [] if arguments.quick else [Job(network, "position", SCALES[0], 0, LONG) for network in NETWORKS]
    jobs = [job for job in jobs if not (folder / f"{job.name}.json").is_file()]
    if jobs and not arguments.report:
        if not cases(arguments.data, SCALES[0]):
            parser.error(f"--data: no BraTS cases in {arguments.data}")
        with ProcessPoolExecutor(arguments.workers, get_context("spawn")) as pool:
            running = [pool.submit(run_job, job, arguments.data, folder / f"{job.name}.json") for job in jobs]
            for future in tqdm(as_completed(running), total=len(running), mininterval=5):
                future.result()
    results = [read_json(file) for file in sorted(folder.glob("*_seed*.json"))]
    summary, text = report(results)
    write_results(arguments.json, summary, "What collapses, and why", text)
    write_picture(results, arguments.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
