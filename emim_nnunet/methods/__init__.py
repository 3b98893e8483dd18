"""SSL methods: one file = one method (its loss inside forward) and its frozen config dataclass; beside them parts of methods.

What several methods have is in ``masked_modelling``; ``mask_in_mask_levels`` belongs to ``mask_in_mask``.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from emim_nnunet.errors import UserError
from emim_nnunet.methods.base import SSLConfig, SSLMethod


def config_classes() -> list[type[SSLConfig]]:
    """The config dataclasses of all methods."""
    return list(dict.fromkeys(method.config_class for method in method_classes()))


def method_classes() -> list[type[SSLMethod[Any]]]:
    """All SSL methods: the classes that the modules of this package define (a new one needs no registration)."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    return [
        item
        for module in modules
        for item in vars(module).values()
        if isinstance(item, type) and item.__module__ == module.__name__
        if issubclass(item, SSLMethod) and hasattr(item, "config_class")
    ]


def method_class(name: str) -> type[SSLMethod[Any]]:
    """The method of that class name, as a checkpoint records it.

    Args:
        name: Name of a class, as ``EMIM``.

    Raises:
        UserError: No method has that name.
    """
    found = {item.__name__: item for item in method_classes()}
    if name not in found:
        raise UserError(f"this version knows no SSL method '{name}'; it knows {', '.join(sorted(found))}")
    return found[name]


def papers_of(name: str) -> list[str]:
    """What to cite for a method; nothing for an encoder that is not of one of ours.

    Args:
        name: Name of a class, or what else an encoder says about its origin.
    """
    return [method.paper for method in method_classes() if method.__name__ == name]
