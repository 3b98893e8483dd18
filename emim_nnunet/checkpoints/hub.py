"""A folder that can be uploaded to Hugging Face's Hub, in the layout that nnU-Net's newer commands download.

nnU-Net takes ``adaptation_plan.json``, ``checkpoint_final.pth`` and ``config.json``. Besides there is a model card for people,
and the weights as safetensors for other programs. Nothing names a patient, a path or a computer.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from emim_nnunet.checkpoints.export import ExportSummary, encoder_content
from emim_nnunet.checkpoints.io import save_checkpoint
from emim_nnunet.checkpoints.locate import CHECKPOINT_NAMES
from emim_nnunet.checkpoints.model_card import facts, model_card
from emim_nnunet.checkpoints.source import read_source
from emim_nnunet.errors import UserError
from emim_nnunet.storage.files import atomic_write, new_work_folder, write_json, write_text

PLAN, CONFIG, CARD, TENSORS = "adaptation_plan.json", "config.json", "README.md", "model.safetensors"


def export_hub(checkpoint_path: Path, folder: Path, *, half: bool = False, licence: str | None = None) -> ExportSummary:
    """Write the encoder of an SSL stage as a folder for the Hub.

    Args:
        checkpoint_path: SSL checkpoint.
        folder: The folder; it must be empty, or not exist in a folder that does.
        half: Whether to store float16.
        licence: Identifier of the licence of the weights as the Hub has it, such as ``cc-by-4.0``; None = not stated.

    Returns:
        A summary of the export.

    Raises:
        UserError: The file is no SSL checkpoint, the folder is not empty, or safetensors is not installed; nothing is written
            then.
    """
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise UserError("--hub needs safetensors: pip install emim_nnunet[hub]") from error
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--hub {folder} is not an empty folder: choose another name")
    if not folder.absolute().parent.is_dir():
        raise UserError(f"--hub {folder}: its folder does not exist")
    source = read_source(checkpoint_path)
    content, summary = encoder_content(source, half=half)
    known = facts(source.checkpoint, content, licence)
    work = new_work_folder(folder)
    work.mkdir()
    try:
        save_checkpoint(content, work / CHECKPOINT_NAMES[0])
        tensors = save(_each_once(content["network_weights"]), metadata={"format": "pt"})
        atomic_write(
            work / TENSORS, lambda file: file.write(tensors)
        )  # save_file makes a file that only its owner reads
        write_json(work / PLAN, content["nnssl_adaptation_plan"], indent=1)
        write_json(work / CONFIG, {"library_name": "nnunetv2", "model_type": "nnunet_encoder"} | known, indent=1)
        write_text(work / CARD, model_card(known, content["citations"], folder.absolute().name))
        if folder.exists():
            folder.rmdir()
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return summary


def _each_once(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the first of their names: nnU-Net's modules list a layer two or three times, safetensors takes one."""
    found: dict[Any, str] = {}
    for name, value in weights.items():
        found.setdefault((value.data_ptr(), value.shape), name)
    return {name: weights[name].contiguous() for name in found.values()}
