"""The table of the features of a data set, and what they are."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from emim_nnunet.checkpoints.encoder import require_finite
from emim_nnunet.checkpoints.source import EncoderSource
from emim_nnunet.classification.features import StageMoments, case_features
from emim_nnunet.classification.regions import Regions
from emim_nnunet.datasets.dataset import PreprocessedDataset
from emim_nnunet.errors import UserError
from emim_nnunet.networks import encoder_of
from emim_nnunet.storage.files import atomic_write, sha256_of, write_json
from emim_nnunet.storage.tables import write_csv
from emim_nnunet.storage.versions import versions

CSV, PARQUET = ".csv", ".parquet"
MEANING = {
    "mean": "mean over the region of the output of the stage",
    "std": "standard deviation over the region of the output of the stage",
    "before": "mean over the region of what enters the last normalisation of the stage",
}


def check_table_file(path: Path) -> None:
    """Whether a table can be written to a file.

    Args:
        path: The file, whose ending says the format.

    Raises:
        UserError: The format is unknown, or nothing here writes it.
    """
    if path.suffix not in (CSV, PARQUET):
        raise UserError(f"-o {path}: the ending must be {CSV} or {PARQUET}")
    if path.suffix == PARQUET and find_spec("pyarrow") is None:
        raise UserError(f"-o {path}: Parquet needs pyarrow (pip install pyarrow); {CSV} needs nothing")


def write_features(
    source: EncoderSource,
    data: PreprocessedDataset,
    path: Path,
    *,
    regions: Regions | None,
    statistics: Sequence[str],
    untrained: bool,
    device: torch.device,
) -> tuple[int, int, list[str]]:
    """Compute the vectors of all cases, and write the table and a JSON file beside it that says what they are.

    Args:
        source: The encoder.
        data: The data set, in the configuration that its voxels were prepared for.
        path: The table, see :func:`check_table_file`.
        regions: Regions besides the body; None = the body alone.
        statistics: What is computed of the features of a region, see :data:`MEANING`.
        untrained: Take the encoder as it was before training, as a control.
        device: The device to compute on.

    Returns:
        Number of rows, number of features, and a line of text for each adaptation of the encoder.

    Raises:
        UserError: The encoder does not fit the data, or a case or a label map cannot be used; nothing has been written then.
    """
    encoder, adapted = _encoder(source, data, untrained=untrained)
    moments = StageMoments(encoder.to(device).eval(), before="before" in statistics)
    rows: list[dict[str, Any]] = []
    for case in tqdm(data.cases.values(), desc="Features", disable=None, leave=False):
        label_map = None if regions is None else regions.label_map(case)
        values = {} if regions is None else regions.values
        found = case_features(moments, data, case, source.patch_size, values, label_map, statistics, device)
        patient = data.patients.get(case.identifier, case.identifier)
        about = {"case": case.identifier, "patient": patient}
        rows += [about | {"region": region} | vector for region, vector in found.items()]
    columns = list(rows[0])
    _write(path, [{column: row.get(column) for column in columns} for row in rows])
    about_all = _about(source, data, regions, statistics, adapted, untrained=untrained)
    stages = [int(width) for width in encoder.output_channels]
    write_json(path.with_suffix(".json"), about_all | {"channels_per_stage": stages, "rows": len(rows)})
    return len(rows), len(statistics) * sum(stages), adapted


def _encoder(source: EncoderSource, data: PreprocessedDataset, *, untrained: bool) -> tuple[Any, list[str]]:
    """The encoder for the channels of the data, in the shape that its checkpoint describes."""
    axes = len(source.patch_size)
    if axes != len(data.manager.patch_size):
        raise UserError(
            f"{source.path} is of a {axes}D network, the configuration '{data.configuration}' of the data is "
            f"{len(data.manager.patch_size)}D: choose another one with -c"
        )
    if untrained:
        return encoder_of(source.fresh_network(len(data.channel_names), seed=0)), []
    encoder, adapted = source.encoder(data.channel_names)
    require_finite(encoder.state_dict(), f"the encoder in {source.path}")
    return encoder, adapted


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == CSV:
        write_csv(path, rows)
        return
    import pandas  # a second to import

    table = BytesIO()
    pandas.DataFrame(rows).to_parquet(table, index=False)
    atomic_write(path, lambda file: file.write(table.getvalue()))


def _about(
    source: EncoderSource,
    data: PreprocessedDataset,
    regions: Regions | None,
    statistics: Sequence[str],
    adapted: list[str],
    *,
    untrained: bool,
) -> dict[str, Any]:
    """Where the features come from; names of files without their folders."""
    checkpoint = source.checkpoint
    return {
        "dataset": data.name,
        "plans": data.plans["plans_name"],
        "configuration": data.configuration,
        "channel_names": data.channel_names,
        "encoder": {
            "file": source.path.name,
            "sha256": sha256_of(source.path),
            "kind": source.kind,
            "method": checkpoint.get("method"),
            "trainer": source.trainer,
            "epochs": source.epochs,
            "dataset": source.dataset_name,
            "plans": source.plans_name,
            "configuration": source.configuration,
            "fold": source.fold,
            "channel_names": source.channel_names,
            "patch_size": list(source.patch_size),
            "adapted": adapted,
            "untrained": untrained,
        },
        "columns": "stage<number>_<statistic>_<channel>",
        "statistics": {name: MEANING[name] for name in statistics},
        "regions": {} if regions is None else {name: list(values) for name, values in regions.values.items()},
        "atlas_sha256": None if regions is None else regions.sha256,
        "versions": versions(),
    }
