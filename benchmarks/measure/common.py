"""Running measurements in processes of their own, and writing their results."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
PACKAGES = ("torch", "numpy", "nnunetv2", "nnssl", "dynamic_network_architectures", "batchgeneratorsv2", "blosc2")


def run_task(
    script: str, task: str, arguments: Mapping[str, Any], *, python: str = sys.executable, env: Mapping[str, str]
) -> dict[str, Any]:
    """Run one measurement in a fresh process, so that imports, caches and peaks of others do not count.

    Args:
        script: Name of a file in this folder.
        task: Name of a function in that file.
        arguments: Keyword arguments of the function, as plain values.
        python: The Python interpreter to run it with.
        env: Variables to add to the environment.

    Returns:
        The value that the function returned.

    Raises:
        SystemExit: The process failed; the message shows the end of its output.
    """
    environment = dict(os.environ) | dict(env)
    if python == sys.executable:
        environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), environment.get("PYTHONPATH", "")])
    command = [python, str(HERE / script), task, json.dumps(arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, start_new_session=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
        raise SystemExit(f"{script} {task} failed (exit code {done.returncode}):\n{tail}")
    return json.loads(lines[-1].removeprefix("RESULT "))


def threads_env(threads: int, folder: Path) -> dict[str, str]:
    """Environment variables of a measurement: number of threads, and the folders of nnU-Net and nnssl below ``folder``."""
    places = {
        f"{program}_{name}": str(folder / program / name)
        for program in ("nnUNet", "nnssl")
        for name in ("raw", "preprocessed", "results")
    }
    return places | {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "nnUNet_compile": os.environ.get("nnUNet_compile", "true"),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of those packages that matter and are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Model of the CPU and number of cores that this process may use."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest value of some runs, and their number."""
    return {"median": median(values), "min": min(values), "max": max(values), "runs": len(values)}


def show(values: Mapping[str, float], digits: int = 3) -> str:
    """The text ``median (min-max)``, with ``digits`` significant digits."""
    return f"{values['median']:.{digits}g} ({values['min']:.{digits}g}-{values['max']:.{digits}g})"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The text of a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def write_results(path: Path | None, result: Mapping[str, Any], title: str, table: str) -> None:
    """Print the table; write the JSON and, beside it, the Markdown.

    Args:
        path: The JSON file to write; None = only print.
        result: The figures, as plain values.
        title: The title of the Markdown.
        table: The table, as Markdown.
    """
    command = [f".../{Path(word).name}" if os.path.isabs(word) else word for word in sys.argv]  # hides local paths
    about = {"date": date.today().isoformat(), "command": " ".join(["python", *command]), **machine()}
    print(table)
    if path is None:
        return
    path.write_text(json.dumps({"about": about | {"versions": versions()}} | dict(result), indent=2) + "\n")
    notes = ", ".join(f"{k} {v}" for k, v in (about | versions()).items() if k not in ("command", "date"))
    path.with_suffix(".md").write_text(f"# {title}\n\n`{about['command']}`, {about['date']}. {notes}.\n\n{table}")
