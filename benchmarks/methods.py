"""Figures that show whether the methods do what their papers say, without training anything for long.

    python benchmarks/methods.py --quick --json OUT

Each figure is a function in FIGURES of one number, with the limit it is held to; all data are phantoms.
``--quick`` takes narrower networks and smaller patches: minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from measure.common import markdown_table, write_results
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package of this checkout, installed or not

from emim_nnunet.diagnosis.collapse_monitor import CollapseMonitor
from emim_nnunet.methods.base import MethodOutput, SSLMethod
from emim_nnunet.methods.emim import EMIM
from emim_nnunet.methods.mask_in_mask import MaskInMask
from emim_nnunet.methods.mim import MIM
from emim_nnunet.methods.moco import MoCoZCA
from emim_nnunet.methods.vicreg import VICReg
from emim_nnunet.networks import ZCA
from emim_nnunet.phantom import MODALITIES, make_phantom
from emim_nnunet.randomness import seeded_generator
from emim_nnunet.views.intensity import unchanged_share

SEED, CROPS = 9000, 16
BATCH = 2  # nnU-Net's in 3D: whitening sees so many at once


class Network(NamedTuple):
    """An untrained network as nnU-Net plans it.

    Attributes:
        kind: ``plain`` or ``residual``.
        patch_size: Voxels per axis, two or three of them.
        features: Channels of each stage; all but the first halve the resolution.
    """

    kind: str
    patch_size: tuple[int, ...]
    features: tuple[int, ...]

    def encoder(self) -> Any:
        """The encoder with nnU-Net's initialisation."""
        from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
        from dynamic_network_architectures.initialization.weight_init import InitWeights_He

        torch.manual_seed(SEED)
        stages, axes = len(self.features), len(self.patch_size)
        plain = self.kind == "plain"
        blocks = {"n_conv_per_stage": [2] * stages} if plain else {"n_blocks_per_stage": [1, 3, 4, 6, 6, 6][:stages]}
        unet = (PlainConvUNet if plain else ResidualEncoderUNet)(
            input_channels=len(MODALITIES),
            n_stages=stages,
            features_per_stage=list(self.features),
            conv_op=nn.Conv2d if axes == 2 else nn.Conv3d,
            kernel_sizes=3,
            strides=[[1] * axes] + [[2] * axes] * (stages - 1),
            num_classes=2,
            n_conv_per_stage_decoder=[1] * (stages - 1),
            conv_bias=True,
            norm_op=nn.InstanceNorm2d if axes == 2 else nn.InstanceNorm3d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
            **blocks,
        )
        unet.apply(InitWeights_He(1e-2))
        return unet.encoder


def networks(*, quick: bool) -> list[Network]:
    """Plain and residual, 2D and 3D."""
    flat = ((64, 64), (16, 32, 64, 128, 128)) if quick else ((128, 128), (32, 64, 128, 256, 512, 512))
    deep = ((32, 32, 32), (16, 32, 64, 128)) if quick else ((64, 64, 64), (32, 64, 128, 256, 320))
    return [Network(kind, *plan) for plan in (flat, deep) for kind in ("plain", "residual")]


@cache
def crop(number: int, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """A random crop (1, 4, *size) of a phantom of its own, z-scored in the body, and the body (1, 1, *size) bool."""
    generator = seeded_generator(SEED, number)
    room = [max(24, length * 5 // 4) for length in size]
    shape = room if len(size) == 3 else [24, *room]
    image, _ = make_phantom(SEED + number, (shape[0], shape[1], shape[2]))
    body = (image > 0).any(0)
    mean, std = (np.array([f(channel[body]) for channel in image]) for f in (np.mean, np.std))
    around = (slice(None), *[None] * 3)
    image = np.where(body, (image - mean[around]) / std[around], 0).astype(np.float32)
    if len(size) == 2:
        image, body = image[:, shape[0] // 2], body[shape[0] // 2]
    lower = [int(torch.randint(b - s + 1, (), generator=generator)) for b, s in zip(body.shape, size, strict=True)]
    box = tuple(slice(low, low + length) for low, length in zip(lower, size, strict=True))
    return torch.from_numpy(image[(slice(None), *box)])[None], torch.from_numpy(body[box])[None, None]


def batches(method: SSLMethod, count: int) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
    """Crops with the draws of the method, as its forward takes them."""
    size = method.crop_size(method.config, method.patch_size)
    for first in range(0, count, BATCH):
        numbers = range(first, min(first + BATCH, count))
        images, bodies = (torch.cat(part) for part in zip(*(crop(number, size) for number in numbers), strict=True))
        draws = [
            method.draw(seeded_generator(SEED, number)) | {"subject": torch.tensor([number])} for number in numbers
        ]
        yield images, bodies, {name: torch.cat([d[name] for d in draws]) for name in draws[0]}


def inputs_of(heads: dict[str, nn.Module], method: SSLMethod, count: int) -> dict[str, Tensor]:
    """What enters each of the heads in training, one row per vector."""
    seen: dict[str, list[Tensor]] = {name: [] for name in heads}
    hooks = [
        head.register_forward_pre_hook(lambda module, inputs, name=name: seen[name].append(inputs[0].detach().clone()))
        for name, head in heads.items()
    ]
    with torch.no_grad():
        for batch in batches(method.train(), count):
            method(*batch)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(rows) for name, rows in seen.items()}


def spread(vectors: Tensor) -> float:
    """Mean distance of vectors, (N, D), from their mean, as a share of the length of the mean."""
    mean = vectors.mean(0)
    return ((vectors - mean).norm(dim=1).mean() / mean.norm()).item()


def nearest(queries: Tensor, keys: Tensor) -> float:
    """Share of the queries, (N, D), that are nearer to their own key than to all others, in Euclidean distance."""
    return (torch.cdist(queries, keys).argmin(1) == torch.arange(len(queries))).float().mean().item()


def moco_vectors(network: Network, count: int = CROPS, **settings: Any) -> tuple[float, float]:
    """Spread between crops of what enters MoCo's projector, and the share of views that are nearest to the other view."""
    cell = (8,) * len(network.patch_size)
    config = MoCoZCA.config_class(cell_size=cell, queue_size=CROPS, **settings)
    method = MoCoZCA(network.encoder(), len(MODALITIES), network.patch_size, config)
    rows = inputs_of({"query": method.head, "key": method.momentum.head}, method, count)
    return spread(rows["query"]), nearest(rows["query"], rows["key"])


def moco_spread(*, quick: bool) -> float:
    """Spread between crops of what enters MoCo's projector, lowest over the networks (>= 0.15)."""
    return min(moco_vectors(network, zca=zca)[0] for network in networks(quick=quick) for zca in (False, True))


def moco_nearest(*, quick: bool) -> float:
    """Share of MoCo's views that are nearer to the other view of their crop than to other crops, lowest (>= 0.9)."""
    return min(moco_vectors(network, zca=zca)[1] for network in networks(quick=quick) for zca in (False, True))


def alignment_vectors(network: Network, count: int = CROPS, **settings: Any) -> float:
    """Spread between children of what enters MiM's projectors, per region of a child; the lower one of both pairs."""
    config = MaskInMask.config_class(cell_size=(8,) * len(network.patch_size), **settings)
    method = MaskInMask(network.encoder(), len(MODALITIES), network.patch_size, config)
    return spread_of_children(method, count)


def spread_of_children(method: MaskInMask, count: int) -> float:
    """The same for a method that may have been trained."""
    regions = method.config.alignment_regions ** len(method.patch_size)
    heads = dict(method.child_heads.items())
    per_child = [rows.unflatten(0, (-1, regions)) for rows in inputs_of(heads, method, count).values()]
    return min(sum(spread(region) for region in rows.unbind(1)) / regions for rows in per_child)


def alignment_spread(*, quick: bool) -> float:
    """Spread between children of what enters the projectors of MiM's alignment, lowest over the networks (>= 0.15)."""
    return min(alignment_vectors(network) for network in networks(quick=quick))


def zca_covariance_error(*, quick: bool) -> float:
    """Largest deviation from I of the covariance of whitened rows, shrinkage 0.001, columns of scales 0.5 to 2 (<= 0.05)."""
    count, width, group = (512, 64, 32) if quick else (4096, 320, 32)
    generator = seeded_generator(SEED)
    scales = torch.logspace(-0.3, 0.3, width)
    rows = torch.randn((count, width), generator=generator) * scales[torch.randperm(width, generator=generator)] + 3.0
    white, _ = ZCA(width, group=group, eps=1e-3, num_rows=count)(rows, torch.ones(count))
    parts = white.unflatten(1, (-1, group)).transpose(0, 1)
    return max((torch.cov(part.T, correction=0) - torch.eye(part.shape[1])).abs().max().item() for part in parts)


def unchanged_views(*, quick: bool) -> float:
    """Share of the views of MoCo and VICReg whose intensities are not changed, the higher one (< 0.01)."""
    network, count = networks(quick=True)[0], 250 if quick else 1000
    shares = []
    for method_class in (MoCoZCA, VICReg):
        config = method_class.config_class(cell_size=(8,) * len(network.patch_size))
        method = method_class(network.encoder(), len(MODALITIES), network.patch_size, config)
        draws = [method.draw(seeded_generator(SEED, number)) for number in range(count)]
        views = [torch.cat([d[name] for d in draws]) for name in draws[0] if "intensity" in name]
        shares.append(unchanged_share(*views).item())
    return max(shares)


def fill_distance(*, quick: bool) -> float:
    """How far E-MIM's learned fill with fill_start -3 is from the mean of the body, in its standard deviations (>= 2)."""
    network = networks(quick=True)[0]
    config = EMIM.config_class(
        cell_size=(8,) * len(network.patch_size), fill="learned", fill_start=-3.0, barlow_weight=0.0
    )
    method = EMIM(network.encoder(), len(MODALITIES), network.patch_size, config)
    images, bodies = zip(*(crop(number, network.patch_size) for number in range(4 if quick else CROPS)), strict=True)
    inside = torch.cat(images).transpose(0, 1)[:, torch.cat(bodies)[:, 0]]
    assert method.fill is not None  # it is learned
    return ((method.fill.detach() - inside.mean(1)).abs() / inside.std(1)).min().item()


def whole_head(number: int, size: int) -> Tensor:
    """A slice (4, size, size) of a phantom with noise around it, z-scored over everything, as where nobody set air to 0."""
    generator = seeded_generator(SEED, number)
    image, _ = make_phantom(SEED + number, (24, size, size))
    head = torch.from_numpy(image[:, 8 + number % 8]).float()
    air = 0.02 * head.amax() * torch.randn(head.shape, generator=generator).abs()
    head = torch.where(head > 0, head, air)
    return (head - head.mean((1, 2), keepdim=True)) / head.std((1, 2), keepdim=True)


def outline_flagged(*, quick: bool) -> float:
    """1 where the monitor says that plain MIM learnt the outline only, on whole heads whose air counts as body (1)."""
    network = Network("plain", (64, 64), (8, 16, 32, 64))
    learning, probe, steps, batch = (32, 16, 200, 8) if quick else (128, 32, 800, 8)
    heads = torch.stack([whole_head(number, network.patch_size[0]) for number in range(learning + probe)])
    everything = torch.ones_like(heads[:, :1], dtype=torch.bool)
    method = MIM(network.encoder(), len(MODALITIES), network.patch_size, MIM.config_class(cell_size=(8, 8)))
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    monitor = CollapseMonitor(
        network.patch_size, (8, 8), MODALITIES, seed=SEED, warmup_epochs=0, norm_pix=False, reference=None
    )

    def forward(numbers: list[int], epoch: int) -> MethodOutput:
        draws = [method.draw(seeded_generator(SEED, number, epoch)) for number in numbers]
        return method(heads[numbers], everything[numbers], {k: torch.cat([d[k] for d in draws]) for k in draws[0]})

    for step in range(steps + 1):
        if step % (steps // 4) == 0:
            monitor.start()
            for first in range(learning, learning + probe, batch):
                numbers = list(range(first, first + batch))
                with torch.no_grad():
                    output = forward(numbers, 0)
                monitor.update(numbers, heads[numbers], everything[numbers], output, method.encoder)
            monitor.finish(step // (steps // 4), step)
        numbers = [(step * batch + place) % learning for place in range(batch)]
        optimizer.zero_grad()
        forward(numbers, 1 + step).loss.backward()
        optimizer.step()
    return float(any(finding.rule == "outline_only" for finding in monitor.verdict.findings))


def output_cosine(method: MaskInMask) -> float:
    """Mean cosine between what a child's projector makes of different regions of different children: 1 is a constant."""
    rows = inputs_of(dict(method.child_heads.items()), method, CROPS)["12"]
    with torch.no_grad():
        unit = nn.functional.normalize(method.child_heads["12"](rows), dim=1)
    return ((unit.sum(0).square().sum() - len(unit)) / (len(unit) * (len(unit) - 1))).item()


def alignment_runs(steps: int) -> list[dict[str, Any]]:
    """The forms of MiM's alignment, trained on phantoms: its loss along the way, and the spread before and after."""
    network, runs = Network("plain", (32, 32, 32), (8, 16, 32, 64)), []
    for regions in (1, 2):
        for alignment in ("cosine", "infonce"):
            config = MaskInMask.config_class(cell_size=(8, 8, 8), alignment=alignment, alignment_regions=regions)
            method = MaskInMask(network.encoder(), len(MODALITIES), network.patch_size, config)
            before, losses, rows = spread_of_children(method, CROPS), [], []
            crops = list(batches(method, CROPS))
            optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
            for number in range(steps):
                image, body, draws = crops[number % len(crops)]
                fresh = [method.draw(seeded_generator(SEED, number, sample)) for sample in range(BATCH)]
                output = method(image, body, draws | {key: torch.cat([d[key] for d in fresh]) for key in fresh[0]})
                optimizer.zero_grad()
                output.loss.backward()
                optimizer.step()
                losses.append((output.terms["alignment_12"] + output.terms["alignment_23"]).item() / 2)
                rows.append(output.terms["reconstruction_2"].item())
            tenth = max(steps // 10, 1)
            mean = {
                name: [float(np.mean(v[i : i + tenth])) for i in range(0, steps, tenth)]
                for name, v in (("a", losses), ("r", rows))
            }
            run = {"alignment": alignment, "regions": regions, "losses": mean["a"], "reconstruction": mean["r"]}
            after = {"spread_after": spread_of_children(method, CROPS), "output_cosine": output_cosine(method)}
            runs.append(run | {"spread_before": before} | after)
    return runs


FIGURES: dict[str, Callable[..., float]] = {
    "moco_spread": moco_spread,
    "moco_nearest": moco_nearest,
    "alignment_spread": alignment_spread,
    "zca_covariance_error": zca_covariance_error,
    "unchanged_views": unchanged_views,
    "fill_distance": fill_distance,
    "outline_flagged": outline_flagged,
}
FORMAT = argparse.RawDescriptionHelpFormatter


def main() -> None:
    """Parse, measure, write."""
    listed = "\n".join(f"  {name:22}{(figure.__doc__ or '').splitlines()[0]}" for name, figure in FIGURES.items())
    parser = argparse.ArgumentParser(description=f"{__doc__}\nFigures:\n{listed}", formatter_class=FORMAT)
    parser.add_argument("--quick", action="store_true", help="narrower networks and smaller patches")
    parser.add_argument(
        "--only", nargs="+", choices=list(FIGURES), default=list(FIGURES), help="figures (default: all)"
    )
    parser.add_argument(
        "--alignment-steps", type=int, default=0, help="also train the forms of MiM's alignment so long"
    )
    parser.add_argument("--json", type=Path, help="file for the figures; a .md is written beside it")
    arguments = parser.parse_args()
    result: dict[str, Any] = {name: FIGURES[name](quick=arguments.quick) for name in arguments.only}
    rows = [[name, f"{value:.3f}"] for name, value in result.items()]
    tables = markdown_table(["figure", "value"], rows)
    if arguments.alignment_steps:
        runs = result["alignment_runs"] = alignment_runs(arguments.alignment_steps)
        header = ["alignment", "regions", "spread before", "after", "cosine of outputs", "losses, tenths of the run"]
        lines = [
            [r["alignment"], str(r["regions"])]
            + [f"{r[name]:.3f}" for name in ("spread_before", "spread_after", "output_cosine")]
            + [" ".join(f"{v:.2f}" for v in r[name]) for name in ("losses", "reconstruction")]
            for r in runs
        ]
        tables += "\n" + markdown_table([*header, "reconstruction of level 2"], lines)
    write_results(arguments.json, result, "Whether the methods do what they should", tables)


if __name__ == "__main__":
    main()
