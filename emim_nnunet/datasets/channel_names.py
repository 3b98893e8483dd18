"""Names of channels, and which of them mean the same modality."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from emim_nnunet.errors import UserError

# other names of the same contrast; all other names are compared without case and punctuation
ALIASES = {
    "t1": ("t1w", "t1n", "t1pre", "t1native"),
    "t1ce": ("t1c", "t1gd", "t1post", "t1cw", "t1wce", "t1wgd"),
    "t2": ("t2w",),
    "flair": ("t2f", "t2flair", "flairw"),
}


STANDARD = {alias: name for name, aliases in ALIASES.items() for alias in aliases}


def channel_names(dataset_json: dict[str, Any]) -> list[str]:
    """Read the names of the channels, in nnU-Net's order.

    Args:
        dataset_json: Content of ``dataset.json``; in old data sets the key is ``modality``.

    Raises:
        UserError: The names are no JSON object.
    """
    names: Any = dataset_json.get("channel_names", dataset_json.get("modality"))
    if not isinstance(names, dict):
        raise UserError(f"'channel_names' of dataset.json must be a JSON object, not {type(names).__name__}")
    return [names[key] for key in sorted(names, key=int)]


def standard_name(name: str) -> str:
    """The name by which a modality is recognised: ``T1w``, ``T1`` and ``t1n`` are the same one."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return STANDARD.get(plain, plain)


def any_known(old: Sequence[str], new: Sequence[str]) -> bool:
    """Whether some modality is in both lists, by its standard name."""
    return bool({standard_name(name) for name in old} & {standard_name(name) for name in new})
