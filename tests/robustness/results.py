"""What a command leaves, without what differs from run to run; and whether a file is whole."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

ENDS = {".png": b"IEND\xaeB`\x82", ".csv": b"\n"}
TIMING = ("seconds", "patches_per_second", "logging")  # nnU-Net's log holds the times of day
IGNORED = (
    ".png",
    ".txt",
    ".tmp",
    ".damaged",
    "checkpoint_previous.pth",
    "checkpoint_latest.pth",
    "debug.json",
    "report.html",
)


def content(folder: Path) -> dict[str, str]:
    """Digests of the results below a folder: weights and numbers of checkpoints, other files byte for byte.

    Logs, pictures and reports are not compared, nor are times (of a change, or that something took) and the place of the
    folder.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.endswith(IGNORED):
            here = _comparable(path).replace(str(folder).encode(), b".")
            found[path.relative_to(folder).as_posix()] = hashlib.sha256(here).hexdigest()
    return found


def difference(expected: dict[str, str], result: dict[str, str]) -> str:
    """In what two results of :func:`content` differ, in words; empty = in nothing."""
    different = sorted(key for key in expected.keys() | result.keys() if expected.get(key) != result.get(key))
    return f"other results in {', '.join(different)}" if different else ""


def _comparable(path: Path) -> bytes:
    if path.suffix == ".pth":
        return _weights_and_numbers(path)
    if path.name == "ssl_log.csv":
        rows = [{k: v for k, v in row.items() if k not in TIMING} for row in csv.DictReader(path.open())]
        return json.dumps(rows).encode()
    if path.suffix == ".checksums":
        record = {name: (size, digest) for name, (size, _, digest) in json.loads(path.read_text()).items()}
        return json.dumps(record).encode()
    if path.name == "seen_files.json":  # a digest of times, and what was seen
        return json.dumps({case: seen for case, (_, seen) in json.loads(path.read_text()).items()}).encode()
    return path.read_bytes()


def _weights_and_numbers(path: Path) -> bytes:
    import torch

    from emim_nnunet.checkpoints.io import read_checkpoint

    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(
                value.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"empty"
            )
        elif isinstance(value, dict):
            for key, item in value.items():
                if key not in (*TIMING, "date"):
                    digest.update(repr(key).encode())
                    add(item)
        elif isinstance(value, list | tuple):
            for item in value:
                add(item)
        else:
            digest.update(repr(value).encode())

    add(read_checkpoint(path))
    return digest.digest()


def broken_files(folder: Path) -> list[str]:
    """Files below a folder that are not whole, hidden ones and hidden folders aside: those are nobody's result."""
    from emim_nnunet.checkpoints.io import read_checkpoint
    from emim_nnunet.datasets.images import stream_damage
    from emim_nnunet.errors import UserError

    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or any(part.startswith(".") for part in Path(name).parts):
            continue
        try:
            if path.suffix == ".pth":
                read_checkpoint(path)
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.name.endswith(".nii.gz") and stream_damage(path):
                raise ValueError(stream_damage(path))
            elif not path.read_bytes().endswith(ENDS.get(path.suffix, b"")):
                raise ValueError("has no end")
        except (UserError, ValueError) as error:
            found.append(f"{name}: {error}")
    return found
