"""``emim_convert``: public and hospital data sets into nnU-Net's raw format."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from emim_nnunet.cli._run import CommandParser, add_take_over, run
from emim_nnunet.errors import UserError

if TYPE_CHECKING:
    from emim_nnunet.dataset_conversion.source_cases import SourceCase

EPILOG = """
Example:
  emim_convert brats2023 ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData -d 137
  emim_convert brats2023 SOURCE -d 137 --dry_run
  emim_convert isles2022 SOURCE -d 140 --resample-to DWI
  emim_convert bids SOURCE -d 141 --channel T1=T1w --channel Flair=FLAIR --label mask --classes lesion=1
  emim_convert folders SOURCE -d 142 --channel T1={case}/T1.nii.gz --channel Flair={case}/FLAIR.nii.gz
  emim_convert folders SOURCE -d 143 --channel T1={case}/T1.nii.gz --mask {case}/brain.nii.gz
  emim_convert folders SOURCE -d 143 --channel T1={patient}/{visit}/T1.nii.gz --channel Flair={patient}/{visit}/FLAIR.nii.gz
  emim_convert --list

Cases are found by the names of their files, in all folders below SOURCE. Everything is checked before anything is written. A
conversion that was interrupted goes on when the command is repeated.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse arguments and convert."""
    parser = CommandParser(
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
    parser.add_argument(
        "--resample-to", "--resample_to", metavar="CHANNEL", help="put images on other grids onto that of this channel"
    )
    incomplete = parser.add_mutually_exclusive_group()
    incomplete.add_argument("--skip_incomplete", action="store_true", help="leave out cases that lack a channel")
    incomplete.add_argument(
        "--allow_missing", action="store_true", help="take them without; zeros stand for the channel"
    )
    parser.add_argument(
        "--link", action="store_true", help="link to images that are right as they are, do not copy them"
    )
    parser.add_argument(
        "--background_to_zero",
        action="store_true",
        help="where a value other than 0 fills more than a third of an image, set it to 0",
    )
    parser.add_argument(
        "--allow_lost_labels", action="store_true", help="with --resample-to: take labels that vanish on the new grid"
    )
    parser.add_argument(
        "--strip_header", action="store_true", help="leave out the text in the headers of images (not with --link)"
    )
    parser.add_argument(
        "--channel",
        action="append",
        default=[],
        metavar="NAME=WHAT",
        help="bids: NAME=SUFFIX; folders: NAME=PATTERN with {case}, or {patient} and {visit}; nnssl: NAME=MODALITY; "
        "fomo60k: NAME=SEQUENCE",
    )
    parser.add_argument("--label", metavar="WHAT", help="bids: suffix, folders: pattern of the segmentations")
    parser.add_argument(
        "--mask", metavar="WHAT", help="bids: suffix, folders: pattern of brain or body masks; outside becomes 0"
    )
    parser.add_argument("--classes", nargs="+", default=[], metavar="NAME=VALUE", help="bids, folders: their values")
    parser.add_argument("--dry_run", action="store_true", help="only check, and list cases and problems")
    parser.add_argument("--list", action="store_true", help="list the known data sets")
    add_take_over(parser)
    arguments = parser.parse_args(argv)

    from emim_nnunet.dataset_conversion import FAMILIES
    from emim_nnunet.dataset_conversion.converter import Options, convert
    from emim_nnunet.dataset_conversion.generic import made_of_options
    from emim_nnunet.dataset_conversion.remedies import remarks

    if arguments.list:
        for family in FAMILIES.values():
            print(f"{family.name:18s} {family.title}")
        print(f"{'bids':18s} any BIDS data set (--channel NAME=SUFFIX ..., --label SUFFIX, --classes NAME=VALUE ...)")
        print(
            f"{'folders':18s} any folders (--channel NAME=PATTERN with {{case}} or {{patient}} ..., --label PATTERN, "
            "--classes ...)"
        )
        return
    known = [*FAMILIES, "bids", "folders"]
    if arguments.family not in known:
        parser.error(f"unknown data set {arguments.family!r}: choose from {', '.join(known)}")
    if arguments.source is None or arguments.dataset_id is None:
        parser.error("SOURCE and -d are needed")
    channels = dict(_pair("--channel", text) for text in arguments.channel)
    classes = {name: _value(name, value) for name, value in (_pair("--classes", text) for text in arguments.classes)}
    made = made_of_options(arguments.family, channels, arguments.label, classes, arguments.mask)
    if made is None and (channels or arguments.label or classes):
        raise UserError(
            f"{arguments.family} has fixed channels and labels: --channel, --label and --classes do not go with it"
        )
    family = made or FAMILIES[arguments.family]
    if arguments.mask and not family.masked:
        raise UserError(f"--mask goes with folders and bids only, not with {family.name}")
    options = Options(
        resample_to=arguments.resample_to,
        skip_incomplete=arguments.skip_incomplete,
        allow_missing=arguments.allow_missing,
        link=arguments.link,
        background_to_zero=arguments.background_to_zero,
        allow_lost_labels=arguments.allow_lost_labels,
        strip_header=arguments.strip_header,
    )
    target, cases = convert(
        family,
        arguments.source,
        arguments.dataset_id,
        arguments.name,
        options=options,
        num_processes=max(1, arguments.num_processes),
        dry_run=arguments.dry_run,
    )
    problems = _print_summary(target, cases, arguments.skip_incomplete)
    taken = [case for case in cases if not (case.missing and arguments.skip_incomplete)]
    for remark in remarks(family, taken, options):
        print(f"WARNING: {remark}")
    if family.advice:
        print(f"Note: {family.advice}")
    if family.overlaps:
        print(
            f"WARNING: the same patients may be in {family.overlaps}: do not test on one what was trained on the other"
        )
    if problems:
        raise UserError(f"{problems} problems, listed above; nothing was written (--dry_run)")


def _pair(option: str, text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name or not value:
        raise UserError(f"{option} {text}: expected NAME=VALUE")
    return name, value


def _value(name: str, text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 255:
        raise UserError(f"--classes {name}={text}: the value must be a number from 1 to 255")
    return int(text)


def _print_summary(target: Path | None, cases: Sequence[SourceCase], skip_incomplete: bool) -> int:
    """Print what was written, or for a dry run what would be; returns the number of problems."""
    taken = [case for case in cases if not (case.missing and skip_incomplete)]
    labelled, left_out = sum(case.labelled for case in taken), len(cases) - len(taken)
    skipped = f"; {left_out} left out because they lack a channel" if left_out else ""
    if target is not None:
        print(f"{target}: {labelled} labelled and {len(taken) - labelled} unlabelled cases{skipped}")
        return 0
    for case in cases:
        size, spacing = "x".join(map(str, case.shape)), "x".join(f"{s:g}" for s in case.spacing)
        label = "labelled" if case.labelled else "unlabelled"
        lacks = f"  without {', '.join(case.missing)}" if case.missing else ""
        resampled = f"  to resample: {', '.join(case.on_other_grid)}" if case.on_other_grid else ""
        whose = f"  of patient {case.patient}" if case.patient != case.identifier else ""
        print(f"{case.identifier:28s} {label:10s} {size:12s} {spacing} mm{whose}{lacks}{resampled}")
        for problem in case.problems:
            print(f"    PROBLEM {problem}")
    if not taken:
        print("    PROBLEM no complete case: every one lacks a channel")
    problems = sum(len(case.problems) for case in taken) + (not taken)
    patients = len({case.patient for case in taken})
    print(
        f"{len(taken)} cases of {patients} patients, {labelled} labelled, {problems} problems{skipped}; "
        "nothing was written (--dry_run)"
    )
    return problems


def entry() -> None:
    """Console script."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
