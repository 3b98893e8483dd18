"""What differences of Dice the collapse experiment could have seen, and rank tests of those that it saw.

    python benchmarks/collapse/power.py [RESULTS.json ...]

RESULTS are of run.py; by default two of those in this folder. For every arm and number of labelled phantoms: the mean
difference to scratch, paired by seed, its standard deviation, the smallest difference that a two-sided t-test at 5 % finds in
80 % of the experiments with as many seeds, and Wilcoxon's signed-rank test; then the same of the mean over the arms.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from emim_nnunet.compare.power import detectable
from emim_nnunet.storage.tables import markdown_table

RESULTS = [Path(__file__).parent / "results" / name for name in ("phantoms.json", "ten_seeds.json")]
COLUMNS = ("labelled", "arm", "mean difference", "standard deviation", "detectable", "seeds above 0", "Wilcoxon p")


def main() -> None:
    """Parse and print a Markdown table for each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path, default=RESULTS, help="JSON files of run.py")
    for file in parser.parse_args().results:
        lines = markdown_table(COLUMNS, list(rows(json.loads(file.read_text()))))
        print("\n".join([f"{file.name}", "", *lines, ""]))


def rows(report: dict) -> Iterator[list[str]]:
    """Rows of the table of a file."""
    for labelled in map(str, report["budget"]["labelled"]):
        arms = {
            name: arm["dice"][labelled]["minus_scratch"]["values"]
            for name, arm in report["arms"].items()
            if "minus_scratch" in arm.get("dice", {}).get(labelled, {})
        }
        for name, values in (arms | {"mean of the arms": np.mean(list(arms.values()), axis=0)}).items():
            yield [labelled, name, *cells(values)]


def cells(values: Sequence[float]) -> list[str]:
    """Of paired differences, one per seed."""
    array = np.asarray(values)
    spread, number = array.std(ddof=1), len(array)
    return [
        f"{array.mean():+.3f}",
        f"{spread:.3f}",
        f"{spread * detectable(number):.3f}",
        f"{(array > 0).sum()} of {number}",
        f"{stats.wilcoxon(array).pvalue:.3f}",
    ]


if __name__ == "__main__":
    main()
