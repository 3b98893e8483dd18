"""Versions of software, which go into every checkpoint and report."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the result; ``unknown`` in a checkout that is not installed."""
    found = {"python": platform.python_version()}
    for package in ("emim_nnunet", "nnunetv2", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
