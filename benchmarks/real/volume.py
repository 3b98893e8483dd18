"""Do frozen features know how large a structure is? The volume of the ventricles of drawn brains, by ``emim_classify``.

    python benchmarks/real/volume.py --data BRAINS --work WORK --json OUT

BRAINS is the folder of brains.py, WORK that of run.py on it. Where part ``missing`` has been run there, its E-MIM encoder is
read out beside an untrained one; it has seen the images of three quarters of the anatomies, never a volume. Five folds, an
anatomy is a patient. The picture of the best is written beside OUT.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from measure.common import write_results

from emim_nnunet.classification.regression import regression_table
from emim_nnunet.cli import classify
from emim_nnunet.cli._run import run
from emim_nnunet.storage.files import read_json
from real.arms import arm_of
from real.data import COHORT, CONFIGURATION, DATASET_ID, PLANS, enter, patients_of, prepare, preprocessed
from real.plan import PARTS

NUMBER = "ventricles_ml"
FOLDS = range(len(COHORT) + 2)


def main() -> None:
    """Read the options, fit and test on each fold, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of drawn brains")
    parser.add_argument("--work", type=Path, required=True, help="folder of data and weights")
    parser.add_argument("--json", type=Path, required=True, metavar="OUT", help="where to write the results")
    arguments = parser.parse_args()
    work = arguments.work.absolute()
    enter(work)
    prepare(arguments.data, work)
    labels = work / "volumes.csv"
    write_volumes(arguments.data, patients_of(work), labels)
    part = PARTS["missing"]
    stage = f"{arm_of('emim').trainer}__{PLANS}__{CONFIGURATION}_{part.stage('emim', 0)}"
    checkpoint = (
        work / "nnUNet_results" / preprocessed(work).name / stage / f"fold_{part.fold}" / "checkpoint_final.pth"
    )
    encoders = {"untrained": ["--scratch"]}
    if checkpoint.is_file():
        encoders["E-MIM"] = ["--checkpoint", str(checkpoint)]
    found = {name: read_out(options, labels, work / "volume" / name) for name, options in encoders.items()}
    best = min(found, key=lambda name: found[name]["scores"]["mae"]["value"])
    shutil.copy(work / "volume" / best / "all" / f"calibration_{NUMBER}.png", arguments.json.with_suffix(".png"))
    table = "\n".join(regression_table(found)) + "\n"
    write_results(arguments.json, {"encoders": found}, "Volume of the ventricles of drawn brains, ml", table)


def write_volumes(brains: Path, cases: list[str], file: Path) -> None:
    """The table that ``emim_classify`` takes: case, patient, volume."""
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["case", "patient", NUMBER])
        for case in cases:
            volume = read_json(brains / case / "about.json")[NUMBER]
            writer.writerow([case, case.rsplit("_", 1)[0], volume])


def read_out(encoder: list[str], labels: Path, folder: Path) -> dict[str, Any]:
    """Fit a ridge regression to the frozen features on each fold, and score the held-out cases of all together.

    Args:
        encoder: Options of ``emim_classify train`` that name it.
        labels: The table of volumes.
        folder: Where fits and scores are written.

    Returns:
        What ``emim_classify evaluate`` writes for the volume.
    """
    number = ["--number", NUMBER]
    for fold in FOLDS:
        output = folder / f"fold_{fold}"
        if not (output / "validation_predictions.csv").is_file():
            about = [str(DATASET_ID), CONFIGURATION, str(fold), str(labels), "-p", PLANS, "-device", "cpu"]
            _classify(["train", *about, *encoder, "--frozen", *number, "-o", str(output)])
    predictions = [str(folder / f"fold_{fold}" / "validation_predictions.csv") for fold in FOLDS]
    _classify(["evaluate", *predictions, "--labels", str(labels), *number, "-o", str(folder / "all")])
    result: dict[str, Any] = read_json(folder / "all" / "metrics.json")[NUMBER]
    return result


def _classify(words: list[str]) -> None:
    code = run(classify.main, words)
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    main()
