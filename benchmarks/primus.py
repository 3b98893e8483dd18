"""What a step of MIM and of E-MIM costs on nnU-Net's Primus, with all tokens and with the visible ones alone, and on ResEnc-L.

    python benchmarks/primus.py --json OUT                              64^3, CPU: some minutes
    python benchmarks/primus.py --json OUT -device cuda --patch 128     bfloat16, as SSL stages on GPUs

MIM masks 75 % of the cells; E-MIM has its planned masks, and encodes the whole image once more for Barlow twins. Figures are
medians. Memory is counted as the planner does, weights, gradients and optimiser included, and on a GPU measured beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from measure.common import markdown_table, write_results

from emim_nnunet.checkpoints.adaptation_plan import architecture_of
from emim_nnunet.checkpoints.network import planned_method
from emim_nnunet.compare.compute import visible_share
from emim_nnunet.methods.base import SSLMethod
from emim_nnunet.methods.emim import EMIM
from emim_nnunet.methods.mim import MIM
from emim_nnunet.networks.backbones import BACKBONES, primus_architecture
from emim_nnunet.planners.memory import ssl_gigabytes

CELL = 8
SETTINGS: dict[type[SSLMethod], dict[str, Any]] = {
    MIM: {"mask_ratio": 0.75},
    EMIM: {"pyramid_levels": (1, 3), "projector_widths": (512, 512)},
}


def main() -> None:
    """Read the options, measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, metavar="OUT", help="where to write the results")
    parser.add_argument("--backbone", default="primus_m", choices=list(BACKBONES), help="default: primus_m")
    parser.add_argument("--patch", type=int, default=64, help="side of the patch (default: 64)")
    parser.add_argument("--channels", type=int, default=4, help="default: 4")
    parser.add_argument("--batch", type=int, default=1, help="default: 1")
    parser.add_argument("--steps", type=int, default=3, help="steps of each, after one more to warm up (default: 3)")
    parser.add_argument("-device", default="cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    shape = [arguments.patch] * 3
    architectures = {
        "ResEnc-L": architecture_of({"arch_class_name": "ResEncL", "arch_kwargs": None}, shape, "the table"),
        arguments.backbone: primus_architecture(arguments.backbone, shape),
    }
    cases = [
        (name, method, tokens)
        for name in architectures
        for method in SETTINGS
        for tokens in (("visible", "all") if name == arguments.backbone else ("",))
    ]
    rows = []
    for name, method, tokens in cases:
        rows.append(measure(architectures[name], method, tokens, arguments) | {"network": name, "tokens": tokens})
        print(rows[-1], flush=True)
    dense = {row["method"]: row["seconds"] for row in rows if row["tokens"] == "all"}
    text = markdown_table(
        ["network", "method", "tokens that enter", "s a step", "of all tokens", "GB counted", "GB measured"],
        [
            [
                row["network"],
                row["method"],
                f"{row['tokens']} ({row['share']:.0%})" if row["tokens"] else "",
                f"{row['seconds']:.2f}",
                f"{row['seconds'] / dense[row['method']]:.2f}",
                f"{row['counted']:.1f}",
                "" if row["measured"] is None else f"{row['measured']:.1f}",
            ]
            for row in rows
        ],
    )
    title = f"Primus: {arguments.patch}^3, {arguments.channels} channels, batch {arguments.batch}, {arguments.device}"
    write_results(arguments.json, {"rows": rows}, title, text)


def measure(
    architecture: dict[str, Any], method_class: type[SSLMethod], tokens: str, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Seconds and GB of a step, forward to optimiser, of one network."""
    shape, settings = [arguments.patch] * 3, SETTINGS[method_class]
    config = method_class.config_class(cell_size=(CELL,) * 3, **settings)
    device = torch.device(arguments.device)
    method: Any = planned_method(method_class, architecture, arguments.channels, shape, config, seed=0)
    share = visible_share(method) if tokens == "visible" else 1.0
    method.modelling.hidden_features = tokens == "all"
    plan = {"architecture": architecture, "patch_size": shape}
    block = {"cell_size": [CELL] * 3, "batch_size": arguments.batch} | settings
    counted = ssl_gigabytes(method_class, plan, block, arguments.channels, share=share)
    method.to(device)
    optimizer = torch.optim.AdamW(method.parameters(), fused=True)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(arguments.batch, arguments.channels, *shape, generator=generator).to(device)
    body = torch.ones(arguments.batch, 1, *shape, dtype=torch.bool, device=device)

    def step() -> None:
        samples = [method.draw(generator) | {"subject": torch.tensor([i])} for i in range(arguments.batch)]
        draws = {key: torch.cat([sample[key] for sample in samples]).to(device) for key in samples[0]}
        half = torch.autocast("cuda", dtype=torch.bfloat16) if device.type == "cuda" else nullcontext()
        with half:
            loss = method(image, body, draws).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    seconds = [timed(step, device) for _ in range(arguments.steps + 1)][1:]
    measured = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None
    if device.type == "cuda":
        del method, optimizer
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    result = {"method": method_class.__name__, "share": share, "seconds": median(seconds), "all_seconds": seconds}
    return result | {"counted": counted, "measured": measured}


def timed(step: Callable[[], None], device: torch.device) -> float:
    """Seconds of a step, with all that it started on the device."""
    start = perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - start


if __name__ == "__main__":
    main()
