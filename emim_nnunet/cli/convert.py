"""``emim_convert``: public and hospital data sets into nnU-Net's raw format."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from emim_nnunet.cli._run import CommandParser, add_shards, add_take_over, run
from emim_nnunet.errors import UserError, listed

if TYPE_CHECKING:
    from emim_nnunet.dataset_conversion.case import SourceCase
    from emim_nnunet.dataset_conversion.family import DatasetFamily
    from emim_nnunet.dataset_conversion.options import Options

EPILOG = """
Example:
  emim_convert brats2023 ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData -d 137
  emim_convert brats2023 SOURCE -d 137 --dry_run
  emim_convert isles2022 SOURCE -d 140 --resample-to DWI
  emim_convert bids SOURCE -d 141 --channel T1=T1w --channel Flair=FLAIR --label mask --classes lesion=1
  emim_convert folders SOURCE -d 142 --channel T1={case}/T1.nii.gz --channel Flair={case}/FLAIR.nii.gz
  emim_convert folders SOURCE -d 143 --channel T1={case}/T1.nii.gz --mask {case}/brain.nii.gz
  emim_convert folders SOURCE -d 143 --channel T1={patient}/{visit}/T1.nii.gz --channel Flair={patient}/{visit}/FLAIR.nii.gz
  emim_convert dicom SOURCE -d 144 --series_table series.csv   # writes the table; look at it, then repeat the command
  emim_convert --list

Cases are found by the names of their files, in all folders below SOURCE. Everything is checked before anything is written. A
conversion that was interrupted goes on when the command is repeated. On several machines: --shard 1/8 to 8/8, then --finish.
"""
OWN = {  # data sets of one's own, whose table is made of options
    "bids": "any BIDS data set (--channel NAME=SUFFIX ..., --label SUFFIX, --classes NAME=VALUE ...)",
    "folders": "any folders (--channel NAME=PATTERN with {case} or {patient} ..., --label PATTERN, --classes ...)",
    "dicom": "DICOM from the scanner (--series_table FILE, which is proposed first; --channel NAME=MODALITY ...)",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Parse arguments and convert."""
    parser = _parser()
    arguments = parser.parse_args(argv)

    from emim_nnunet.dataset_conversion import FAMILIES
    from emim_nnunet.dataset_conversion.options import Options

    if arguments.list:
        _print_list(FAMILIES)
        return
    known = [*FAMILIES, *OWN]
    if arguments.family not in known:
        parser.error(f"unknown data set {arguments.family!r}: choose from {', '.join(known)}")
    if arguments.source is None or arguments.dataset_id is None:
        parser.error("SOURCE and -d are needed")
    if arguments.dry_run and (arguments.shard or arguments.finish or arguments.keep_going):
        parser.error("--dry_run writes nothing: it goes with neither --shard, --finish nor --keep_going")
    family = _chosen_family(arguments, FAMILIES)
    if family.name == "dicom" and not arguments.series_table.exists():
        _propose_series(arguments)
        return
    # takes seconds, so mistakes in the options are told before
    from emim_nnunet.dataset_conversion.converter import Part, convert

    part = Part(shard=arguments.shard, finish=arguments.finish, keep_going=arguments.keep_going)
    options = Options(**{field.name: getattr(arguments, field.name) for field in fields(Options)})
    target, cases = convert(
        family,
        arguments.source,
        arguments.dataset_id,
        arguments.name,
        options=options,
        num_processes=max(1, arguments.num_processes),
        dry_run=arguments.dry_run,
        part=part,
    )
    failed = {} if arguments.dry_run else {c.identifier: c.problems[0] for c in options.taken(cases) if c.problems}
    good = [case for case in cases if case.identifier not in failed]
    problems = 0
    if arguments.shard is None:
        problems = _print_summary(target, good, options)
    else:
        print(f"shard {arguments.shard.number}/{arguments.shard.of}: {len(options.taken(good))} cases; next, --finish")
    _print_remarks(family, good, options)
    if failed:
        _print_failed(failed)
        raise UserError(
            f"{len(failed)} cases are left out ({listed(sorted(failed))}), see the table above; everything else is done"
        )
    if problems:
        raise UserError(f"{problems} problems, listed above; nothing was written (--dry_run)")


def _parser() -> argparse.ArgumentParser:
    """What the command understands; options of a conversion are called like the fields of ``Options``."""
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
        "fomo60k: NAME=SEQUENCE; dicom: NAME=MODALITY",
    )
    parser.add_argument("--label", metavar="WHAT", help="bids: suffix, folders: pattern of the segmentations")
    parser.add_argument(
        "--mask", metavar="WHAT", help="bids: suffix, folders: pattern of brain or body masks; outside becomes 0"
    )
    parser.add_argument("--classes", nargs="+", default=[], metavar="NAME=VALUE", help="bids, folders: their values")
    _add_dicom(parser)
    parser.add_argument(
        "--keep_going", action="store_true", help="leave out cases with problems, and exit with 2 at the end"
    )
    add_shards(parser, "convert every N-th case only; --finish makes the data set of all shards")
    parser.add_argument("--dry_run", action="store_true", help="only check, and list cases and problems")
    parser.add_argument("--list", action="store_true", help="list the known data sets")
    add_take_over(parser)
    return parser


def _add_dicom(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--series_table",
        type=Path,
        metavar="FILE",
        help="dicom: which series is what; written where it does not exist yet",
    )
    parser.add_argument(
        "--patient_ids",
        action="store_true",
        help="dicom: ids of PatientID in a new table, not numbers: they go everywhere",
    )


def _print_list(families: Mapping[str, DatasetFamily]) -> None:
    """Names and titles of all data sets; what a user of them must know stands below, indented."""
    for family in families.values():
        print(f"{family.name:18s} {family.title}")
        if family.advice:
            print(f"{'':18s}   {family.advice}")
    for name, title in OWN.items():
        print(f"{name:18s} {title}")


def _chosen_family(arguments: argparse.Namespace, families: Mapping[str, DatasetFamily]) -> DatasetFamily:
    """The table that the name and the options of a conversion stand for."""
    from emim_nnunet.dataset_conversion.generic import made_of_options

    channels = dict(pair("--channel", text) for text in arguments.channel)
    classes = {name: _value(name, value) for name, value in (pair("--classes", text) for text in arguments.classes)}
    made = made_of_options(arguments.family, channels, arguments.label, classes, arguments.mask, arguments.series_table)
    if made is None and (channels or arguments.label or classes):
        raise UserError(
            f"{arguments.family} has fixed channels and labels: --channel, --label and --classes do not go with it"
        )
    family = made or families[arguments.family]
    if arguments.mask and not family.masked:
        raise UserError(f"--mask goes with folders and bids only, not with {family.name}")
    if arguments.patient_ids and family.name != "dicom":
        raise UserError("--patient_ids goes with dicom only")
    return family


def _propose_series(arguments: argparse.Namespace) -> None:
    """Write the table of the series of a source, and print what is proposed."""
    from emim_nnunet.dataset_conversion.dicom import propose_table

    table = None if arguments.dry_run else arguments.series_table
    rows = propose_table(arguments.source, table, patient_ids=arguments.patient_ids)
    for row in rows:
        what = row["channel"] or "left out"
        note = f"  ({row['note']})" if row["note"] else ""
        print(f"{row['case']:12s} {what:10s} {row['slices']:>4s} slices  {row['description']}{note}")
    taken = sum(bool(row["channel"]) for row in rows)
    print(f"{taken} of {len(rows)} series in {len({row['case'] for row in rows})} studies have a modality")
    advice = "look at it, correct the column 'channel', and repeat the command; it holds PatientIDs, keep it apart"
    print(f"{table}: {advice}" if table else "nothing was written (--dry_run)")


def pair(option: str, text: str) -> tuple[str, str]:
    """Name and value of ``NAME=VALUE``.

    Args:
        option: The option that it stands after, for the message.
        text: What stands there.

    Raises:
        UserError: It is of another form.
    """
    name, separator, value = text.partition("=")
    if not separator or not name or not value:
        raise UserError(f"{option} {text}: expected NAME=VALUE")
    return name, value


def _value(name: str, text: str) -> int:
    """The label value that stands for a class on disk."""
    if not text.isdecimal() or not 1 <= int(text) <= 255:
        raise UserError(f"--classes {name}={text}: the value must be a number from 1 to 255")
    return int(text)


def _print_summary(target: Path | None, cases: Sequence[SourceCase], options: Options) -> int:
    """Print what was written, or for a dry run what would be; returns the number of problems."""
    taken = options.taken(cases)
    labelled, left_out = sum(case.labelled for case in taken), len(cases) - len(taken)
    skipped = f"; {left_out} left out because they lack a channel" if left_out else ""
    if target is not None:
        print(f"{target}: {labelled} labelled and {len(taken) - labelled} unlabelled cases{skipped}")
        return 0
    for case in cases:
        _print_case(case)
    if not taken:
        print("    PROBLEM no complete case: every one lacks a channel")
    problems = sum(len(case.problems) for case in taken) + (not taken)
    patients = len({case.patient for case in taken})
    print(
        f"{len(taken)} cases of {patients} patients, {labelled} labelled, {problems} problems{skipped}; "
        "nothing was written (--dry_run)"
    )
    return problems


def _print_failed(failed: Mapping[str, str]) -> None:
    """A table of the cases that are left out."""
    from emim_nnunet.storage.tables import markdown_table

    print("\n".join(markdown_table(["case", "why it is left out"], sorted(failed.items()))))


def _print_case(case: SourceCase) -> None:
    """A line about a case of a dry run, and one for each of its problems."""
    size, spacing = "x".join(map(str, case.shape)), "x".join(f"{s:g}" for s in case.spacing)
    label = "labelled" if case.labelled else "unlabelled"
    lacks = f"  without {', '.join(case.missing)}" if case.missing else ""
    resampled = f"  to resample: {', '.join(case.on_other_grid)}" if case.on_other_grid else ""
    whose = f"  of patient {case.patient}" if case.patient != case.identifier else ""
    print(f"{case.identifier:28s} {label:10s} {size:12s} {spacing} mm{whose}{lacks}{resampled}")
    for problem in case.problems:
        print(f"    PROBLEM {problem}")


def _print_remarks(family: DatasetFamily, cases: Sequence[SourceCase], options: Options) -> None:
    """What a user must know about the images that were converted, and about the family."""
    from emim_nnunet.dataset_conversion.remarks import remarks

    for remark in remarks(family, options.taken(cases), options):
        print(f"WARNING: {remark}")
    if family.advice:
        print(f"Note: {family.advice}")
    if family.overlaps:
        print(
            f"WARNING: the same patients may be in {family.overlaps}: do not test on one what was trained on the other"
        )


def entry() -> None:
    """Console script."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
