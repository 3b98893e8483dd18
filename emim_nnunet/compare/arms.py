"""The arms of a comparison: an arm is an SSL trainer with settings, any checkpoint, or training from scratch."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emim_nnunet.errors import UserError
from emim_nnunet.methods import method_class

SCRATCH = "scratch"
FILE = "file:"


@dataclass(frozen=True)
class Arm:
    """An arm of a comparison.

    Attributes:
        name: A short name, for tables and files.
        method: Class name of the SSL method that is run; None = none.
        settings: Keys of the ``emim`` block that differ from the plans.
        file: A checkpoint that holds the encoder (ours, nnssl's or nnU-Net's), or its folder; None = none. Without method and
            file the training is from scratch.
    """

    name: str
    method: str | None
    settings: dict[str, Any] = field(default_factory=dict)
    file: Path | None = None

    @property
    def pretrained(self) -> bool:
        """Whether the fine-tuning starts from an encoder."""
        return self.method is not None or self.file is not None

    @property
    def trainer(self) -> str | None:
        """Class name of the SSL trainer; None = no SSL stage is run."""
        return None if self.method is None else f"nnUNetTrainer{self.method}Pretrain"


ARMS = {
    arm.name: arm
    for arm in (
        Arm(SCRATCH, None),
        Arm("mim", "MIM"),
        Arm("emim", "EMIM"),
        Arm("moco", "MoCoZCA", {"local_weight": 0.0, "zca": False}),
        Arm("moco_local", "MoCoZCA", {"zca": False}),
        Arm("moco_whitened", "MoCoZCA", {"local_weight": 0.0}),
        Arm("moco_zca", "MoCoZCA"),
        Arm("mask_in_mask", "MaskInMask"),
        Arm("vicreg", "VICReg"),
    )
}
DEFAULT_ARMS = (SCRATCH, "mim", "emim", "moco", "moco_zca", "mask_in_mask")


def parse_arms(texts: Sequence[str]) -> list[Arm]:
    """Read the arms of the command line.

    Args:
        texts: Names of :data:`ARMS`, or ``NAME=METHOD[,KEY=VALUE...]`` with JSON values, or
            ``NAME=file:CHECKPOINT[,KEY=VALUE...]``.

    Raises:
        UserError: A name is unknown, a text is malformed, or two arms have the same name.
    """
    arms = [_parse(text) for text in texts]
    names = [arm.name for arm in arms]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"--arms: {', '.join(twice)} is there twice")
    return arms


def _parse(text: str) -> Arm:
    if "=" not in text:
        if text not in ARMS:
            raise UserError(
                f"--arms {text}: known are {', '.join(ARMS)}; or write NAME=METHOD,KEY=VALUE or NAME=file:PATH"
            )
        return ARMS[text]
    name, definition = text.split("=", 1)
    method, *pairs = re.split(r",(?=\w+=)", definition)
    if not re.fullmatch(r"[A-Za-z][\w-]*", name):
        raise UserError(f"--arms {text}: the name must consist of letters, digits, _ and -")
    if name == SCRATCH:
        raise UserError(f"--arms {text}: {SCRATCH} is training from scratch, choose another name")
    method = re.sub(r"^nnUNetTrainer(\w+)Pretrain$", r"\1", method)
    try:
        settings = {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in pairs)}
    except ValueError as error:
        raise UserError(f"--arms {text}: settings must be KEY=VALUE with JSON values ({error})") from error
    if method.startswith(FILE):
        file = Path(method.removeprefix(FILE)).expanduser()
        if not file.exists():
            raise UserError(f"--arms {text}: {file} does not exist: give a checkpoint, or the folder of its fold")
        return Arm(name, None, settings, file)
    return Arm(name, method_class(method).__name__, settings)
