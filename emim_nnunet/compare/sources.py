"""Checkpoints that are arms of a comparison: what they say about themselves, and whether they have seen the test cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emim_nnunet.checkpoints.encoder import compare_topology
from emim_nnunet.checkpoints.io import SSL_FORMAT
from emim_nnunet.checkpoints.locate import find_checkpoint
from emim_nnunet.checkpoints.source import read_source
from emim_nnunet.compare.arms import Arm
from emim_nnunet.datasets.dataset import PreprocessedDataset
from emim_nnunet.errors import UserError, counted
from emim_nnunet.storage.files import read_json, sha256_of, write_json


def check_source(arm: Arm, record: Path, data: PreprocessedDataset) -> None:
    """Check the checkpoint of an arm before anything is trained, and record what it says about itself.

    Args:
        arm: An arm with a file.
        record: The JSON file of the record, in an existing folder.
        data: The preprocessed data set of the user.

    Raises:
        UserError: There is no checkpoint, its encoder is not that of the configuration, or the record is of another file.
    """
    assert arm.file is not None
    path = find_checkpoint(arm.file)
    checksum = sha256_of(path)
    if record.is_file():
        if read_json(record)["sha256"] != checksum:
            raise UserError(
                f"--arms {arm.name}: {record.parent.parent} holds a comparison with another file than {path}: give the arm "
                f"another name"
            )
        return
    source = read_source(path)
    differences = compare_topology(source.architecture, data.manager.configuration["architecture"])
    if differences:
        raise UserError(
            f"--arms {arm.name}: the encoder of {path} does not fit {data.configuration}: {'; '.join(differences)}"
        )
    provenance = source.checkpoint.get("provenance", {})
    dataset_name = source.dataset_name or provenance.get("dataset_name")
    cases = source.checkpoint["training_cases"] if source.checkpoint.get("format") == SSL_FORMAT else None
    content = {
        "file": path.name,
        "sha256": checksum,
        "kind": source.kind,
        "epochs": source.epochs,
        "dataset": dataset_name,
        "labelled_cases_seen": None if cases is None else sorted(set(cases) & set(data.labelled_ids)),
    }
    write_json(record, content)


def remark(arm: str, about: dict[str, Any], dataset: str, test: Sequence[str]) -> str:
    """What the report says about the checkpoint of an arm.

    Args:
        arm: The name of the arm.
        about: The record of :func:`check_source`.
        dataset: The name of the data set of the comparison.
        test: Ids of all test cases.
    """
    origin = f"{about['dataset'] or 'an unknown data set'}, {about['epochs'] or 'an unknown number of'} epochs"
    text = (
        f"{arm} is a checkpoint ({about['kind']}, {origin}): the compute of its pretraining is unknown, so not equal."
    )
    if about["dataset"] != dataset:
        return text
    if about["labelled_cases_seen"] is None:
        return f"{text} **It was trained on this data set and may know the test cases.**"
    seen = sorted(set(about["labelled_cases_seen"]) & set(test))
    return f"{text} **It has learnt from the images of {counted(len(seen), 'test case')}.**" if seen else text
