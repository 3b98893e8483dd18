"""Bad inputs of ``emim_convert dicom``, and pictures for ``emim_convert folders``."""

from __future__ import annotations

from pathlib import Path

from tests.robustness.inputs.spoiling import NEW
from tests.robustness.inputs.table import bad


@bad("convert", r"no DICOM image in")
def dicom_without_dicom(world: Path) -> list[str]:
    return ["dicom", str(world / "source"), *NEW, "--series_table", str(world / "series.csv")]


@bad("convert", r"has no column case, patient, channel, series_uid")
def dicom_with_a_table_of_something_else(world: Path) -> list[str]:
    (world / "series.csv").write_text("kind\na\n")
    return ["dicom", str(world / "source"), *NEW, "--series_table", str(world / "series.csv")]


@bad("convert", r"P1.png is a picture: put it as CASE_0000 into imagesTr")
def picture_among_volumes(world: Path) -> list[str]:
    (world / "pictures").mkdir()
    (world / "pictures" / "P1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return ["folders", str(world / "pictures"), *NEW, "--channel", "T1={case}.png"]
