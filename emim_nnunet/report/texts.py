"""What a report says in sentences: the verdict, the methods section of a paper, the settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from math import isfinite
from typing import Any

from emim_nnunet.errors import UserError, counted
from emim_nnunet.report.citations import cited_for
from emim_nnunet.report.content import Section, Table
from emim_nnunet.report.files import Names, number, shown
from emim_nnunet.settings.block import config_from_block
from emim_nnunet.settings.plans import inheritance
from emim_nnunet.settings.stages import TrainingConfig

SENTENCES = {
    "ok": "The encoder has learnt, and no sign of collapse was found.",
    "note": "No sign of collapse, with remarks.",
    "warning": "Look before you build on this encoder: there are signs of collapse.",
    "error": "Do not use this encoder: it has collapsed, or its numbers are not finite.",
    "insufficient": "Too little was measured for a verdict.",
}
STATED = ("licence", "citation", "reference")


def said_verdict(report: dict[str, Any], names: Names) -> tuple[str, str, list[str]]:
    """Level, one sentence, and reasons of a collapse report.

    Args:
        report: Content of ``collapse_report.json``.
        names: How cases are called.
    """
    level = str(report.get("verdict", "insufficient"))
    findings = [names.text(str(finding.get("message", ""))) for finding in report.get("findings") or []]
    sentence = SENTENCES.get(level, level)
    pooled = ((report.get("now") or {}).get("reconstruction") or {}).get("all") or {}
    skill = number(pooled.get("foreground_skill"))
    reasons = findings
    if isfinite(skill):
        constant = f"{shown(pooled.get('loss'))} against {shown(pooled.get('collapsed_loss'))} of the best constant"
        reasons = [
            *findings,
            f"It explains {max(skill, 0):.0%} of the variance of hidden voxels in the body ({constant}).",
        ]
        if level == "ok":
            sentence = f"The encoder has learnt (skill {skill:.2f}), and no sign of collapse was found."
    ranks = [
        f"{shown(now.get('effective_rank'), '.0f')} (untrained {shown(twin.get('effective_rank'), '.0f')})"
        for now, twin in zip(
            *((report.get(key) or {}).get("stages") or [] for key in ("now", "untrained")), strict=False
        )
    ]
    if ranks:
        reasons = [*reasons, f"Effective rank of the stages: {', '.join(ranks)}."]
    return level, sentence, reasons


def hours(seconds: float) -> str:
    """A duration for people."""
    if not isfinite(seconds):
        return "n/a"
    if seconds < 5400:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / 3600:.1f} hours"


def methods_section(checkpoint: dict[str, Any], report: dict[str, Any], log: Sequence[dict[str, str]]) -> Section:
    """The paragraph for a paper, and its references.

    Args:
        checkpoint: Of an SSL stage, without weights.
        report: Content of its ``collapse_report.json``.
        log: Rows of its ``ssl_log.csv``.
    """
    method = str(checkpoint["method"])
    cited = cited_for(method)
    plain, latex = (_paragraph(checkpoint, report, log, *keys) for keys in _citing([key for key, _ in cited]))
    section = Section("Methods, for a paper", [plain])
    section.text.append("Numbers are those of this run. Add what this page cannot know: scanners, consent, GPU.")
    section.code = [("BibTeX", "\n\n".join(entry for _, entry in cited)), ("LaTeX", _escaped(latex))]
    stated = {key: str((checkpoint.get("dataset_json") or {}).get(key, "")) for key in STATED}
    section.points = [f"Data set, {key}: {value}" for key, value in stated.items() if value not in ("", "not stated")]
    return section


def _escaped(text: str) -> str:
    """Text for LaTeX; the keys of the references hold nothing that would have to be escaped."""
    for sign, written in (("_", "\\_"), ("%", "\\%"), ("&", "\\&"), ("#", "\\#"), (" x ", " $\\times$ ")):
        text = text.replace(sign, written)
    return text


def _citing(keys: list[str]) -> list[tuple[str, str, str]]:
    """References to the method, nnU-Net and this software, as numbers and for LaTeX."""
    *papers, nnunet, software = keys
    numbers = [str(place) for place in range(1, len(keys) + 1)]
    by_number = (f"[{', '.join(numbers[:-2])}]" if papers else "", f"[{numbers[-2]}]", f"[{numbers[-1]}]")
    by_key = (f"~\\cite{{{','.join(papers)}}}" if papers else "", f"~\\cite{{{nnunet}}}", f"~\\cite{{{software}}}")
    return [tuple(f" {part}" if part else "" for part in by_number), by_key]  # type: ignore[list-item]


def _paragraph(
    checkpoint: dict[str, Any],
    report: dict[str, Any],
    log: Sequence[dict[str, str]],
    papers: str,
    nnunet: str,
    software: str,
) -> str:
    plans, block = checkpoint["plans"], full_block(checkpoint)
    content = _configuration(plans, checkpoint["configuration"])
    architecture = content.get("architecture", {}).get("network_class_name", "network").rsplit(".", 1)[-1]
    versions = checkpoint.get("versions", {})
    channels = checkpoint["channel_names"]
    held_out = len(checkpoint.get("validation_cases", []))
    said = [
        f"The encoder of a {architecture} was pretrained with {checkpoint['method']}{papers} on "
        f"{counted(len(checkpoint['training_cases']), 'case')} of {plans['dataset_name']} with {len(channels)} channels "
        f"({', '.join(channels)}), inside nnU-Net{nnunet} (nnunetv2 {versions.get('nnunetv2', 'of unknown version')}, PyTorch "
        f"{versions.get('torch', 'of unknown version')}) with emim_nnunet{software} {versions.get('emim_nnunet', '')}."
    ]
    patch, spacing = content.get("patch_size"), content.get("spacing")
    if patch and spacing:
        said.append(
            f"Images were resampled to {_by(f'{value:g}' for value in spacing)} mm and normalised as nnU-Net planned; patches "
            f"had {_by(patch)} voxels."
        )
    if {"batch_size", "num_iterations_per_epoch", "initial_lr"} <= block.keys():
        said.append(
            f"It was trained for {checkpoint['current_epoch']} epochs of {block['num_iterations_per_epoch']} steps with "
            f"batches of {block['batch_size']} patches and AdamW (peak learning rate {block['initial_lr']:g}, linear warm-up, "
            f"cosine decay; seed {checkpoint['seed']})"
            + (f" in {hours(sum(number(row.get('seconds')) for row in log))}." if log else ".")
        )
    pooled = ((report.get("now") or {}).get("reconstruction") or {}).get("all") or {}
    if isfinite(number(pooled.get("foreground_skill"))):
        on = f"crops of {counted(held_out, 'held-out case')}" if held_out else "crops of the training cases"
        said.append(
            f"On {on}, the mean squared error of masked voxels was {shown(pooled.get('loss'))} (best constant per modality: "
            f"{shown(pooled.get('collapsed_loss'))}); skill in the body was {shown(pooled.get('foreground_skill'))}."
        )
    return " ".join(said)


def _by(values: Any) -> str:
    return " x ".join(map(str, values))


def _configuration(plans: dict[str, Any], name: str) -> dict[str, Any]:
    """A configuration of plans with all that it inherits."""
    try:
        links = inheritance(plans, name)
    except UserError:
        return {}
    return {key: value for link in links for key, value in link.items()}


def full_block(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The ``emim`` block of an SSL stage with the defaults of what it leaves out."""
    block = checkpoint.get("emim") or {}
    try:
        return asdict(config_from_block(TrainingConfig, block)) | block
    except UserError:  # of another version
        return block


def describe_settings(checkpoint: dict[str, Any], plans: dict[str, Any], configuration: str) -> Section:
    """All settings of a run as tables."""
    section = Section("Settings", folded=True)
    block = checkpoint.get("emim") or {}
    settings = (full_block(checkpoint) if block else {}) | (checkpoint.get("settings") or {})
    if settings:
        rows = [[key, _value(value)] for key, value in sorted(settings.items())]
        section.tables.append(Table(["key", "value"], rows, "The emim block and the settings of the method"))
    content = {key: value for key, value in _configuration(plans, configuration).items() if key != "emim"}
    architecture = content.pop("architecture", {})
    if content:
        rows = [[key, _value(value)] for key, value in sorted(content.items())]
        section.tables.append(Table(["key", "value"], rows, "nnU-Net's configuration"))
    if architecture:
        arguments = {"network": architecture.get("network_class_name")} | architecture.get("arch_kwargs", {})
        rows = [[key, _value(value)] for key, value in sorted(arguments.items())]
        section.tables.append(Table(["key", "value"], rows, "Network"))
    return section


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_value(item)}" for key, item in value.items()) or "{}"
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
