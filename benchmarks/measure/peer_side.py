"""The same measurements of nnssl's BaseMAETrainer. Runs in the peer's own environment and imports nothing of this package.

Its code is measured as it is: its trainer, loader, augmentation and command, with the patch, batch and channels that are asked
for; its trainer fixes patch and batch in its constructors, so they are set after construction.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path
from time import perf_counter, process_time, time
from typing import Any

DATASET, CONFIGURATION = "Dataset901_Bench", "onemmiso"
IDENTIFIER = f"nnsslPlans_{CONFIGURATION}"


def data(source: str, cases: int) -> dict[str, Any]:
    """Write a data set in nnssl's preprocessed layout from the images ``source``/N.npy, each (C, *shape)."""
    import numpy as np
    from nnssl.data.dataloading.dataset import nnSSLDatasetBlosc2
    from nnssl.data.raw_dataset import Collection, Dataset, Image, Session, Subject
    from nnssl.experiment_planning.experiment_planners.plan import ConfigurationPlan, Plan

    base = Path(os.environ["nnssl_preprocessed"]) / DATASET
    for name in ("raw", "results"):
        Path(os.environ[f"nnssl_{name}"]).mkdir(parents=True, exist_ok=True)
    base.mkdir(parents=True)
    collection = Collection(901, DATASET, {"0": Dataset("0", "bench")})
    for number in range(cases):
        name = f"case{number:05d}"
        image = Image(name=f"{name}.nii.gz", image_path=f"$nnssl_raw/{name}.nii.gz", modality="T1w")
        collection.datasets["0"].subjects[name] = Subject(name, {"0": Session("0", images=[image])})
    configuration = ConfigurationPlan(
        data_identifier=IDENTIFIER,
        preprocessor_name="DefaultPreprocessor",
        spacing_style=CONFIGURATION,
        normalization_schemes=["ZScoreNormalization"],
        use_mask_for_norm=[True],
        resampling_fn_data="resample_data_or_seg_to_shape",
        resampling_fn_data_kwargs={},
        resampling_fn_mask="resample_data_or_seg_to_shape",
        resampling_fn_mask_kwargs={},
        spacing=[1.0, 1.0, 1.0],
        patch_size=[160, 160, 160],
    )
    plan = Plan(
        DATASET, "nnsslPlans", [1.0] * 3, "SimpleITKIO", [0, 1, 2], [0, 1, 2], {CONFIGURATION: configuration}, "none"
    )
    plan.save_to_file(overwrite=True)
    (base / f"pretrain_data__{CONFIGURATION}.json").write_text(json.dumps(collection.to_dict()))
    for image in collection.to_independent_images():
        array = np.load(Path(source) / f"{int(image.image_name[4:9])}.npy")
        path = base / IDENTIFIER / image.get_output_path("image")
        path.parent.mkdir(parents=True, exist_ok=True)
        blocks, chunks = nnSSLDatasetBlosc2.comp_blosc2_params(array.shape, (160, 160, 160), array.itemsize)
        nnSSLDatasetBlosc2.save_case(array, None, None, {}, str(path), "", "", chunks=chunks, blocks=blocks)
    return {"cases": cases}


def make_trainer(patch: int, batch_size: int, channels: int, device: str, threads: int) -> Any:
    """Make a trainer in nnssl's own way, then set patch, batch and channels."""
    import torch
    from nnssl.run.run_training import get_trainer_from_args

    torch.set_num_threads(threads)
    trainer = get_trainer_from_args(DATASET, CONFIGURATION, "all", "BaseMAETrainer", "nnsslPlans", torch.device(device))
    trainer.config_plan.patch_size = (patch,) * 3
    trainer.total_batch_size = batch_size
    trainer.num_input_channels = trainer.num_output_channels = channels
    return trainer


def step(
    patch: int, batch_size: int, channels: int, device: str, steps: int, warmup: int, threads: int
) -> dict[str, Any]:
    """Measure whole training steps: wall and CPU seconds of each, and the peak memory in bytes."""
    import torch

    trainer = make_trainer(patch, batch_size, channels, device, threads)
    trainer.initialize()
    trainer.network.train()
    image = torch.randn((batch_size, channels, *[patch] * 3), generator=torch.Generator().manual_seed(0))
    wall, cpu = [], []
    for number in range(warmup + steps):
        if device == "cuda":
            torch.cuda.synchronize()
        start, start_cpu = perf_counter(), process_time()
        trainer.train_step({"data": image})
        if device == "cuda":
            torch.cuda.synchronize()
        if number >= warmup:
            wall.append(perf_counter() - start)
            cpu.append(process_time() - start_cpu)
    peak = (
        torch.cuda.max_memory_allocated()
        if device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    parameters = sum(p.numel() for p in trainer.network.encoder.parameters())
    return {"wall": wall, "cpu": cpu, "peak_bytes": peak, "encoder_parameters": parameters}


def loader(patch: int, batch_size: int, patches: int, threads: int) -> dict[str, Any]:
    """Measure in one process the seconds per patch of nnssl's loader with its training augmentation."""
    os.environ["nnUNet_n_proc_DA"] = "0"
    trainer = make_trainer(patch, batch_size, 1, "cpu", threads)
    trainer._set_batch_size()
    batches, _ = trainer.get_dataloaders()
    next(batches)
    seconds = []
    for _ in range(-(-patches // batch_size)):
        start = perf_counter()
        next(batches)
        seconds.append((perf_counter() - start) / batch_size)
    return {"read": seconds}


def start(arguments: list[str]) -> dict[str, Any]:
    """Measure the seconds from the command to the first training step, whose batch is loaded by then.

    Args:
        arguments: The arguments of ``nnssl_train``.
    """
    begun = float(os.environ["BENCHMARK_START"])
    from nnssl.run.run_training import run_training_entry
    from nnssl.training.nnsslTrainer.masked_image_modeling.BaseMAETrainer import BaseMAETrainer

    def first_step(self: Any, batch: dict) -> None:
        print("RESULT " + json.dumps({"seconds": time() - begun}), flush=True)
        os.killpg(os.getpgrp(), signal.SIGKILL)  # the workers of the loader too, which keep our output open

    BaseMAETrainer.train_step = first_step
    sys.argv = ["nnssl_train", *arguments]
    run_training_entry()
    raise RuntimeError("no training step was made")


def versions() -> dict[str, Any]:
    """Versions of the packages in the peer's environment."""
    from importlib.metadata import version

    return {name: version(name) for name in ("nnssl", "torch", "numpy", "dynamic_network_architectures", "blosc2")}


TASKS = {t.__name__: t for t in (data, step, loader, start, versions)}

if __name__ == "__main__":
    print("RESULT " + json.dumps(TASKS[sys.argv[1]](**json.loads(sys.argv[2]))), flush=True)
