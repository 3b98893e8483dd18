"""What a checkpoint of ours must hold. It is checked before use, because others may have written the file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from emim_nnunet.errors import UserError

Check = Callable[[Any], bool]


def _is(*kinds: type) -> Check:
    return lambda value: isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))


def _count(value: Any) -> bool:
    return _is(int)(value) and value >= 0


def _list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _dict_of(check: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(isinstance(k, str) and check(v) for k, v in value.items())


def _with(**checks: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(k in value and check(value[k]) for k, check in checks.items())


def _and(first: Check, second: Check) -> Check:
    return lambda value: first(value) and second(value)


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _names_channels(dataset_json: Any) -> bool:
    """Whether a ``dataset.json`` gives each channel a name, with the channels numbered from 0."""
    if not isinstance(dataset_json, dict):
        return False
    names: Any = dataset_json.get("channel_names", dataset_json.get("modality"))
    return _dict_of(_is(str))(names) and sorted(names) == sorted(map(str, range(len(names))))


COUNT = (_count, "a whole number")
TEXT = (_is(str), "text")
TEXTS = (_list_of(_is(str)), "a list of texts")
TENSORS = (_dict_of(_is(Tensor)), "tensors by name")
VERSIONS = (_dict_of(_is(str)), "texts by name")
Schema = dict[str, tuple[Check, str]]
SSL: Schema = {  # what is needed to take the encoder; the rest may have been left out of a file that is shared
    "method": TEXT,
    "trainer_name": TEXT,
    "network_weights": TENSORS,
    "current_epoch": COUNT,
    "finished": (_is(bool), "true or false"),
    "plans": (_with(configurations=_is(dict), plans_name=_is(str), dataset_name=_is(str)), "plans"),
    "configuration": TEXT,
    "fold": (_is(int, str), "a number or text"),
    "dataset_json": (_names_channels, "a dataset.json"),
    "emim": (_dict_of(lambda value: True), "settings by name"),
    "channel_names": TEXTS,
    "training_cases": TEXTS,
    "seed": COUNT,
    "versions": VERSIONS,
}
CONTINUED: Schema = {  # what is needed in addition to continue a stage
    "optimizer_state": (_with(state=_is(dict), param_groups=_list_of(_is(dict))), "the state of an optimiser"),
    "grad_scaler_state": (_or_none(_is(dict)), "the state of a scaler, or null"),
    "iteration": COUNT,
    "records": (_list_of(_with(loss=_is(Tensor), terms=_dict_of(_is(Tensor)))), "losses of steps"),
    "seconds": (_is(int, float), "a number"),
    "skipped_steps": COUNT,
    "history": (_list_of(_and(_dict_of(_is(int, float)), _with(epoch=_count))), "rows of numbers, each with its epoch"),
    "collapse": (_list_of(_with(epoch=_count, level=_is(str), stages=_list_of(_is(dict)))), "measurements of epochs"),
    "validation_cases": TEXTS,
}
EXPORT: Schema = {
    "network_weights": TENSORS,
    "nnssl_adaptation_plan": (_is(dict), "an adaptation plan"),
    "provenance": (
        _with(method=_is(str), current_epoch=_count, finished=_or_none(_is(bool)), num_training_cases=_or_none(_count)),
        "where the encoder comes from",
    ),
}
OPTIONAL: Schema = {
    "case_digests": VERSIONS,
    "settings": (_dict_of(lambda value: True), "settings by name"),
    "validation_cases": TEXTS,
}


def check_content(content: dict[str, Any], schema: Schema, where: str) -> None:
    """Check that a checkpoint holds everything that this package reads from it, with the right types.

    Args:
        content: The content of the checkpoint.
        schema: Key -> a check of the value, and words for what passes it.
        where: Name of the file, for the message.

    Raises:
        UserError: A key is missing or has a wrong type; the message names it.
    """
    missing = [key for key in schema if key not in content]
    if missing:
        raise UserError(f"{where} is damaged or no checkpoint of this kind: it lacks {', '.join(missing)}")
    for key, (check, kind) in (schema | OPTIONAL).items():
        if key in content and not check(content[key]):
            raise UserError(f"{where} is damaged or no checkpoint of this kind: '{key}' must be {kind}")
