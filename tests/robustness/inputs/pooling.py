"""Raw data sets that ``emim_pool`` cannot put together."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.robustness.inputs.spoiling import edit_json, raw
from tests.robustness.inputs.table import bad
from tests.robustness.world import RAW


@bad("pool", r"needs at least two different data sets")
def pool_of_one(world: Path) -> list[str]:
    return ["-d", "1", "1", "-o", "9"]


@bad("pool", r"-d 55: expected one folder Dataset055_NAME")
def pool_of_unknown(world: Path) -> list[str]:
    return ["-d", "1", "55", "-o", "9"]


def second_raw(world: Path) -> Path:
    """A copy of the raw data set under another id."""
    return Path(shutil.copytree(world / "raw" / RAW, world / "raw" / "Dataset002_Raw"))


@bad("pool", r"--channels PD: the data sets have")
def pool_with_unknown_channel(world: Path) -> list[str]:
    second_raw(world)
    return ["-d", "1", "2", "-o", "9", "--channels", "PD"]


@bad("pool", r"different file endings")
def pool_of_different_endings(world: Path) -> list[str]:
    edit_json(second_raw(world) / "dataset.json", lambda content: content | {"file_ending": ".mha"})
    return ["-d", "1", "2", "-o", "9"]


@bad("pool", r"missing_channels.json must be a JSON object")
def pool_with_broken_missing_channels(world: Path) -> list[str]:
    (second_raw(world) / "missing_channels.json").write_text("[1, 2]")
    return ["-d", "1", "2", "-o", "9"]


@bad("pool", r"_0000.png holds several channels")
def pool_of_colour_pictures(world: Path) -> list[str]:
    for file in (raw(world) / "dataset.json", second_raw(world) / "dataset.json"):
        edit_json(file, lambda content: content | {"file_ending": ".png"})
        (file.parent / "imagesUnlabelled" / "slice_0000.png").write_bytes(b"colours")
    return ["-d", "1", "2", "-o", "9"]


@bad("pool", r"patients.json")
def pool_with_broken_patients(world: Path) -> list[str]:
    (second_raw(world) / "patients.json").write_text("[1, 2")
    return ["-d", "1", "2", "-o", "9"]
