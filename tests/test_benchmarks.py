"""The benchmarks run and write what they promise; their figures are no matter of tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(script: str, *options: str) -> str:
    command = [sys.executable, str(BENCHMARKS / script), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
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
    """In one process: each would import torch and nnU-Net again."""
    scripts = [
        str(BENCHMARKS / f"{name}.py") for name in ("peer", "growth", "speed", "preprocess", "memory", "methods")
    ]
    code = (
        "import contextlib, io, runpy, sys\n"
        f"for sys.argv in ([script, '--help'] for script in {scripts!r}):\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):\n"
        "        runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "    assert '--json' in shown.getvalue(), sys.argv\n"
    )
    environment = os.environ | {"PYTHONPATH": str(BENCHMARKS)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=300)
