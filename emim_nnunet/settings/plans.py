"""What must be true of a plans JSON before anything in it is used: it is a file that others may have written.

Names in it become folders, and names of classes are imported and called; both are held to what nnU-Net's planners write.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from traceback import walk_tb
from types import ModuleType
from typing import Any

from emim_nnunet.errors import UserError

NETWORKS = "dynamic_network_architectures."
IMPORTED = ("torch.nn.", NETWORKS)
FOLDER_NAME = re.compile(r"[\w.+-]+")
READERS = ("dynamic_network_architectures", "nnunetv2")  # packages that read plans
CALLED = ("numpy", "pydoc", "torch")  # packages that they call
OF_A_CALL = ("() ", "callable")  # in messages of Python about the arguments of a call
MADE_OF_PLANS = ("builtins", "dynamic_network_architectures", "torch")  # packages of the classes that plans name
OF_THE_MACHINE = ("CUDA", "NVIDIA", "MPS", "DefaultCPUAllocator")  # in messages of torch that no plans are to blame for
MAX_NUMBER = 1 << 20
MAX_ENTRIES = 100  # of a list
LIMITS = {  # what is larger cannot be meant: it would run for ever, or out of memory, before anybody sees why
    # architecture
    "n_stages": 16,
    "n_blocks_per_stage": 100,
    "n_conv_per_stage": 100,
    "n_conv_per_stage_decoder": 100,
    "features_per_stage": 4096,
    "kernel_sizes": 31,
    "strides": 16,
    # configuration and emim block
    "batch_size": 10_000,
    "patch_size": 4096,
    "cell_size": 4096,
    "parent_factor": 2,
    "num_epochs": 1_000_000,
    "warmup_epochs": 1_000_000,
    "checkpoint_minutes": 1_000_000,
    "seed": (1 << 63) - 1,  # torch's generators take no more
    "cells_per_sample": 100_000,
    "projector_widths": 16_384,
    "projection_width": 16_384,
    "decoder_min_width": 4096,
    "vicreg_width": 16_384,
    "queue_size": 1_000_000,
    "zca_rows": 100_000,
    "zca_group": 4096,
    "local_regions": 64,
    "alignment_regions": 64,
    "level2_children": 64,
    "level3_children": 64,
    "patches_at_once": 10_000,
    "finetune_num_epochs": 1_000_000,
    "finetune_warmup_epochs": 1_000_000,
    "finetune_seed": (1 << 32) - 1,  # numpy's generator takes no more
    # options and tables of commands
    "steps": 10_000_000,
    "patches": 100_000,
    "columns of classes": 100,
}


def check_plans(plans: Any, configuration: str | None = None) -> None:
    """Whether plans are as nnU-Net and this package need them.

    Args:
        plans: The content of a plans JSON.
        configuration: The one that will be used; None = check what holds for all.

    Raises:
        UserError: Naming the key and what is expected there.
    """
    _require(isinstance(plans, dict), "must be a JSON object")
    for key in ("dataset_name", "plans_name"):
        _require_folder_name(plans.get(key), f"'{key}'")
    for key in ("transpose_forward", "transpose_backward"):
        value = plans.get(key, [0, 1, 2])  # export can do without
        _require(isinstance(value, list) and sorted(map(repr, value)) == ["0", "1", "2"], f"'{key}' must order 0, 1, 2")
    configurations = plans.get("configurations")
    _require(isinstance(configurations, dict) and bool(configurations), "'configurations' must be a JSON object")
    for name, content in configurations.items():
        _require_folder_name(name, "the name of a configuration")
        _require(isinstance(content, dict), f"configuration '{name}' must be a JSON object")
    if configuration is not None:
        content = {key: value for link in inheritance(plans, configuration) for key, value in link.items()}
        _check_configuration(content, f"configuration '{configuration}'")


def is_folder_name(value: Any) -> bool:
    """Whether something is a name that a folder or file can have and that leads nowhere else."""
    return isinstance(value, str) and FOLDER_NAME.fullmatch(value) is not None and value.strip(".") != ""


@contextmanager
def planned(what: str, advice: str = "plan again with emim_plan_and_preprocess") -> Iterator[None]:
    """Turn what plans that only look right lead to into a :class:`UserError`; all other errors pass, with their traceback.

    An error is of the plans where a value was refused, where nnU-Net stumbled over one, or where the module of the block did
    while it read them. It is not where other code of this package or a trainer of the user's stumbled, where a call does not
    fit what nnU-Net offers, or where something is missing in it or in torch.

    Args:
        what: The beginning of the message, for example ``the network that the plans describe cannot be built``.
        advice: This says how the user can mend it.

    Raises:
        UserError: With the reason.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not _is_of_the_plans(error):
            raise
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{what} ({type(error).__name__}: {reason}): {advice}") from error


def _is_of_the_plans(error: Exception) -> bool:
    """Whether values in plans caused an error that reached :func:`planned`."""
    text = str(error)
    if any(word in text for word in OF_THE_MACHINE):
        return False
    if isinstance(error, ValueError):
        return True
    names = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
    names = [name for name in names[1:] if name.split(".")[0] not in CALLED]  # the first is this module
    by_reader = names[-1].split(".")[0] in READERS
    by_block = len(set(names)) == 1
    if isinstance(error, ArithmeticError | LookupError | RuntimeError):
        return by_reader or by_block
    if isinstance(error, TypeError):
        return by_reader or (by_block and not any(word in text for word in OF_A_CALL))
    if isinstance(error, AttributeError):
        return by_reader and _can_come_of_plans(error.obj)
    if isinstance(error, ImportError):
        return by_reader and error.name is None  # nnU-Net's own: there is no network of that name
    return by_reader and isinstance(error, AssertionError)


def _can_come_of_plans(value: Any) -> bool:
    """Whether it is a value of a JSON file, or a layer or network of a class that plans name."""
    kind = value if isinstance(value, type) else type(value)
    return not isinstance(value, ModuleType) and kind.__module__.split(".")[0] in MADE_OF_PLANS


def check_architecture(architecture: Any, where: str) -> None:
    """Whether an architecture is one of nnU-Net's and names nothing else to import.

    Args:
        architecture: The architecture of a configuration of the plans.
        where: The configuration or file, for the message.

    Raises:
        UserError: It is not.
    """
    _require(isinstance(architecture, dict), f"'architecture' of {where} must be a JSON object")
    name, kwargs = architecture.get("network_class_name"), architecture.get("arch_kwargs")
    if not isinstance(name, str) or not name.startswith(NETWORKS):
        raise UserError(f"{where} is of a network {name!r}, which is not one of nnU-Net's ({NETWORKS}*)")
    _require(isinstance(kwargs, dict), f"'arch_kwargs' of {where} must be a JSON object")
    imported = architecture.get("_kw_requires_import")
    _require(
        isinstance(imported, list | tuple) and all(isinstance(key, str) for key in imported),
        f"'_kw_requires_import' of {where} must be a list of texts",
    )
    for key in imported:
        value = kwargs.get(key)
        allowed = value is None or (isinstance(value, str) and value.startswith(IMPORTED))
        _require(allowed, f"{where}: '{key}' of the network is {value!r}, only {' and '.join(IMPORTED)}* are imported")
    for key, value in kwargs.items():
        limit = limit_of(key)
        _require(_within(value, limit), f"{where}: '{key}' of the network is out of range, it may be {limit} at most")
    _require(
        "strides" not in kwargs or _are_strides(kwargs["strides"]),
        f"'strides' of {where} must hold a positive whole number, or one per axis, for each stage",
    )


def check_tokens(architecture: dict[str, Any], patch_size: Sequence[int]) -> None:
    """Whether a patch is one that the network of a configuration is made for, where that is made for one, as a Primus is.

    Args:
        architecture: The architecture of the configuration.
        patch_size: Its voxels per axis.

    Raises:
        UserError: It is not.
    """
    token, shape = (architecture["arch_kwargs"].get(key) for key in ("patch_embed_size", "input_shape"))
    if token is None:
        return
    patch = [int(size) for size in patch_size]
    if len(patch) != len(token) or any(p % t for p, t in zip(patch, token, strict=True)):
        raise UserError(f"a patch of {patch} voxels cannot be cut into the network's tokens of {list(token)}")
    if list(shape or []) != patch:
        raise UserError(
            f"'patch_size' is {patch} and 'input_shape' of the network {shape}: its positions are those of one patch, set both"
        )


def _check_configuration(content: dict[str, Any], where: str) -> None:
    _require_folder_name(content.get("data_identifier"), f"'data_identifier' of {where}")
    patch: Any = content.get("patch_size")
    _require(
        isinstance(patch, list) and len(patch) in (2, 3) and all(_is_count(size, "patch_size") for size in patch),
        f"'patch_size' of {where} must be 2 or 3 whole numbers up to {LIMITS['patch_size']}",
    )
    _require(
        _is_count(content.get("batch_size"), "batch_size"),
        f"'batch_size' of {where} must be a whole number up to {LIMITS['batch_size']}",
    )
    spacing: Any = content.get("spacing")
    _require(
        isinstance(spacing, list) and len(spacing) == len(patch) and all(map(_is_positive, spacing)),
        f"'spacing' of {where} must be {len(patch)} positive numbers",
    )
    for key, kind in (("normalization_schemes", str), ("use_mask_for_norm", bool)):
        value = content.get(key)
        right = isinstance(value, list) and bool(value) and all(isinstance(item, kind) for item in value)
        _require(right, f"'{key}' of {where} must be a list with an entry per channel")
    check_architecture(content.get("architecture"), where)


def inheritance(plans: dict[str, Any], configuration: str) -> list[dict[str, Any]]:
    """A configuration and those that it inherits from.

    Args:
        plans: The content of a plans JSON.
        configuration: The name of the configuration.

    Returns:
        Their contents, the most general one first.

    Raises:
        UserError: Unknown configuration, or circular inheritance.
    """
    known = plans["configurations"]
    chain: dict[str, dict[str, Any]] = {}
    name: Any = configuration
    while name is not None:
        if not isinstance(name, str) or name not in known:
            names = ", ".join(known)
            raise UserError(f"plans '{plans.get('plans_name')}' have no configuration '{name}'; they have: {names}")
        if name in chain:
            raise UserError(f"configuration '{configuration}' inherits from itself through '{name}'")
        chain[name] = known[name]
        name = known[name].get("inherits_from")
    return list(chain.values())[::-1]


def _require_folder_name(value: Any, what: str) -> None:
    _require(
        is_folder_name(value), f"{what} must be a name that a folder can have (letters, digits, _ . + -), not {value!r}"
    )


def limit_of(name: str) -> int:
    """The largest value that a number of plans, of the ``emim`` block or of a table may have."""
    return LIMITS.get(name, MAX_NUMBER)


def _is_count(value: Any, name: str) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= limit_of(name)


def _are_strides(value: Any) -> bool:
    """Whether it is a number, or one per axis, for each stage; checkpoints hold tuples too."""
    if not isinstance(value, list | tuple):
        return False
    stages = [stage if isinstance(stage, list | tuple) else [stage] for stage in value]
    return all(stage and all(_is_count(stride, "strides") for stride in stage) for stage in stages)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def _within(value: Any, limit: int) -> bool:
    """Whether all numbers in it are; lists of more than 100 entries are not."""
    if isinstance(value, list | tuple):
        return len(value) <= MAX_ENTRIES and all(_within(item, limit) for item in value)
    return not isinstance(value, int | float) or abs(value) <= limit


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(f"the plans are not as nnU-Net writes them: {message}")
