"""The benchmarks run and write what they promise; their figures are no matter of tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(script: str, *options: str) -> str:
    command = [sys.executable, str(BENCHMARKS / script), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_growth_writes_its_ratios(tmp_path: Path) -> None:
    out = tmp_path / "growth.json"
    run("growth.py", "--rounds", "1", "--steps", "3", "--counts", "2", "200", "--json", str(out))
    result = json.loads(out.read_text())
    assert 0.1 < result["step_ratio_200"] < 10
    assert abs(result["start_seconds_extra_200"]) < 60
    assert (
        result["about"]["command"] == "python .../growth.py --rounds 1 --steps 3 --counts 2 200 --json .../growth.json"
    )
    assert "| 200 |" in out.with_suffix(".md").read_text()


def test_every_benchmark_explains_itself() -> None:
    for script in ("peer.py", "growth.py", "speed.py", "preprocess.py", "memory.py"):
        assert "--json" in run(script, "--help")
