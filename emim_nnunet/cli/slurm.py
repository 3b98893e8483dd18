"""``emim_slurm``: a whole project as jobs of SLURM."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from emim_nnunet.cli import compare, plan_and_preprocess
from emim_nnunet.cli._run import CommandParser, add_configuration_arguments, dataset_id, run
from emim_nnunet.errors import UserError

if TYPE_CHECKING:
    from emim_nnunet.slurm import Data, Job, Part, Resources, Surroundings

EPILOG = """
Example:
  emim_slurm 137 3d_fullres --shards 8 --nodes 2 --gpus 8 --partition gpu --prepare_partition cpu > project.sh
  emim_slurm 137 3d_fullres --prepared --gpus 4 --time 1-00 --folds 0 1 2 3 4 --submit
  emim_slurm 137 3d_fullres --prepared --no_pretrain --gpus 1 --compare="-o comparison --draws 16 --arms scratch emim"
  emim_slurm 137 3d_fullres --plan="-gpu_memory_target 40 --keep_going" --setup="module load cuda" --sbatch=--qos=long

Prints a bash program that submits all jobs with their dependencies, or runs it (--submit): preparation in shards, --finish,
pretraining, which goes on in the queue when its time is up, then folds and the parts of a comparison. Whatever is finished is
not done again, so the same program may be run again after a failure.
"""
VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
PRETRAINER = "nnUNetTrainerEMIMPretrain"
OF_PREPARATION = ("shard", "finish", "no_pp", "add", "overwrite_plans_name")  # what this command gives or must not be
OF_COMPARISON = ("list_jobs", "only", "until", "json")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse arguments, then print the program or run it."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.shards < 1:
        parser.error("--shards must be at least 1")
    if arguments.folds and min(arguments.folds) < 0:
        parser.error("--folds: numbers of folds, from 0")
    if arguments.prepared and arguments.plan:
        parser.error("--plan is for the preparation, which --prepared leaves out")

    from emim_nnunet.slurm import program

    around = _surroundings(arguments)
    jobs = _jobs(arguments)
    if not jobs:
        parser.error("nothing is left to do with --prepared and --no_pretrain: give --folds or --compare")
    text = program(jobs, around)
    if not arguments.submit:
        print(text, end="")
        return
    if shutil.which("sbatch") is None:
        raise UserError("--submit: there is no sbatch on this machine: print the program, and run it where SLURM is")
    if subprocess.run(["bash"], input=text, text=True).returncode != 0:
        raise UserError("sbatch refused a job, see above: those that were submitted before it are cancelled")


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="emim_slurm",
        description="Print, or submit, the SLURM jobs of a whole project.",
        epilog=EPILOG,
    )
    parser.add_argument("dataset", type=dataset_id, help="id or name of a raw or prepared data set")
    add_configuration_arguments(parser)
    parser.add_argument("--submit", action="store_true", help="submit the jobs (default: print the program that does)")
    parts = parser.add_argument_group("parts of the project")
    parts.add_argument("--prepared", action="store_true", help="the data set is preprocessed already")
    parts.add_argument("--shards", type=int, default=8, help="tasks of the arrays that prepare (default: 8)")
    parts.add_argument("--plan", default="", metavar="OPTIONS", help="further options of emim_plan_and_preprocess")
    parts.add_argument("--no_pretrain", action="store_true", help="without a pretraining on all cases")
    parts.add_argument("-tr", default=PRETRAINER, help="trainer of the pretraining (default: %(default)s)")
    parts.add_argument("--folds", type=int, nargs="+", default=[], help="segmentation of these, from the pretraining")
    parts.add_argument("--compare", metavar="OPTIONS", help="a comparison, with options of emim_compare (-o is needed)")
    resources = parser.add_argument_group("what jobs get")
    resources.add_argument("--nodes", type=int, default=1, help="of the pretraining (default: 1)")
    resources.add_argument("--gpus", type=int, default=1, help="per node of the pretraining (default: 1); 0 = the CPU")
    resources.add_argument("--cpus", type=int, help="per GPU, or per job without GPU")
    resources.add_argument("--mem", help="per node, for example 64G")
    resources.add_argument(
        "--time", help="for example 12:00:00 or 2-00; a training that needs more goes on in the queue"
    )
    resources.add_argument("--partition")
    resources.add_argument("--account")
    for name in ("cpus", "mem", "time", "partition"):
        kind = int if name == "cpus" else str
        resources.add_argument(f"--prepare_{name}", type=kind, help=f"of the preparation (default: --{name})")
    resources.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="a further #SBATCH line, such as --sbatch=--qos=long",
    )
    resources.add_argument(
        "--setup",
        action="append",
        default=[],
        metavar="LINE",
        help="bash, first in each job (default: this Python's PATH)",
    )
    resources.add_argument(
        "--warning", type=int, default=300, help="seconds for a checkpoint before --time (default: 300)"
    )
    resources.add_argument(
        "--logs", type=Path, default=Path(), help="folder for the output of the jobs (default: this one)"
    )
    return parser


def _surroundings(arguments: argparse.Namespace) -> Surroundings:
    from emim_nnunet.slurm import Surroundings

    missing = [name for name in VARIABLES if not os.environ.get(name)]
    if missing:
        raise UserError(f"the environment variable {missing[0]} is not set: jobs need nnU-Net's three folders")
    if not arguments.logs.is_dir():
        raise UserError(f"--logs {arguments.logs}: this folder does not exist, and SLURM does not make it")
    setup = arguments.setup or [f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"]
    return Surroundings(
        logs=str(arguments.logs.absolute()),
        warning_seconds=arguments.warning,
        setup=setup,
        variables={name: str(Path(os.environ[name]).absolute()) for name in VARIABLES},
    )


def _jobs(arguments: argparse.Namespace) -> list[Job]:
    """All jobs that arguments ask for, each after those that it waits for."""
    from emim_nnunet.slurm import comparison, folds, preparation, pretraining

    training = _resources(arguments)
    one = _resources(arguments, nodes=1, gpus=min(1, arguments.gpus))
    data = _data(arguments)
    jobs: list[Job] = []
    after: list[str] = []
    if not arguments.prepared:
        options, keep_going = _planning(arguments)
        resources = _resources(arguments, prepare=True, nodes=1, gpus=0)
        jobs += preparation(data, options, arguments.shards, resources, keep_going=keep_going)
        after = [jobs[-1].name]
    if not arguments.no_pretrain:
        _check_trainer(arguments.tr)
        jobs.append(pretraining(data, arguments.tr, training, after))
    if arguments.folds:
        trainer = None if arguments.no_pretrain else arguments.tr
        jobs += folds(data, arguments.folds, trainer, one, after if trainer is None else ["pretrain"])
    if arguments.compare is not None:
        jobs += comparison(*_comparison(arguments, data), one, after)
    return jobs


def _resources(arguments: argparse.Namespace, *, prepare: bool = False, **fixed: int) -> Resources:
    """What a job gets: as the options say, but for what is fixed."""
    from emim_nnunet.slurm import Resources

    given = {name: getattr(arguments, name) for name in ("partition", "time", "mem", "cpus")}
    if prepare:
        given = {name: getattr(arguments, f"prepare_{name}") or value for name, value in given.items()}
    counts = {"nodes": arguments.nodes, "gpus": arguments.gpus} | fixed
    memory = given.pop("mem")
    return Resources(account=arguments.account, memory=memory, more=arguments.sbatch, **given, **counts)


def _data(arguments: argparse.Namespace) -> Data:
    from emim_nnunet.datasets.dataset import PreprocessedDataset
    from emim_nnunet.datasets.raw import dataset_name
    from emim_nnunet.settings.plans import is_folder_name
    from emim_nnunet.slurm import Data

    for option, name in (("CONFIGURATION", arguments.configuration), ("-p", arguments.p)):
        if not is_folder_name(name):
            raise UserError(f"{option} {name!r}: use letters, digits, _ . + and - only")
    if arguments.prepared:
        data = PreprocessedDataset.find(arguments.dataset, arguments.p, arguments.configuration)
        data.require_cases()
    folders = {name: Path(os.environ[f"nnUNet_{name}"]).absolute() for name in ("preprocessed", "results")}
    return Data(
        name=data.name if arguments.prepared else dataset_name(arguments.dataset),
        configuration=arguments.configuration,
        plans_name=arguments.p,
        **folders,
    )


def _planning(arguments: argparse.Namespace) -> tuple[list[str], bool]:
    """The options that ``--plan`` gives to the preparation, and whether they leave out what cannot be used."""
    options = _words("--plan", arguments.plan)
    given = plan_and_preprocess.read_arguments(["-d", str(arguments.dataset), "-c", arguments.configuration, *options])
    nothing = plan_and_preprocess.read_arguments(["-d", "1"])
    fixed = [name for name in OF_PREPARATION if getattr(given, name) != getattr(nothing, name)]
    if fixed or given.c != [arguments.configuration] or given.d != [arguments.dataset]:
        raise UserError(
            f"--plan {arguments.plan!r}: {fixed[0] if fixed else '-d and -c'} cannot be given there, the jobs have their own"
        )
    plan_and_preprocess.options_of(given)
    return options, given.keep_going


def _comparison(arguments: argparse.Namespace, data: Data) -> tuple[list[str], list[Part]]:
    """The arguments of ``emim_compare``, and its parts."""
    from emim_nnunet.compare.jobs import all_jobs, weights_job
    from emim_nnunet.slurm import Part

    options = _words("--compare", arguments.compare)
    words = [str(arguments.dataset), arguments.configuration, "-p", arguments.p, *options]
    given = compare.read_arguments(words)
    for name in OF_COMPARISON:
        if getattr(given, name):
            raise UserError(f"--compare {arguments.compare!r}: --{name} cannot be given there")
    if not given.output.is_absolute():
        words += ["-o", str(given.output.absolute())]  # the last one counts
    protocol = compare.protocol_of(given, given.device or "cpu")
    jobs = all_jobs(protocol)
    names = [job.name for job in jobs]
    parts = []
    for number, job in enumerate(jobs):
        needed = None if job.draw is None else weights_job(protocol, job.arm, job.seed)
        parts.append(Part(number, job.name, None if needed is None else names.index(needed.name), job.draw is None))
    return words, parts


def _words(option: str, text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"{option} {text!r}: {str(error).lower()}") from error


def _check_trainer(name: str) -> None:
    """Whether there is such a trainer; one in a folder that ``nnUNet_extTrainer`` names is looked for when the job starts."""
    from emim_nnunet.trainer_search import SEARCH_VARIABLE

    if name == PRETRAINER:
        return
    from emim_nnunet import trainers

    known = [known for known in trainers.__all__ if known.endswith("Pretrain")]
    if not name.isidentifier() or (name not in known and not os.environ.get(SEARCH_VARIABLE)):
        raise UserError(f"-tr {name}: there is no such trainer of an SSL stage; there are {', '.join(known)}")


def entry() -> None:
    """Run the command and end the process with its exit code."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
