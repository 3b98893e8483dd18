"""Does pretraining pay? On real MRI: 72 patients with glioma, three sequences, several sites.

    python benchmarks/real/run.py --json OUT              all parts, days of a core
    python benchmarks/real/run.py --quick --json OUT      minutes on 2 cores: shows that it runs, decides nothing
    python benchmarks/real/run.py --part methods --json OUT
    python benchmarks/real/run.py --part missing --data BRAINS --json OUT     drawn brains, see brains.py; their own --work
    python benchmarks/real/run.py --part from_drawn --encoders W2 --json OUT     encoders that part drawn pretrained in W2

Data and weights lie in the folder --work, outside the checkout; results are small files in the folder beside OUT that is named
like it. Finished jobs are not run again, and a job that was killed goes on where it was.
"""

from __future__ import annotations

import os

os.environ.update(  # one thread per job; set before torch is imported
    OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", nnUNet_compile="0", MPLBACKEND="Agg"
)
os.environ.setdefault("nnUNet_n_proc_DA", "0")  # no loader workers; on a GPU a few make stages faster, and no different

import argparse
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from time import monotonic
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from filelock import FileLock
from tqdm import tqdm

from emim_nnunet.compare.arms import SCRATCH
from emim_nnunet.storage.files import copy_file, read_json, write_json
from real.arms import arm_of
from real.data import enter, folds, load, patients_of, prepare
from real.finetune import chosen_patients, finetune, read_out, training_batches, unet_of
from real.part import FIRST_ROWS, Part, Tuning
from real.plan import PARTS
from real.pretrain import encoder_file, pretrain
from real.report import write_report

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "lgg"
# of a training; the rest are scores
ABOUT = ("arm", "stage", "epoch", "evaluation", *Tuning.__dataclass_fields__, "subsets", "channels", "configuration")


def main() -> None:
    """Read the options, run what is missing, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, metavar="OUT", help="where to write the results")
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS), help="default: all")
    parser.add_argument("--arms", nargs="+", help="only these (default: all of the part)")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything")
    parser.add_argument("--report", action="store_true", help="run nothing, write tables and picture of what is there")
    parser.add_argument("--data", type=Path, default=DATA, help="the patients (default: ../shared/data/lgg)")
    parser.add_argument("--work", type=Path, help="folder for data and weights, outside the checkout")
    parser.add_argument("--encoders", type=Path, metavar="WORK", help="--work of the run that pretrained on other data")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="jobs at a time (default: cores; few on a GPU)"
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="default: cpu")
    arguments = parser.parse_args()
    results = arguments.json.with_suffix("")
    if not arguments.report:
        if arguments.work is None:
            parser.error("--work: name a folder for data and weights")
        run_parts(arguments, arguments.work.absolute(), results)
    write_report(results, arguments.json)


def run_parts(arguments: argparse.Namespace, work: Path, results: Path) -> None:
    """Prepare the data and run the parts that were asked for."""
    enter(work)
    prepare(arguments.data, work)
    for name in arguments.part:
        part = PARTS[name].quick() if arguments.quick else PARTS[name]
        part = replace(part, arms=tuple(arm for arm in part.arms if arm in (arguments.arms or part.arms)))
        if part.source:
            take_encoders(part, arguments.encoders, work)
        run_part(part, work, results, arguments.workers, arguments.device)


def take_encoders(part: Part, other: Path | None, work: Path) -> None:
    """Copy the encoders of a part that another run pretrained, on other data.

    Raises:
        SystemExit: They are not there.
    """
    for (arm, seed), epoch in product(product(part.arms, range(part.seeds)), part.encoders):
        target = encoder_file(work, part.stage(arm, seed), epoch)
        if target.is_file():
            continue
        source = encoder_file(other or work, replace(part, source="").stage(arm, seed), epoch)
        if other is None or not source.is_file():
            raise SystemExit(
                f"no encoder {source.name} of {part.source}: name the folder --work of its run with --encoders"
            )
        target.parent.mkdir(exist_ok=True)
        copy_file(source, target)


def run_part(part: Part, work: Path, results: Path, workers: int, device: str) -> None:
    """Run the jobs of a part whose results are missing: SSL stages first, then the draws that need their encoders."""
    for folder in ("pretrain", "draws"):
        (results / folder).mkdir(parents=True, exist_ok=True)
    draws = [(draw, labelled) for labelled in part.labelled for draw in part.draw_numbers]
    draws = [key for key in draws if missing_rows(part, *key, results)]
    needed = {row["stage"] for key in draws for row in missing_rows(part, *key, results)}
    stages = [(arm, seed) for seed in range(part.seeds) for arm in part.arms]
    stages = [key for key in stages if not part.source and not _is_done(part, *key, work, results, needed)]
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for what, job, keys in (("SSL stages", run_stage, stages), ("draws", run_draw, draws)):
            running = [pool.submit(job, part, *key, work, results, device) for key in keys]
            for future in tqdm(as_completed(running), total=len(running), desc=what, mininterval=5):
                future.result()


def _is_done(part: Part, arm: str, seed: int, work: Path, results: Path, needed: set[str]) -> bool:
    """Whether an SSL stage has been run, and its encoders are there where draws need them: weights may be gone."""
    name = part.stage(arm, seed)
    there = all(encoder_file(work, name, epoch).is_file() for epoch in part.encoders)
    return _stage_file(name, results).is_file() and (there or name not in needed)


def _stage_file(name: str, results: Path) -> Path:
    return results / "pretrain" / f"{name}.json"


def run_stage(part: Part, arm: str, seed: int, work: Path, results: Path, device: str = "cpu") -> None:
    """One SSL stage of a part; it goes on where it was."""
    os.nice(5)
    enter(work)
    name = part.stage(arm, seed)
    steps = {"num_epochs": part.epochs, "num_iterations_per_epoch": part.steps_per_epoch}
    summary = pretrain(name, arm_of(arm), seed, part.fold, steps, part.encoders, work, device, part.configuration)
    write_json(_stage_file(name, results), summary, indent=1)


def _draw_file(part: Part, draw: int, labelled: int, results: Path) -> Path:
    return results / "draws" / f"fold{part.label_fold}_labelled{labelled}_draw{draw}.json"


def missing_rows(part: Part, draw: int, labelled: int, results: Path) -> list[dict[str, Any]]:
    """What a draw has still to train and test: the keys of :data:`ABOUT`."""
    file = _draw_file(part, draw, labelled, results)
    rows = read_json(file)["rows"] if file.is_file() else []
    known = [{key: (FIRST_ROWS | row)[key] for key in ABOUT} for row in rows]
    return [about for about in _rows(part, draw) if about not in known]


def _rows(part: Part, draw: int) -> Iterator[dict[str, Any]]:
    on = {"channels": "+".join(part.channels), "configuration": part.configuration}
    linear = [{"evaluation": "linear", "rate": None} | FIRST_ROWS | {"steps": 0} | on] if part.linear else []
    for how in [_fine_tuned(part, tuning) for tuning in part.scratch_tunings] + linear:
        yield {"arm": SCRATCH, "stage": "", "epoch": 0} | how
    seeds = range(part.seeds) if part.crossed else (draw % part.seeds,)
    trained = [_fine_tuned(part, tuning) for tuning in part.tunings] + linear
    for arm, how, seed, epoch in product(part.arms, trained, seeds, part.encoders):
        yield {"arm": part.label(arm), "stage": part.stage(arm, seed), "epoch": epoch} | how


def _fine_tuned(part: Part, tuning: Tuning) -> dict[str, Any]:
    on = {"channels": "+".join(part.channels), "configuration": part.configuration}
    return {"evaluation": "finetune"} | asdict(tuning) | {"subsets": part.subsets} | on


def run_draw(part: Part, draw: int, labelled: int, work: Path, results: Path, device: str = "cpu") -> None:
    """All trainings of one draw that are missing in its file; each is written as it comes."""
    os.nice(5)
    enter(work)
    torch.set_num_threads(1)
    missing = missing_rows(part, draw, labelled, results)
    split = folds(patients_of(work))[part.label_fold]
    patients = chosen_patients(split["train"], draw, labelled)
    file = _draw_file(part, draw, labelled, results)
    tests, cases = load(split["val"], part.channels), load(patients, part.channels)
    batches = list(training_batches(cases, draw, max(about["steps"] for about in missing)))
    for about in missing:
        start = monotonic()
        weights = encoder_file(work, about["stage"], about["epoch"])
        encoder = torch.load(weights, weights_only=True) if about["stage"] else None
        unet = unet_of(encoder, draw, part.channels, part.configuration)
        if about["evaluation"] == "linear":
            scores = read_out(unet, cases, tests, draw=draw, device=device)
        else:
            tuning = Tuning(**{key: about[key] for key in Tuning.__dataclass_fields__})
            how = {"tuning": tuning, "subsets": about["subsets"], "device": device}
            scores = finetune(unet, cases, batches[: about["steps"]], tests, draw=draw, **how)
        row = about | scores | {"seconds": round(monotonic() - start, 1), "device": device}
        with FileLock(f"{work / file.name}.lock"):  # another part may be at work on the same draw
            done = read_json(file) if file.is_file() else {"train": patients, "test": sorted(split["val"]), "rows": []}
            write_json(file, done | {"rows": [*done["rows"], row]}, indent=1)


if __name__ == "__main__":
    main()
