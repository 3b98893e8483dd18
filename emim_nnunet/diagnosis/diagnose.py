"""``emim_diagnose``: the collapse monitor for any checkpoint, after the fact."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate
from tqdm import tqdm

from emim_nnunet.checkpoints.encoder import load_encoder
from emim_nnunet.checkpoints.network import planned_method
from emim_nnunet.checkpoints.source import EncoderSource
from emim_nnunet.checkpoints.stem import explain
from emim_nnunet.dataloading.crops import CropDataset
from emim_nnunet.datasets.channel_names import any_known
from emim_nnunet.datasets.preprocessed import Case
from emim_nnunet.diagnosis.collapse_monitor import update_probe
from emim_nnunet.diagnosis.collapse_report import report, write_csv, write_picture, write_report
from emim_nnunet.diagnosis.probe_data import ProbeData
from emim_nnunet.diagnostics import CollapseProbe, Thresholds, Verdict, cell_grid, dense_probe, foreground_rows, judge
from emim_nnunet.errors import UserError
from emim_nnunet.masking import grid_size, voxels_to_cells
from emim_nnunet.methods import method_class
from emim_nnunet.methods.base import MethodOutput, SSLMethod
from emim_nnunet.planners.ssl_plan import cell_size as planned_cell_size
from emim_nnunet.randomness import Stream, seeded_generator
from emim_nnunet.settings.block import config_from_block
from emim_nnunet.settings.plans import planned
from emim_nnunet.storage.figures import rounded
from emim_nnunet.storage.versions import versions
from emim_nnunet.views.augmentation import clear_outside_
from emim_nnunet.views.boxes import centre_box

logger = logging.getLogger(__name__)
BATCH = 2
ONE_LOOK = Thresholds(patience=1, patience_steps=0)  # there is no history to wait for
PROBE_CELL = 4  # voxels; the dense probe asks for detail
PROBE_ROWS_PER_PATCH = 256


@dataclass
class Subject:
    """A network to measure.

    Attributes:
        name: For tables.
        encoder: In evaluation mode.
        method: The whole SSL method where the checkpoint holds one: then there is a reconstruction to measure.
    """

    name: str
    encoder: nn.Module
    method: SSLMethod | None = None


def subjects(source: EncoderSource, channel_names: Sequence[str]) -> tuple[Subject, Subject, list[str]]:
    """The network of a checkpoint and its untrained twin.

    Args:
        source: The checkpoint.
        channel_names: Of the data.

    Returns:
        Trained, untrained, and a line of text for each adaptation.

    Raises:
        UserError: The weights do not fit.
    """
    name = source.path.parent.name + "/" + source.path.name
    names = (source.channel_names, channel_names)
    if source.kind == "SSL stage" and _same_channels(source, channel_names):
        pair = [_method(source) for _ in range(2)]
        pair[0].load_state_dict(source.checkpoint["network_weights"])
        trained, untrained = (
            Subject(label, method.get_submodule("encoder"), method.eval())
            for label, method in zip((name, "untrained"), pair, strict=True)
        )
        return trained, untrained, []
    encoder, adapted = source.encoder(channel_names)
    twin = source.fresh_network(source.num_channels, seed=0).get_submodule("encoder")
    fresh = source.fresh_network(len(channel_names), seed=0).get_submodule("encoder")
    load_encoder(fresh, twin.state_dict(), source="the untrained twin", names=names)
    return Subject(name, encoder.eval()), Subject("untrained", fresh.eval()), adapted


def _same_channels(source: EncoderSource, channel_names: Sequence[str]) -> bool:
    """Whether the data can go through the whole method as they are; names that nobody knows count by position."""
    if len(channel_names) != source.num_channels:
        return False
    old = source.channel_names
    return old is None or not any_known(old, channel_names) or not explain(old, channel_names)


def _method(source: EncoderSource) -> SSLMethod:
    """The SSL method of a checkpoint as it was before the first step, tensor by tensor."""
    kind = method_class(source.checkpoint["method"])
    config = config_from_block(kind.config_class, source.checkpoint["emim"])
    with planned(f"the network that {source.path} describes cannot be built", "is it a whole checkpoint?"):
        return planned_method(
            kind, source.architecture, source.num_channels, source.patch_size, config, seed=source.checkpoint["seed"]
        )


class Diagnosis:
    """Measures networks on the same patches.

    Args:
        data: Cases.
        patch_size: Voxels per axis.
        crop_size: Of the crops whose middle the patches are, for methods that take more than a patch.
        cell_size: Voxels of a mask cell per axis.
        num_patches: Patches.
        seed: Of crops and masks.
        device: Where to compute.
    """

    def __init__(
        self,
        data: ProbeData,
        patch_size: Sequence[int],
        crop_size: Sequence[int],
        cell_size: Sequence[int],
        *,
        num_patches: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.data = data
        self.patch_size = tuple(patch_size)
        self.crop_size = tuple(crop_size)
        self.cell_size = tuple(cell_size)
        self.seed = seed
        self.device = device
        self.num_patches = num_patches

    def _batches(self, cases: Sequence[Case], name: str) -> Iterator[tuple[dict[str, Any], Tensor, Tensor]]:
        crops = CropDataset(cases, self.crop_size, self.seed, with_label=True)
        numbers = range(0, self.num_patches, BATCH)
        for start in tqdm(numbers, desc=f"Measuring {name}", disable=None, leave=False):
            items = [crops[i] for i in range(start, min(start + BATCH, self.num_patches))]
            batch = default_collate(items)
            image, foreground = batch["image"].to(self.device), batch["foreground"].to(self.device)
            clear_outside_(image, foreground, self.data.data.manager.use_mask_for_norm)
            yield batch, image, foreground

    @torch.no_grad()
    def measure(self, subject: Subject, epochs: int) -> dict[str, Any]:
        """The monitor's measurement.

        Args:
            subject: Network.
            epochs: Epochs done, 0 = untrained.

        Returns:
            As :meth:`CollapseProbe.measure`, with ``epoch``.
        """
        grid = grid_size(self.patch_size, self.cell_size)
        probe = CollapseProbe(grid, self.data.data.channel_names, self.seed, None if epochs else self.cell_size)
        (subject.method or subject.encoder).to(self.device)
        for batch, image, foreground in self._batches(self.data.cases, subject.name):
            indices = batch["index"].tolist()
            patch, inside = (centre_box(t, self.patch_size) for t in (image, foreground))
            if subject.method is None:
                probe.update_features(indices, inside, subject.encoder(patch))
                continue
            output = self._run_method(subject.method, batch, image, foreground)
            update_probe(probe, indices, patch, inside, output, subject.encoder)
        return {"epoch": epochs} | probe.measure()

    def _run_method(self, method: SSLMethod, batch: dict[str, Any], image: Tensor, foreground: Tensor) -> MethodOutput:
        samples = [
            method.draw(seeded_generator(self.seed, Stream.MASK, index), present)
            for index, present in zip(batch["index"].tolist(), batch["present"], strict=True)
        ]
        draws = {k: torch.cat([s[k] for s in samples]) for k in samples[0]} | {"subject": batch["subject"]}
        return method(image, foreground, {k: v.to(self.device) for k, v in draws.items()})

    @torch.no_grad()
    def dense_probe(self, subject: Subject) -> list[float]:
        """R2 of label fractions from the features of each stage, split by case.

        Args:
            subject: Network.

        Returns:
            One R2 per stage.

        Raises:
            UserError: Fewer than two labelled cases.
        """
        cases = self.data.labelled
        if len(cases) < 2:
            raise UserError(f"--probe splits by case and needs at least two labelled ones, there are {len(cases)}")
        collected: list[list[tuple[Tensor, Tensor, str]]] = []
        subject.encoder.to(self.device)
        for batch, image, foreground in self._batches(cases, subject.name):
            patch, inside, label = (centre_box(t, self.patch_size) for t in (image, foreground, batch["label"]))
            fractions = torch.cat([(label == value).float() for value in self.data.labels], 1)
            features = subject.encoder(patch)
            collected = collected or [[] for _ in features]
            for sample, case in enumerate(batch["case"]):
                part, number = slice(sample, sample + 1), int(batch["index"][sample])
                for stage, output in enumerate(features):
                    rows = self._probe_rows(output[part], fractions[part], inside[part], number)
                    collected[stage].append((*rows, case))
        return [_score(parts) for parts in collected]

    def _probe_rows(
        self, features: Tensor, fractions: Tensor, foreground: Tensor, number: int
    ) -> tuple[Tensor, Tensor]:
        """Features and label fractions of some cells of one patch."""
        grid = tuple(max(1, p // PROBE_CELL) for p in self.patch_size)
        rows, present = foreground_rows(features, foreground, grid)
        cells = voxels_to_cells(fractions, cell_grid(features.shape[2:], grid)).flatten(2).transpose(1, 2)
        generator = seeded_generator(self.seed, Stream.PROBE, number)
        chosen = torch.randperm(len(rows), generator=generator)[:PROBE_ROWS_PER_PATCH]
        return rows.cpu()[chosen], cells[present.cpu()][chosen]


def _score(parts: list[tuple[Tensor, Tensor, str]]) -> float:
    rows = torch.cat([rows for rows, _, _ in parts]).numpy()
    targets = torch.cat([targets for _, targets, _ in parts]).numpy()
    cases = np.concatenate([[case] * len(part) for part, _, case in parts])
    if len(set(cases)) < 2:
        raise UserError("--probe: all patches came from one case; take more --patches")
    return dense_probe(rows, targets, cases)


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
        source: Checkpoint.
        data: Cases.
        output: Folder for ``collapse.csv``, ``collapse_report.json`` and ``collapse_spectrum.png``.
        compare: Another checkpoint, measured on the same patches.
        probe: Also read labels off the features.
        num_patches: Patches.
        seed: Of crops and masks.
        device: Where to compute.

    Returns:
        The verdict on ``source`` and lines of text: adaptations and a table.

    Raises:
        UserError: The networks do not fit the data or each other; nothing has been written then.
    """
    trained, untrained, lines = subjects(source, data.data.channel_names)
    crop_size = _crop_size(trained, source.patch_size)
    diagnosis = Diagnosis(
        data, source.patch_size, crop_size, _cell_size(source), num_patches=num_patches, seed=seed, device=device
    )
    networks = {"untrained": (untrained, 0), "now": (trained, max(1, source.epochs))}
    if compare is not None:
        other, _, adapted = subjects(compare, data.data.channel_names)
        if _crop_size(other, compare.patch_size) != crop_size:  # then only the features are on equal patches
            other.method = None
        networks["compared"] = (other, max(1, compare.epochs))
        lines += adapted
    measured: dict[str, dict[str, Any]] = {}
    for name, network in networks.items():
        logger.info(
            "Measuring %s on %d patches (%d of %d networks)", name, num_patches, len(measured) + 1, len(networks)
        )
        measured[name] = diagnosis.measure(*network)
    stages = {len(measurement["stages"]) for measurement in measured.values()}
    if len(stages) > 1:
        assert compare is not None  # the untrained twin has as many as the trained network
        raise UserError(f"--compare {compare.path}: the networks have {' and '.join(map(str, sorted(stages)))} stages")
    if probe:
        if not set(data.labelled) <= set(data.cases):
            lines.append(f"The dense probe takes all {len(data.labelled)} labelled cases: too few of them are held out")
        for name, (subject, _) in networks.items():
            for stage, r2 in zip(measured[name]["stages"], diagnosis.dense_probe(subject), strict=True):
                stage["dense_probe_r2"] = r2
    norm_pix = source.kind == "SSL stage" and source.checkpoint["emim"].get("norm_pix", False)
    for measurement in measured.values():
        measurement["level"] = judge([measurement], norm_pix=norm_pix, thresholds=ONE_LOOK).level
    verdict = judge([measured["now"]], norm_pix=norm_pix, thresholds=ONE_LOOK)
    about = _about(source, data, num_patches, seed)
    if compare is not None:
        about["compared"] = {"checkpoint": networks["compared"][0].name} | measured["compared"]
    history = [measured["untrained"], measured["now"]]
    output.mkdir(parents=True, exist_ok=True)
    write_csv(history, output)
    write_report(report(history, verdict, ONE_LOOK, about), output)
    write_picture(history, verdict, output, {name: measured[name] for name in measured if name == "compared"})
    return verdict, [*lines, *table(measured)]


def _crop_size(subject: Subject, patch_size: Sequence[int]) -> tuple[int, ...]:
    if subject.method is None:
        return tuple(patch_size)
    return subject.method.crop_size(subject.method.config, subject.method.patch_size)


def _cell_size(source: EncoderSource) -> tuple[int, ...]:
    """Of the checkpoint's own mask where it has one, otherwise what the planner would choose."""
    if source.kind == "SSL stage":
        return tuple(source.checkpoint["emim"]["cell_size"])
    return planned_cell_size(source.architecture["arch_kwargs"]["strides"], source.patch_size)


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


def table(measured: dict[str, dict[str, Any]]) -> list[str]:
    """Lines of a table: a row per stage, the networks side by side.

    Args:
        measured: Measurements by name, ``untrained``, ``now`` and perhaps ``compared``.
    """
    names = [name for name in ("now", "untrained", "compared") if name in measured]
    with_probe = "dense_probe_r2" in measured["now"]["stages"][0]
    keys = {"effective_rank": "rank", "top_share": "top", "k99": "k99"}
    keys |= {"dense_probe_r2": "probe R2"} if with_probe else {}
    head = ["stage", "channels", "rows", "dead"] + [f"{label} {name}" for label in keys.values() for name in names]
    rows = []
    for number, stage in enumerate(measured["now"]["stages"]):
        few = "" if stage["status"] == "ok" else " (few)"
        cells = [str(number), str(stage["channels"]), f"{stage['count']}{few}", str(stage["dead_channels"])]
        rows.append(cells + [f"{measured[name]['stages'][number][key]:.2f}" for key in keys for name in names])
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in [head, *rows]]
    scores = measured["now"]["reconstruction"]
    if scores is None:
        return [*lines, "Reconstruction: n/a, the checkpoint holds no reconstruction decoder"]
    skill = ", ".join(f"{name} {rounded(values['foreground_skill'])}" for name, values in scores.items())
    return [*lines, f"Skill over a constant in the body: {skill}"]
