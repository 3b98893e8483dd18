"""``emim_convert``: public and hospital data sets into nnU-Net's raw format."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from emim_nnunet.cli._run import run

if TYPE_CHECKING:
    from emim_nnunet.dataset_conversion.source_cases import SourceCase

EPILOG = """
Example:
  emim_convert brats2023 ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData -d 137
  emim_convert brats2023 SOURCE -d 137 --dry_run
  emim_convert --list

Cases are found by the suffixes of their files, in all folders below SOURCE. Everything is checked before anything is written.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse arguments and convert."""
    parser = argparse.ArgumentParser(
        prog="emim_convert",
        description="Convert a data set of multimodal MRI, with or without labels, into nnU-Net's raw format.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("family", nargs="?", help="name of the data set; --list shows all")
    parser.add_argument("source", nargs="?", type=Path, help="folder that holds it")
    parser.add_argument("-d", dest="dataset_id", type=int, help="id of the new nnU-Net data set, 1 to 999")
    parser.add_argument("--name", default=None, help="NAME in DatasetXXX_NAME")
    parser.add_argument("-np", dest="num_processes", type=int, default=4, help="files read at a time (default: 4)")
    parser.add_argument("--dry_run", action="store_true", help="only check, and list cases and problems")
    parser.add_argument("--list", action="store_true", help="list the known data sets")
    arguments = parser.parse_args(argv)

    from emim_nnunet.dataset_conversion import FAMILIES
    from emim_nnunet.dataset_conversion.converter import convert

    if arguments.list:
        for family in FAMILIES.values():
            print(f"{family.name:12s} {family.title}")
        return
    if arguments.family not in FAMILIES:
        parser.error(f"unknown data set {arguments.family!r}: choose from {', '.join(FAMILIES)}")
    if arguments.source is None or arguments.dataset_id is None:
        parser.error("SOURCE and -d are needed")
    target, cases = convert(
        FAMILIES[arguments.family],
        arguments.source,
        arguments.dataset_id,
        arguments.name,
        num_processes=max(1, arguments.num_processes),
        dry_run=arguments.dry_run,
    )
    _print_summary(target, cases)


def _print_summary(target: Path | None, cases: Sequence[SourceCase]) -> None:
    labelled = sum(case.labelled for case in cases)
    if target is not None:
        print(f"{target}: {labelled} labelled and {len(cases) - labelled} unlabelled cases")
        return
    for case in cases:
        size, spacing = "x".join(map(str, case.shape)), "x".join(f"{s:g}" for s in case.spacing)
        label = "labelled" if case.labelled else "unlabelled"
        print(f"{case.identifier:28s} {label:10s} {size:12s} {spacing} mm")
        for problem in case.problems:
            print(f"    PROBLEM {problem}")
    problems = sum(len(case.problems) for case in cases)
    print(f"{len(cases)} cases, {labelled} labelled, {problems} problems; nothing was written (--dry_run)")


def entry() -> None:
    """Console script."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
