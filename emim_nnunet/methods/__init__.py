"""SSL methods: one file = one method (its loss inside forward) and its frozen config dataclass."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import is_dataclass


def config_classes() -> list[type]:
    """The config dataclasses of all methods, found by walking this package (a new method needs no registration)."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    return [
        item
        for module in modules
        for name, item in vars(module).items()
        if name.endswith("Config") and is_dataclass(item) and item.__module__ == module.__name__
    ]
