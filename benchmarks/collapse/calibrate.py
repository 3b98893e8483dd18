"""How far the collapse monitor's thresholds are from the numbers of healthy and collapsed runs.

    python benchmarks/collapse/calibrate.py RUN [RUN ...]

A RUN is the folder of jobs of run.py, the folder ``pretrain`` of the results of ../real/run.py, or the folder of an SSL stage,
which may be unfinished. For every run the table gives the
extremes, over all evaluations after the warm-up, of the numbers that the rules look at, and the rules that fired at any time
and at the end; and what predictions without image content reach. Runs of earlier versions lack some of the numbers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from math import nan
from pathlib import Path
from typing import Any

from emim_nnunet.checkpoints.io import load_checkpoint
from emim_nnunet.diagnostics import Thresholds, judge
from emim_nnunet.storage.tables import markdown_table

SHORT_RUNS = Thresholds(patience_steps=0)  # three evaluations in a row suffice, even of few steps
WARMUP = 1  # epochs, of the stages of ../real/run.py
COLUMNS = (
    "run",
    "skill at the end",
    "lowest skill",
    "std ratio there",
    "lowest within, at the end",
    "losses: constant, sample constant, outline, depth, network",
    "collapsed loss: position, patch, modality, hybrid",
    "lowest rank / best",
    "largest top share",
    "lowest PR (C >= 32)",
    "warnings (evaluations)",
    "notes (evaluations)",
    "at the end",
)


def main() -> None:
    """Read the options and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders")
    arguments = parser.parse_args()
    print(f"Thresholds: {asdict(SHORT_RUNS)}\n")
    print("\n".join(markdown_table(COLUMNS, [row(*run) for folder in arguments.runs for run in runs_in(folder)])))


def runs_in(folder: Path) -> Iterator[tuple[str, list[dict[str, Any]], int, bool]]:
    """Name, history, warm-up (evaluations) and ``norm_pix`` of every run in a folder."""
    checkpoints = [folder / f"checkpoint_{name}.pth" for name in ("final", "latest")]
    if any(file.is_file() for file in checkpoints):
        checkpoint = load_checkpoint(next(file for file in checkpoints if file.is_file()))
        about = json.loads((folder / "collapse_report.json").read_text())["about"]
        name = f"{checkpoint['method']}, {checkpoint['configuration']}, fold {checkpoint['fold']}"
        yield name, checkpoint["collapse"], about["warmup_epochs"], about["norm_pix"]
        return
    for file in sorted(folder.glob("*.json")):
        content = json.loads(file.read_text())
        if "collapse" in content:
            name = f"{content['arm']}, fold {content['fold']}, seed {content['seed']}"
            yield name, content["collapse"], WARMUP, bool(content["settings"].get("norm_pix"))
            continue
        result = content["result"]
        if "history" in result:
            history = result["history"]
            yield (
                f"{result['arm']}, seed {result['seed']}",
                history,
                (len(history) - 1) // 10,
                "norm_pix" in result["arm"],
            )


def row(name: str, history: Sequence[dict[str, Any]], warmup: int, norm_pix: bool) -> list[str]:
    """Cells of the table."""
    settled = [m for m in history if m["epoch"] > warmup] or history[-1:]
    scores = [m["reconstruction"]["all"] for m in settled if m["reconstruction"] is not None]
    stages = [
        [m["stages"][i] for m in settled]
        for i in range(len(history[0]["stages"]))
        if history[0]["stages"][i]["status"] == "ok"
    ]
    drops = [
        s["effective_rank"] / max(t["effective_rank"] for t in st[: i + 1]) for st in stages for i, s in enumerate(st)
    ]
    narrow = [s["participation_ratio"] for st in stages for s in st if s["channels"] >= Thresholds().wide]
    verdicts = [
        judge(history[: i + 1], warmup_epochs=warmup, norm_pix=norm_pix, thresholds=SHORT_RUNS)
        for i in range(1, len(history))
    ]
    fired = {
        level: [{f.rule for f in v.findings if f.level == level} for v in verdicts] for level in ("warning", "note")
    }
    return [
        name,
        *_reconstruction(history, scores),
        numbers(history[0].get("mask_losses", {}).values()),
        f"{min(drops):.2f}" if drops else "",
        f"{max(s['top_share'] for st in stages for s in st):.2f}" if stages else "",
        f"{min(narrow):.1f}" if narrow else "",
        counts(fired["warning"]),
        counts(fired["note"]),
        verdicts[-1].level,
    ]


def _reconstruction(history: Sequence[dict[str, Any]], scores: Sequence[dict[str, float]]) -> list[str]:
    """Cells about what was predicted; empty for a method that predicts nothing."""
    if not scores:
        return ["", "", "", "", ""]
    last, worst = scores[-1], min(scores, key=lambda s: s["foreground_skill"])
    return [
        f"{last['foreground_skill']:.3f}",
        f"{worst['foreground_skill']:.3f}",
        f"{worst['std_ratio']:.2f}",
        numbers([min((s["within"] for s in scores if "within" in s), default=nan), last.get("within", nan)]),
        numbers([*history[0].get("baselines", {}).get("all", {}).values(), last["loss"]]),
    ]


def numbers(values: Iterable[float]) -> str:
    """Separated by commas."""
    return ", ".join(f"{value:.3f}" for value in values)


def counts(fired: Sequence[set[str]]) -> str:
    """Each rule and the number of times that it fired, as ``rule (times)``."""
    names = sorted(set().union(*fired))
    return ", ".join(f"{name} ({sum(name in rules for rules in fired)})" for name in names)


if __name__ == "__main__":
    main()
