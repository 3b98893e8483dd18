"""Does pretraining pay? On real MRI: 72 patients with glioma, three sequences, several sites.

    python benchmarks/real/run.py --json OUT              all parts, days of a core
    python benchmarks/real/run.py --quick --json OUT      minutes on 2 cores: shows that it runs, decides nothing
    python benchmarks/real/run.py --part methods --json OUT

Data and weights lie in the folder --work, outside the checkout; results are small files in the folder beside OUT that is named
like it. Finished jobs are not run again, and a job that was killed goes on where it was.
"""

from __future__ import annotations

import os

os.environ.update(  # one thread per job; set before torch is imported
    OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", nnUNet_compile="0", nnUNet_n_proc_DA="0", MPLBACKEND="Agg"
)

import argparse
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from time import monotonic
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from tqdm import tqdm

from emim_nnunet.storage.files import read_json, write_json
from real.arms import arm_of
from real.data import enter, folds, load, prepare
from real.finetune import chosen_patients, train_and_test, training_batches
from real.plan import PARTS, Part
from real.pretrain import encoder_file, pretrain, stage_name
from real.report import write_report

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "lgg"
SCRATCH = "scratch"
ABOUT = ("arm", "seed", "epoch", "fold", "evaluation", "rate", "steps")  # of a training; the rest are scores


def main() -> None:
    """Read the options, run what is missing, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, metavar="OUT", help="where to write the results")
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS), help="default: all")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything")
    parser.add_argument("--data", type=Path, default=DATA, help="the patients (default: ../shared/data/lgg)")
    parser.add_argument("--work", type=Path, required=True, help="folder for data and weights, outside the checkout")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="jobs at a time (default: cores)")
    arguments = parser.parse_args()
    work = arguments.work.absolute()
    enter(work)
    prepare(arguments.data, work)
    results = arguments.json.with_suffix("")
    for name in arguments.part:
        part = PARTS[name].quick() if arguments.quick else PARTS[name]
        run_part(part, work, results, arguments.workers)
    write_report(results, arguments.json)


def run_part(part: Part, work: Path, results: Path, workers: int) -> None:
    """Run the jobs of a part whose results are missing: SSL stages first, then the draws that need their encoders."""
    for folder in ("pretrain", "draws"):
        (results / folder).mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for what, jobs in (("SSL stages", _stages(part, results)), ("draws", _draws(part, results))):
            running = [pool.submit(job, part, *key, work, results) for job, *key in jobs]
            for future in tqdm(as_completed(running), total=len(running), desc=what, mininterval=5):
                future.result()


def _stages(part: Part, results: Path) -> list[tuple[Any, ...]]:
    pairs = [(arm, seed) for seed in range(part.seeds) for arm in part.arms]
    return [(_pretrain, *pair) for pair in pairs if not _stage_file(part, *pair, results).is_file()]


def _draws(part: Part, results: Path) -> list[tuple[Any, ...]]:
    return [(_draw, draw, count) for draw in range(part.draws) for count in part.labelled]


def _stage_file(part: Part, arm: str, seed: int, results: Path) -> Path:
    return results / "pretrain" / f"{stage_name(arm_of(arm).name, seed, part.fold)}.json"


def _pretrain(part: Part, arm: str, seed: int, work: Path, results: Path) -> None:
    os.nice(5)
    enter(work)
    stage = pretrain(arm_of(arm), seed, part.fold, part.epochs, work, steps_per_epoch=part.steps_per_epoch)
    write_json(_stage_file(part, arm, seed, results), stage, indent=1)


def _rows(part: Part, draw: int) -> Iterator[dict[str, Any]]:
    """What a draw trains and tests: the keys of :data:`ABOUT`."""
    for evaluation, rates in part.rates.items():
        steps = part.steps[evaluation]
        for rate in rates:
            how = {"evaluation": evaluation, "rate": rate, "steps": steps}
            yield {"arm": SCRATCH, "seed": None, "epoch": 0, "fold": None} | how
            for arm in part.arms:
                for epoch in part.after or (part.epochs,):
                    about = {"arm": arm_of(arm).name, "seed": draw % part.seeds, "epoch": epoch, "fold": part.fold}
                    yield about | how


def _draw(part: Part, draw: int, labelled: int, work: Path, results: Path) -> None:
    """All arms of one draw that are missing in its file; each is written as it comes."""
    os.nice(5)
    enter(work)
    torch.set_num_threads(1)
    file = results / "draws" / f"fold{part.label_fold}_labelled{labelled}_draw{draw}.json"
    split = folds(sorted(path.name for path in (work / "source").glob("TCGA_*")))[part.label_fold]
    patients = chosen_patients(split["train"], draw, labelled)
    done = read_json(file) if file.is_file() else {"train": patients, "test": sorted(split["val"]), "rows": []}
    known = [{key: row[key] for key in ABOUT} for row in done["rows"]]
    missing = [about for about in _rows(part, draw) if about not in known]
    if not missing:
        return
    tests = load(split["val"])
    batches = list(training_batches(load(patients), draw, max(about["steps"] for about in missing)))
    for about in missing:
        encoder = None
        if about["fold"] is not None:
            stage = stage_name(about["arm"], about["seed"], about["fold"])
            encoder = torch.load(encoder_file(work / "encoders", stage, about["epoch"]), weights_only=True)
        start = monotonic()
        scores = train_and_test(
            about["evaluation"], encoder, batches[: about["steps"]], tests, draw=draw, rate=about["rate"]
        )
        done["rows"].append(about | scores | {"seconds": round(monotonic() - start, 1)})
        write_json(file, done, indent=1)


if __name__ == "__main__":
    main()
