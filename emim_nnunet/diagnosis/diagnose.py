"""``emim_diagnose``: the collapse monitor for any checkpoint of a training that is over."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from emim_nnunet.checkpoints.source import EncoderSource
from emim_nnunet.diagnosis.collapse_report import report, table, write_csv, write_picture, write_report
from emim_nnunet.diagnosis.measurement import Measurement
from emim_nnunet.diagnosis.probe_data import ProbeData
from emim_nnunet.diagnosis.subjects import Subject, mask_cell_size, subjects
from emim_nnunet.diagnostics import Thresholds, Verdict, judge
from emim_nnunet.errors import UserError
from emim_nnunet.storage.versions import versions

logger = logging.getLogger(__name__)
ONE_LOOK = Thresholds(patience=1, patience_steps=0)  # a checkpoint is measured once, so there is no history


def diagnose(
    source: EncoderSource,
    data: ProbeData,
    output: Path,
    *,
    compare: EncoderSource | None = None,
    probe: bool = False,
    num_patches: int = 32,
    seed: int = 0,
    device: torch.device,
) -> tuple[Verdict, list[str]]:
    """Measure a checkpoint against its untrained twin and write the report.

    Args:
        source: The checkpoint to measure.
        data: The preprocessed cases to measure it on.
        output: Folder for ``collapse.csv``, ``collapse_report.json`` and ``collapse_spectrum.png``; it is made when needed.
        compare: Another checkpoint, which is measured on the same patches; None = no other.
        probe: Whether to measure too how well labels can be predicted from the features.
        num_patches: Number of patches to measure on.
        seed: Seed of crops and masks.
        device: The device to compute on.

    Returns:
        The verdict on ``source``, and lines of text for people: adaptations of the weights and a table.

    Raises:
        UserError: The networks do not fit the data or each other; nothing has been written then.
    """
    networks, lines = _networks(source, compare, data.dataset.channel_names)
    measurement = Measurement(
        data,
        source.patch_size,
        networks["now"].crop_size,
        mask_cell_size(source),
        num_patches=num_patches,
        seed=seed,
        device=device,
    )
    measured = _measure(measurement, networks)
    stages = {len(values["stages"]) for values in measured.values()}
    if len(stages) > 1:
        assert compare is not None  # the untrained twin has as many as the trained network
        raise UserError(f"--compare {compare.path}: the networks have {' and '.join(map(str, sorted(stages)))} stages")
    if probe:
        lines += _add_dense_probe(measurement, networks, measured)
    norm_pix = source.kind == "SSL stage" and source.checkpoint["emim"].get("norm_pix", False)
    verdicts = {name: judge([values], norm_pix=norm_pix, thresholds=ONE_LOOK) for name, values in measured.items()}
    for name, verdict in verdicts.items():
        measured[name]["level"] = verdict.level
    about = _about(source, data, num_patches, seed)
    if compare is not None:
        about["compared"] = {"checkpoint": networks["compared"].name} | measured["compared"]
    _write(measured, verdicts["now"], about, output)
    return verdicts["now"], [*lines, *table(measured)]


def _networks(
    source: EncoderSource, compare: EncoderSource | None, channel_names: list[str]
) -> tuple[dict[str, Subject], list[str]]:
    """The networks ``untrained``, ``now`` and perhaps ``compared``, and a line of text for each adaptation."""
    trained, untrained, lines = subjects(source, channel_names)
    networks = {"untrained": untrained, "now": trained}
    if compare is not None:
        other, _, adapted = subjects(compare, channel_names)
        if other.crop_size != trained.crop_size:  # then only the features can be compared on equal patches
            other.method = None
        networks["compared"] = other
        lines += adapted
    return networks, lines


def _measure(measurement: Measurement, networks: Mapping[str, Subject]) -> dict[str, dict[str, Any]]:
    measured = {}
    for number, (name, subject) in enumerate(networks.items(), 1):
        patches = measurement.num_patches
        logger.info("Measuring %s on %d patches (%d of %d networks)", name, patches, number, len(networks))
        measured[name] = measurement.measure(subject)
    return measured


def _add_dense_probe(
    measurement: Measurement, networks: Mapping[str, Subject], measured: Mapping[str, dict[str, Any]]
) -> list[str]:
    """Add ``dense_probe_r2`` to every stage; returns a line of text where it was measured on other cases than the rest."""
    for name, subject in networks.items():
        for stage, r2 in zip(measured[name]["stages"], measurement.dense_probe(subject), strict=True):
            stage["dense_probe_r2"] = r2
    data = measurement.data
    if set(data.labelled) <= set(data.cases):
        return []
    return [f"The dense probe takes all {len(data.labelled)} labelled cases: too few of them are held out"]


def _about(source: EncoderSource, data: ProbeData, num_patches: int, seed: int) -> dict[str, Any]:
    return {
        "checkpoint": f"{source.path.parent.name}/{source.path.name}",
        "kind": source.kind,
        "trainer": source.trainer,
        "epochs": source.epochs,
        "probe_cases": [case.identifier for case in data.cases],
        "probe_is_held_out": data.held_out,
        "num_patches": num_patches,
        "seed": seed,
        "versions": versions(),
    }


def _write(measured: Mapping[str, dict[str, Any]], verdict: Verdict, about: Mapping[str, Any], output: Path) -> None:
    history = [measured["untrained"], measured["now"]]
    others = {name: values for name, values in measured.items() if name == "compared"}
    output.mkdir(parents=True, exist_ok=True)
    write_csv(history, output)
    write_report(report(history, verdict, ONE_LOOK, about), output)
    write_picture(history, verdict, output, others)
