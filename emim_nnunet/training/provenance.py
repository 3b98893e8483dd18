"""Where numbers come from: versions and names that go into every checkpoint."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the result; ``unknown`` in a checkout that is not installed."""
    found = {"python": platform.python_version()}
    for package in ("emim_nnunet", "nnunetv2", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def channel_names(dataset_json: dict[str, Any]) -> list[str]:
    """Names of the channels in nnU-Net's order (``modality`` is the name of the key in old data sets)."""
    names = dataset_json.get("channel_names", dataset_json.get("modality"))
    return [names[key] for key in sorted(names, key=int)]
