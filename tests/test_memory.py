"""Memory that is counted without being taken, against memory that is taken."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from measure.data import RES_ENC_L
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from emim_nnunet.methods import method_classes
from emim_nnunet.methods.base import SSLMethod
from emim_nnunet.methods.mask_in_mask import MaskInMask
from emim_nnunet.methods.vicreg import VICReg
from emim_nnunet.networks import in_parts
from emim_nnunet.planners import dry_run, memory
from emim_nnunet.planners.memory import segmentation_gigabytes, ssl_gigabytes  # not what conftest.py puts there
from tests.toy import toy_unet

PATCH = [32, 32, 32]
ARCHITECTURE = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
    "arch_kwargs": RES_ENC_L
    | {
        "n_stages": 4,
        "features_per_stage": [8, 16, 32, 64],
        "kernel_sizes": [[3, 3, 3]] * 4,
        "strides": [[1, 1, 1], *[[2, 2, 2]] * 3],
        "n_blocks_per_stage": [1, 2, 2, 2],
        "n_conv_per_stage_decoder": [1] * 3,
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}
PLAN = {"architecture": ARCHITECTURE, "patch_size": PATCH, "batch_size": 2}
BLOCK = {"cell_size": [8, 8, 8], "pyramid_levels": [1, 2], "projector_widths": [64, 64], "batch_size": 2}
BLOCK |= {"parent_factor": [2, 2, 2], "patches_at_once": 2}
LABELS = LabelManager({"background": 0, "a": 1, "b": 2}, None)
REGIONS = LabelManager({"background": 0, "whole": [1, 2], "core": [2]}, [1, 2])


def profiled_gigabytes(function: Any) -> float:
    """Most that torch's allocator had handed out at once, by torch's own profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 1e9


def test_storages_are_counted_once_and_while_they_live() -> None:
    with memory.LiveStorages() as live:
        a = torch.zeros(1000)  # 4000 bytes in granules of 512
        assert live.bytes == 4096
        view, same = a.view(10, 100), a.add_(1)
        assert live.bytes == 4096
        b = a.double() + 0.5  # 8000 bytes twice, the first of them only for a moment
        assert (live.bytes, live.peak) == (4096 + 8192, 4096 + 2 * 8192)
        del a, view, same
        assert live.bytes == 8192
        del b
        assert (live.bytes, live.peak) == (0, 4096 + 2 * 8192)


def check(count: Callable[[], float], monkeypatch: pytest.MonkeyPatch) -> None:
    """The count with fake tensors is that with real ones, and about what torch's allocator hands out.

    The allocator also serves the work space inside oneDNN's convolutions, which is up to an eighth here.
    """
    counted = count()
    for module in (memory, dry_run):
        monkeypatch.setattr(module, "FakeTensorMode", lambda **options: nullcontext())
    real = []
    profiled = profiled_gigabytes(lambda: real.append(count()))
    assert real == [counted]
    assert 0.98 * counted < profiled < 1.15 * counted


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
def test_segmentation_count_is_what_a_step_takes(labels: LabelManager, monkeypatch: pytest.MonkeyPatch) -> None:
    check(lambda: segmentation_gigabytes(PLAN, 4, labels), monkeypatch)


@pytest.mark.parametrize("method_class", method_classes(), ids=lambda m: m.__name__)
def test_ssl_count_is_what_a_step_takes(method_class: type[SSLMethod], monkeypatch: pytest.MonkeyPatch) -> None:
    check(lambda: ssl_gigabytes(method_class, PLAN, BLOCK, 4), monkeypatch)


@pytest.mark.parametrize("method_class", [MaskInMask, VICReg], ids=lambda m: m.__name__)
def test_patches_in_portions_take_less(method_class: type[SSLMethod]) -> None:
    at_once, in_portions = (ssl_gigabytes(method_class, PLAN, BLOCK | {"patches_at_once": n}, 4) for n in (None, 1))
    assert in_portions < 0.7 * at_once


def test_parts_give_the_same_values_and_gradients() -> None:
    encoder = toy_unet().encoder
    image = torch.randn((3, 4, 16, 16, 16), generator=torch.Generator().manual_seed(0))
    results = []
    for at_once in (None, 5, 2, 1):
        encoder.zero_grad()
        outputs = in_parts(lambda x: tuple(encoder(x)), at_once, image)
        sum(o.square().mean() for o in outputs).backward()
        results.append([*outputs, *[p.grad.clone() for p in encoder.parameters()]])
    for result in results[1:]:
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(results[0], result, strict=True))
