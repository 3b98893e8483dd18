"""The ``emim`` block of the plans JSON, which holds every setting of the SSL stage and the segmentation stage.

nnU-Net trainers cannot take extra constructor arguments, so settings are keys of a flat ``emim`` block inside a
configuration of the plans. The planner writes what depends on the data; everything else has a default in the config
dataclass that sits beside the code it configures.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from dataclasses import MISSING, fields
from math import isfinite
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from emim_nnunet.errors import UserError
from emim_nnunet.settings.plans import LIMITS, MAX_ENTRIES, inheritance, limit_of

BLOCK = "emim"

Config = TypeVar("Config")


def emim_block(plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """Read the ``emim`` block of a configuration, inheritance resolved.

    nnU-Net merges ``inherits_from`` shallowly, so a child's block would replace its parent's; here the blocks are merged
    key by key, the child's keys winning.

    Args:
        plans: The plans JSON as a dict.
        configuration: Name of a configuration of the plans.

    Returns:
        A new flat dict.

    Raises:
        UserError: The configuration is unknown, inherits from itself, or no configuration in its chain has an ``emim`` block.
    """
    blocks = [link[BLOCK] for link in inheritance(plans, configuration) if BLOCK in link]
    if not blocks:
        raise UserError(
            f"configuration '{configuration}' of plans '{plans.get('plans_name')}' has no '{BLOCK}' block: "
            f"plan with emim_plan_and_preprocess and train with its plans (-p nnUNetEMIMPlans)"
        )
    if not all(isinstance(block, dict) for block in blocks):
        raise UserError(f"the '{BLOCK}' block of configuration '{configuration}' must be a JSON object")
    return {key: value for block in blocks for key, value in block.items()}


def check_known_keys(block: dict[str, Any], config_classes: Iterable[type]) -> None:
    """Refuse keys that belong to no config dataclass.

    Args:
        block: An ``emim`` block, inheritance resolved.
        config_classes: All dataclasses whose fields may be keys of the block.

    Raises:
        UserError: A key is unknown; the message names the unknown keys and all valid ones.
    """
    valid = {field.name for config_class in config_classes for field in fields(config_class)}
    unknown = sorted(set(block) - valid)
    if unknown:
        raise UserError(
            f"unknown key {', '.join(map(repr, unknown))} in the '{BLOCK}' block of the plans; "
            f"valid keys: {', '.join(sorted(valid))}"
        )


def config_from_block(config_class: type[Config], block: dict[str, Any]) -> Config:
    """Build a config dataclass from those keys of the block that are its fields.

    Lists become tuples, whole numbers are accepted where a float is expected; the dataclass checks ranges itself in
    ``__post_init__``.

    Args:
        config_class: A frozen dataclass.
        block: An ``emim`` block, inheritance resolved.

    Raises:
        UserError: A required key is missing, or a value has the wrong type, is not finite or too large to be meant.
    """
    hints = get_type_hints(config_class)
    values = {}
    for field in fields(config_class):  # type: ignore[arg-type]  # typing has no bound for dataclasses
        if field.name in block:
            values[field.name] = _checked(block[field.name], hints[field.name], field.name)
            _check_size(values[field.name], field.name)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"the '{BLOCK}' block of the plans lacks the key '{field.name}': plan again")
    return config_class(**values)


def _checked(value: Any, expected: Any, name: str) -> Any:
    """Turn ``value`` into the annotated type; a value of another type is a UserError that names the key."""
    if get_origin(expected) in (Union, UnionType):
        options = get_args(expected)
        if value is None and NoneType in options:
            return None
        expected = next(option for option in options if option is not NoneType)
    if get_origin(expected) is tuple:
        if isinstance(value, list | tuple) and len(value) <= MAX_ENTRIES:
            return tuple(_checked(item, get_args(expected)[0], name) for item in value)
    elif expected is bool or isinstance(value, bool):
        if expected is bool and isinstance(value, bool):
            return value
    elif expected is float and isinstance(value, int | float):
        return float(value)
    elif isinstance(value, expected):
        return value
    wanted = getattr(expected, "__name__", str(expected))
    if get_origin(expected) is tuple:
        wanted = "list of names" if get_args(expected)[0] is str else "list of numbers"
    raise UserError(f"key '{name}' in the '{BLOCK}' block of the plans must be a {wanted}, not {reprlib.repr(value)}")


def _check_size(value: Any, name: str) -> None:
    """Check that a number, or each number of a tuple, is finite and not larger than its limit."""
    for number in value if isinstance(value, tuple) else [value]:
        if isinstance(number, int | float) and not isinstance(number, bool):
            limit = limit_of(name) if isinstance(number, int) or name in LIMITS else number
            require(isfinite(number), f"{name} must be a finite number, not {number}")
            require(number <= limit, f"{name} must be at most {limit}, not {number}")


def require(condition: bool, message: str) -> None:
    """Raise a UserError about the ``emim`` block unless ``condition`` holds; for range checks in ``__post_init__``."""
    if not condition:
        raise UserError(f"in the '{BLOCK}' block of the plans: {message}")
