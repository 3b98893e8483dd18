"""Runs that ``emim_report`` cannot show, and runs that only look so."""

from __future__ import annotations

from pathlib import Path

from tests.robustness.inputs.table import bad, good


@bad("report", r"nowhere does not exist: give the folder of a run")
def report_of_nothing(world: Path) -> list[str]:
    return [str(world / "nowhere"), "-o", str(world / "report.html")]


@bad("report", r"preprocessed holds no run: give the folder of a fold")
def report_of_a_folder_without_runs(world: Path) -> list[str]:
    return [str(world / "preprocessed"), "-o", str(world / "report.html")]


@bad("report", r"is a folder: name the file to write, such as")
def report_into_a_folder(world: Path) -> list[str]:
    return [str(_run(world)), "-o", str(world)]


@bad("report", r"no_folder does not exist")
def report_into_a_folder_that_is_not_there(world: Path) -> list[str]:
    return [str(_run(world)), "-o", str(world / "no_folder" / "report.html")]


@good("report")
def report_of_a_run_whose_files_are_damaged(world: Path) -> list[str]:
    folder = _run(world)
    for name in ("collapse_report.json", "collapse.csv", "checkpoint_final.pth"):
        (folder / name).write_bytes(b"\x80 no file of ours")
    return [str(folder), "-o", str(world / "report.html")]


def _run(world: Path) -> Path:
    """The folder of a run of which hardly anything is left."""
    folder = world / "run" / "fold_0"
    folder.mkdir(parents=True)
    (folder / "ssl_log.csv").write_text("epoch,train/loss,val/loss,seconds\n0,1.0,1.0,2.0\n")
    return folder
