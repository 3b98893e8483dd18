"""The model card of an encoder that is shared: what Hugging Face's Hub shows, and what a program reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from emim_nnunet.diagnostics.rules import Finding, Verdict

NOT_STATED = "not stated"
TAGS = ["medical-imaging", "mri", "self-supervised-learning", "nnunet", "emim_nnunet"]


def facts(checkpoint: dict[str, Any], content: dict[str, Any], licence: str | None) -> dict[str, Any]:
    """What is told about an encoder; chosen one by one, so that nothing else of a checkpoint gets out.

    Args:
        checkpoint: The SSL checkpoint.
        content: Its encoder, as :func:`.export.encoder_content` makes it.
        licence: Identifier of the licence of the weights; None = not stated.

    Returns:
        Plain values.
    """
    plan, provenance = content["nnssl_adaptation_plan"], content["provenance"]
    pretrained = plan["pretrain_plan"]["configurations"]["pretrain"]
    history = checkpoint.get("history", [])
    about = checkpoint["dataset_json"]
    stated = {key: str(about.get(key, "")).strip() for key in ("licence", "reference")}
    return {
        "licence": licence,
        "data": {
            "dataset": provenance["dataset_name"],
            "num_cases": provenance["num_training_cases"],
            "licence": stated["licence"] if not stated["licence"].startswith("Whoever") else "",  # nnU-Net's default
            "reference": stated["reference"],
        },
        "channels": list(checkpoint["channel_names"]),
        "spacing": [float(s) for s in pretrained["spacing"]],
        "patch_size": [int(p) for p in pretrained["patch_size"]],
        "architecture": plan["architecture_plans"],
        "method": provenance["method"],
        "epochs": provenance["current_epoch"],
        "finished": provenance["finished"],
        "hours": round(sum(row.get("seconds", 0.0) for row in history) / 3600, 2) if history else None,
        "verdict": _verdict(checkpoint.get("verdict")),
        "probe": _probe(checkpoint),
        "versions": provenance["versions"],
    }


def _verdict(verdict: dict[str, Any] | None) -> str | None:
    if verdict is None:
        return None
    return Verdict(verdict["level"], tuple(Finding(**finding) for finding in verdict["findings"])).line


def _probe(checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    """The last measurement of the collapse monitor: skill per modality, and the effective rank of each stage."""
    history = checkpoint.get("collapse", [])
    if not history:
        return None
    now, untrained = history[-1], history[0]
    scores = now.get("reconstruction") or {}
    return {
        "held_out_cases": len(checkpoint.get("validation_cases", [])),
        "skill": {name: _rounded(values["skill"]) for name, values in scores.items() if "skill" in values},
        "effective_rank": [_rounded(stage["effective_rank"]) for stage in now["stages"]],
        "effective_rank_untrained": [_rounded(stage["effective_rank"]) for stage in untrained["stages"]],
        "channels_of_stages": [stage["channels"] for stage in now["stages"]],
    }


def _rounded(value: float) -> float | None:
    return round(float(value), 4) if value == value else None


def model_card(known: dict[str, Any], citations: Sequence[dict[str, Any]], name: str) -> str:
    """The text of ``README.md``, with the head in YAML that the Hub reads.

    Args:
        known: As :func:`facts` makes it.
        citations: Works to cite, as nnU-Net prints them.
        name: The name of the model.

    Returns:
        The text; the values of its head are JSON, which is YAML too.
    """
    licence = {"license": known["licence"]} if known["licence"] else {"license": "other", "license_name": NOT_STATED}
    head = licence | {
        "library_name": "nnunetv2",
        "pipeline_tag": "image-feature-extraction",
        "tags": [*TAGS, known["method"]],
        "emim_nnunet": {k: v for k, v in known.items() if k not in ("licence", "architecture", "versions")},
    }
    head["citations"] = list(citations)
    yaml = "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items())
    return f"---\n{yaml}\n---\n{_text(known, citations, name)}"


def _text(known: dict[str, Any], citations: Sequence[dict[str, Any]], name: str) -> str:
    data, rows = known["data"], _rows(known)
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    papers = "\n".join(
        f"- {cited['type']} {cited['name']}: {'; '.join(cited['apa_citations']) or NOT_STATED}" for cited in citations
    )
    reference = f"- Data {data['dataset']}: {data['reference']}\n" if data["reference"] else ""
    return f"""
# {name}

The encoder of an nnU-Net for {", ".join(known["channels"])}, pretrained without labels with {known["method"]}. It has no
decoder: it is a start for a training, not a model that segments. Not a medical device.

| | |
|---|---|
{table}

## Use

With nnU-Net (git HEAD), where OWNER/NAME is this repository:

    nnUNetv2_preprocess_like_nnssl -d ID -n NAME -pc https://huggingface.co/OWNER/NAME -am like_pretrained
    nnUNetv2_train_pretrained ID 3d_fullres 0 -p PLANS -tr {_trainer(known)}

With emim_nnunet, where channels are matched by name and a data set may have fewer or others; HUB is a copy of this folder, or
`hf://OWNER/NAME`:

    emim_plan_and_preprocess -d ID --like HUB
    emim_export HUB -d ID -p PLANS -c 3d_fullres -o weights.pth
    nnUNetv2_train ID 3d_fullres 0 -p PLANS -pretrained_weights weights.pth

`model.safetensors` holds the same weights; `config.json` says which network they are of.

## Cite

{papers}
{reference}"""


def _trainer(known: dict[str, Any]) -> str:
    named = str(known["architecture"]["arch_class_name"])
    return "PretrainedTrainer_Primusx" if named.startswith("Primus") else "PretrainedTrainer"


def _rows(known: dict[str, Any]) -> dict[str, str]:
    data, probe = known["data"], known["probe"] or {}
    finished = "" if known["finished"] else " (not finished)"
    ranks = zip(
        probe.get("effective_rank", []),
        probe.get("effective_rank_untrained", []),
        probe.get("channels_of_stages", []),
        strict=True,
    )
    shown = {
        "data": f"{data['dataset']}, {data['num_cases']} cases",
        "licence of the data": data["licence"] or NOT_STATED,
        "licence of the weights": known["licence"] or NOT_STATED,
        "channels": ", ".join(known["channels"]),
        "spacing": f"{' x '.join(f'{s:g}' for s in known['spacing'])} mm",
        "patch": " x ".join(map(str, known["patch_size"])),
        "method": f"{known['method']}, {known['epochs']} epochs{finished}",
        "hours": NOT_STATED if known["hours"] is None else f"{known['hours']} of wall time, measuring included",
        "verdict of the collapse monitor": known["verdict"] or NOT_STATED,
        "held-out cases of the probe set": str(probe["held_out_cases"] or "none") if probe else NOT_STATED,
        "skill over a constant": ", ".join(f"{k} {v}" for k, v in probe.get("skill", {}).items())
        or "reconstructs nothing",
        "effective rank (untrained) of channels": ", ".join(f"{a} ({b}) of {c}" for a, b, c in ranks) or NOT_STATED,
        "made with": ", ".join(f"{package} {version}" for package, version in known["versions"].items()),
    }
    return {key: str(value).replace("|", "\\|").replace("\n", " ") for key, value in shown.items()}
