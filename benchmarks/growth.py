"""Does an SSL stage get slower with the number of cases? 10, 1,000 and 10,000 preprocessed cases, hard links to ten.

    python benchmarks/growth.py --json OUT

Writes ``step_ratio_10000`` (median step with 10,000 cases over that with 10) and ``start_seconds_extra_10000`` (seconds from
building the trainer to the end of the first step, more than with 10 cases). The network is tiny, so that a step consists mostly
of loading. The three counts are measured in turn, each time in a new process. About 3 minutes.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median

from measure import data
from measure.common import markdown_table, run_task, show, spread, threads_env, write_results

COUNTS = (10, 1000, 10000)
SHAPE, PATCH = (48, 48, 48), 32


def main() -> None:
    """Read the options, measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the figures; a .md is written beside it")
    parser.add_argument("--rounds", type=int, default=3, help="processes per count (default: 3)")
    parser.add_argument("--steps", type=int, default=100, help="steps per process (default: 100)")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="of cases (default: 10 1000 10000)")
    parser.add_argument("--workers", type=int, default=1, help="of the data loader (default: 1)")
    arguments = parser.parse_args()
    counts, last = arguments.counts, arguments.counts[-1]
    runs: dict[int, list[dict]] = {count: [] for count in counts}
    with tempfile.TemporaryDirectory() as name:
        for _ in range(arguments.rounds):
            for count in counts:
                folder = Path(name) / str(count)
                if not folder.is_dir():
                    write(folder, count)
                env = threads_env(1, folder) | {"nnUNet_n_proc_DA": str(arguments.workers)}
                task = {"dataset": "901", "configuration": "tiny", "trainer": "nnUNetTrainerEMIMPretrain"}
                runs[count].append(
                    run_task("own.py", "growth", task | {"steps": arguments.steps, "threads": 1}, env=env)
                )
                data.remove(folder / "nnUNet" / "results" / data.dataset_name(1))
    starts = {count: [run["start"] for run in runs[count]] for count in counts}
    steps = {count: [median(run["steps"]) for run in runs[count]] for count in counts}
    peaks = {count: [run["peak_bytes"] / 1e9 for run in runs[count]] for count in counts}
    first, step_ratio, start_extra = counts[0], f"step_ratio_{last}", f"start_seconds_extra_{last}"
    result = {
        step_ratio: median(steps[last]) / median(steps[first]),
        start_extra: median(starts[last]) - median(starts[first]),
        f"memory_ratio_{last}": median(peaks[last]) / median(peaks[first]),
        "start_seconds": {str(c): spread(v) for c, v in starts.items()},
        "step_seconds": {str(c): spread(v) for c, v in steps.items()},
        "peak_gigabytes": {str(c): spread(v) for c, v in peaks.items()},
    }
    rows = [[f"{c:,}", show(spread(starts[c])), show(spread(steps[c])), show(spread(peaks[c]))] for c in counts]
    table = markdown_table(["cases", "start, s", "step, s", "peak memory, GB"], rows)
    summary = f"step ratio {result[step_ratio]:.3f}, start {result[start_extra]:+.2f} s\n"
    write_results(arguments.json, result, "Growth with the number of cases", f"{table}\n{summary}")


def write(folder: Path, count: int) -> None:
    """Write a preprocessed data set of ``count`` cases, with plans, below ``folder``."""
    target = folder / "nnUNet" / "preprocessed" / data.dataset_name(1)
    data.write_plans(target, 1, [], batch_size=2, num_val_iterations_per_epoch=1)
    data.write_cases(target / "tiny", min(count, COUNTS[0]), 1, SHAPE, PATCH)
    data.multiply(target / "tiny", count)
    for name in ("raw", "results"):
        (folder / "nnUNet" / name).mkdir()


if __name__ == "__main__":
    main()
