"""Data from the scanner: a table of the series, which the user looks at and changes, and the cases that it makes."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from emim_nnunet.dataset_conversion.case import SourceCase, SourceFile
from emim_nnunet.dataset_conversion.family import BACKGROUND_ONLY, DatasetFamily
from emim_nnunet.datasets.channel_names import standard_name
from emim_nnunet.errors import UserError, listed
from emim_nnunet.storage.tables import write_csv

if TYPE_CHECKING:
    from emim_nnunet.dataset_conversion.dicom_headers import Series

DEFAULT_DICOM = {name: name for name in ("T1", "T1ce", "T2", "Flair")}
BY_TIMES = "recognised by TR, TE and TI alone"
NEEDED = ("case", "patient", "channel", "series_uid")
SHOWN = ("series", "description", "protocol", "image_type", "tr", "te", "ti", "contrast", "date", "patient_id")
logger = logging.getLogger(__name__)


def dicom_family(channels: Mapping[str, str], table: Path | None) -> DatasetFamily:
    """Series of DICOM files; a study is a case.

    Args:
        channels: Channel -> modality, as it stands in the column ``channel`` of the table.
        table: The table of the series.

    Raises:
        UserError: There is no table.
    """
    if table is None:
        raise UserError(
            "dicom needs --series_table FILE: a first call writes it, for you to look at and correct; the second converts by it"
        )
    return DatasetFamily(
        name="dicom",
        title="DICOM series from the scanner",
        default_dataset_name="Dicom",
        channels=tuple(channels),
        rules=(),
        label_map={},
        labels=BACKGROUND_ONLY,
        advice="series of a study are not registered to each other: --resample-to puts them on one grid, no more",
        licence="not stated",
        citation="not stated",
        finder=partial(find_dicom_cases, channels, table),
    )


def propose_table(source: Path, table: Path | None, *, patient_ids: bool) -> list[dict[str, str]]:
    """Read all headers and propose which series is what.

    Args:
        source: Folder of the files.
        table: The table to write; None = only propose.
        patient_ids: Make the ids of patients and cases of PatientID instead of numbering them.

    Returns:
        The rows of the table, one per series.

    Raises:
        UserError: There is no DICOM image, or two PatientIDs make the same id.
    """
    series, others = _read(source)
    names = _names(series, patient_ids=patient_ids)
    rows = [_row(one, *names[one.tags["study_uid"]]) for one in series]
    _choose_one_of_each(rows)
    if others:
        logger.info("%d files are no DICOM images", others)
    if table is not None:
        write_csv(table, rows)
    return rows


def _read(source: Path) -> tuple[list[Series], int]:
    from emim_nnunet.dataset_conversion.dicom_headers import read_series  # SimpleITK takes a second to import

    if not source.is_dir():
        raise UserError(f"SOURCE {source} is not a folder")
    series, others = read_series(source)
    if not series:
        raise UserError(f"no DICOM image in {source} ({others} other files)")
    return series, others


def _names(series: Sequence[Series], *, patient_ids: bool) -> dict[str, tuple[str, str]]:
    """Study -> case and patient; who has no PatientID is a patient of a single study."""
    studies = {one.tags["study_uid"]: one.tags["patient_id"] or f"study {one.tags['study_uid']}" for one in series}
    numbers = {patient: number for number, patient in enumerate(dict.fromkeys(studies.values()), 1)}
    width = max(3, len(str(len(numbers))))
    ids = {patient: f"p{number:0{width}d}" for patient, number in numbers.items()}
    if patient_ids:
        ids = {patient: re.sub(r"[^A-Za-z0-9]+", "-", patient).strip("-") or ids[patient] for patient in numbers}
    if len(set(ids.values())) < len(ids):
        raise UserError("--patient_ids: two PatientIDs differ in signs that no file name may have: leave it out")
    visits: dict[str, int] = {}
    names = {}
    for study, patient in studies.items():
        visits[patient] = visits.get(patient, 0) + 1
        names[study] = f"{ids[patient]}_{visits[patient]}", ids[patient]
    return names


def _row(one: Series, case: str, patient: str) -> dict[str, str]:
    from emim_nnunet.dataset_conversion.dicom_headers import by_times_only, modality

    name, reason = modality(one.tags), one.reason
    notes = [reason or ("" if name else "modality not recognised")]
    notes += [BY_TIMES] if name and by_times_only(one.tags) and not reason else []
    notes += [f"{one.copies} files are there twice"] if one.copies else []
    about = {
        "case": case,
        "patient": patient,
        "channel": "" if reason else name,
        "note": "; ".join(filter(None, notes)),
    }
    about |= {"slices": str(len(one.files)), "size": f"{one.tags['columns']}x{one.tags['rows']}"}
    shown = {key: _printable(one.tags[key]) for key in SHOWN}
    return about | shown | {key: one.tags[key] for key in ("study_uid", "series_uid")}


def _printable(text: str) -> str:
    return " ".join(text.split())


def _choose_one_of_each(rows: Sequence[dict[str, str]]) -> None:
    """Of several series of a case for one channel keep one, in place: known by words, with most slices, the last of those."""

    def rank(row: dict[str, str]) -> tuple[bool, int]:
        return BY_TIMES not in row["note"], int(row["slices"])

    best: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        key = row["case"], row["channel"]
        if row["channel"] and (key not in best or rank(row) >= rank(best[key])):
            best[key] = row
    for row in rows:
        taken = best.get((row["case"], row["channel"]))
        if taken is not None and taken is not row:
            row["note"] = "; ".join(
                filter(None, (f"another {row['channel']}: series {taken['series']} is taken", row["note"]))
            )
            row["channel"] = ""


def find_dicom_cases(channels: Mapping[str, str], table: Path, source: Path) -> list[SourceCase]:
    """The cases that a table makes of the series of a source.

    Args:
        channels: Channel -> modality in the table.
        table: The table, as :func:`propose_table` writes it and the user has changed it.
        source: Folder of the files.

    Returns:
        Cases by id; series without a channel, or of another one, are left out.

    Raises:
        UserError: The table is not readable, names a series that is not there, is no volume or is there twice for a channel, or
            a case has two patients.
    """
    rows = _read_table(table)
    there = {one.tags["series_uid"]: one for one in _read(source)[0]}
    channel_of = {standard_name(value): channel for channel, value in channels.items()}
    cases: dict[str, SourceCase] = {}
    not_wanted: list[str] = []
    for number, row in rows:
        where = f"{table}, line {number}"
        channel = channel_of.get(standard_name(row["channel"]))
        if channel is None:
            not_wanted += [row["channel"]] * bool(row["channel"])
            continue
        one = there.get(row["series_uid"])
        if one is None:
            raise UserError(f"{where}: the series {row['series_uid']} is not in {source}")
        if one.fault:
            raise UserError(f"{where}: the series cannot be {channel}, it is {one.fault}")
        case = cases.setdefault(row["case"], SourceCase(row["case"], row["patient"] or row["case"]))
        if case.patient != (row["patient"] or row["case"]):
            raise UserError(f"{where}: case {case.identifier} is of patient {case.patient} in an earlier line")
        if channel in case.files:
            raise UserError(f"{where}: another series is {channel} of case {case.identifier}: leave one of them empty")
        case.files[channel] = SourceFile(one.files[0], slices=one.files)
    if not cases:
        raise UserError(f"{table} has no series of {', '.join(channels.values())} in its column 'channel'")
    if not_wanted:
        logger.warning(
            "series of %s are not taken: --channel NAME=MODALITY takes them", listed(sorted(set(not_wanted)))
        )
    missing = len(there.keys() - {row["series_uid"] for _, row in rows})
    if missing:
        logger.warning("%d series are not in %s: they are left out", missing, table.name)
    return sorted(cases.values(), key=lambda case: case.identifier)


def _read_table(table: Path) -> list[tuple[int, dict[str, str]]]:
    """Line number and cells of each row."""
    try:
        text = table.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--series_table {table} cannot be read as a CSV file in UTF-8 ({error})") from error
    head = text.split("\n", 1)[0]
    reader = csv.DictReader(text.splitlines(), delimiter=";" if head.count(";") > head.count(",") else ",")
    try:
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise UserError(f"--series_table {table}, line {reader.line_num + 1}: {error}") from error
    lacking = [name for name in NEEDED if name not in (reader.fieldnames or [])]
    if lacking:
        raise UserError(f"--series_table {table} has no column {', '.join(lacking)}: delete it to have it written anew")
    for number, row in rows:
        if any(row[name] is None for name in NEEDED) or not row["case"].strip():
            raise UserError(f"--series_table {table}, line {number}: a cell is missing")
    return [(number, {name: row[name].strip() for name in NEEDED}) for number, row in rows]
