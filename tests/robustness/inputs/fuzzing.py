"""Inputs by chance: random bytes in headers, random changes of plans."""

from __future__ import annotations

import gzip
import random
import shutil
from pathlib import Path
from typing import Any

from tests.robustness.inputs.spoiling import convert, edit_plans, image
from tests.robustness.inputs.table import judge_refusal
from tests.robustness.world import command, copy_world, environment, in_child, snapshot
from tests.robustness.world import pretrain as pretraining

MEMORY = 24 << 30  # address space of a fuzzed command: torch alone maps several GB


def fuzz_header(seed: int, world: Path, folder: Path) -> str:
    """A conversion with some random bytes in the header of one image: it is refused, or converts what it could read.

    Returns:
        What was wrong with how it ended; empty = nothing.
    """
    draw = random.Random(seed)
    copy = copy_world(world, folder)
    try:
        file = image(copy, draw.choice(("t1n", "t1c", "t2w", "t2f", "seg")))
        content = bytearray(gzip.decompress(file.read_bytes()))
        for _ in range(draw.choice((1, 2, 4, 16))):
            content[draw.randrange(348)] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))
        file.write_bytes(gzip.compress(bytes(content)))
        return _try_fuzzed("convert", convert(copy), copy)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fuzz_plans(seed: int, world: Path, folder: Path) -> str:
    """A stage whose plans have one or two random changes: it is refused, or trains.

    Returns:
        What was wrong with how it ended; empty = nothing.
    """
    draw = random.Random(seed)
    copy = copy_world(world, folder)
    try:
        edit_plans(copy, lambda plans, tiny: [_spoil(draw, plans) for _ in range(draw.choice((1, 1, 2)))])
        return _try_fuzzed("pretrain", pretraining(), copy)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _spoil(draw: random.Random, plans: Any) -> None:
    """Change, remove or add one value, at a random depth."""
    place = plans
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and draw.random() < 0.85:
            place = place[key]
            continue
        break
    value = draw.choice(
        (None, True, -1, 0, 3, 1e9, 2.5, "", "x", "../x", [], [1], {}, {"a": 1}, [[3, 3]], float("nan"))
    )
    action = draw.choice(("change", "change", "remove", "add"))
    if action == "remove":
        del place[key]
    elif action == "add" and isinstance(place, dict):
        place[draw.choice(("extra", "inherits_from", "previous_stage", "batch_size"))] = value
    else:
        place[key] = value


def _try_fuzzed(name: str, arguments: list[str], copy: Path) -> str:
    before = snapshot(copy)
    outcome = in_child(command(name, arguments), environment(copy), memory=MEMORY)
    if outcome.code == 0:
        after = snapshot(copy)
        changed = [key for key in before if after.get(key) != before[key]]
        return f"changed {changed}" if changed else ""
    return judge_refusal(outcome, before, snapshot(copy))
