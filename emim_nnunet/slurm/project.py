"""The jobs of a project: preparation, pretraining, folds and comparison, each after what it needs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emim_nnunet.slurm.script import Job, Resources

FINETUNE, BOTH_STAGES = "nnUNetTrainerEMIMFinetune", "nnUNetTrainerEMIM"
TASK = "$SLURM_ARRAY_TASK_ID"


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is prepared and trained on.

    Attributes:
        name: ``DatasetXXX_NAME``.
        configuration: Name of a configuration of the plans.
        plans_name: Name of the plans.
        preprocessed: ``nnUNet_preprocessed``.
        results: ``nnUNet_results``.
    """

    name: str
    configuration: str
    plans_name: str
    preprocessed: Path
    results: Path

    def folder(self, trainer: str, fold: str) -> str:
        """nnU-Net's folder of the results of a fold."""
        return f"{self.results}/{self.name}/{trainer}__{self.plans_name}__{self.configuration}/fold_{fold}"

    def training(self, fold: str, trainer: str) -> str:
        """The arguments that name a training."""
        return f"{_quoted([self.name, self.configuration])} {fold} {_quoted(['-tr', trainer, '-p', self.plans_name])}"


@dataclass(frozen=True)
class Part:
    """A part of a comparison.

    Attributes:
        number: What ``emim_compare --only`` takes.
        name: Its name, unique in the comparison.
        needs: Number of the part that makes its weights; None = it needs none, or makes some itself.
        makes_weights: Whether it makes weights.
    """

    number: int
    name: str
    needs: int | None
    makes_weights: bool


def preparation(
    data: Data, options: Sequence[str], shards: int, resources: Resources, *, keep_going: bool
) -> list[Job]:
    """Fingerprint, plans and preprocessing; the last job leaves a data set that can be trained on.

    Args:
        data: The data set.
        options: Further options of ``emim_plan_and_preprocess``.
        shards: Number of tasks of each array; 1 = all in one job.
        resources: What each task gets.
        keep_going: Whether ``options`` say that cases that cannot be used are left out; commands end with 2 then.
    """
    given = ["-d", data.name, "-c", data.configuration, "-overwrite_plans_name", data.plans_name, *options]
    given += [] if resources.cpus is None else ["-np", str(resources.cpus), "-npfp", str(resources.cpus)]
    command = f"emim_plan_and_preprocess {_quoted(given)}"
    succeeds = str(data.preprocessed / data.name / "failed.json") if keep_going else None
    if shards == 1:
        return [Job(name="prepare", command=command, resources=resources, succeeds_with=succeeds)]

    def job(name: str, more: str, after: str | None, *, array: bool = False) -> Job:
        return Job(
            name=name,
            command=f"{command} {more}",
            resources=resources,
            array=f"1-{shards}" if array else None,
            after=() if after is None else (after,),
            even_if_failed=keep_going and not array,  # --finish knows whether something is missing
            succeeds_with=None if array else succeeds,
        )

    part = f"--shard {TASK}/{shards}"
    return [
        job("fingerprint", f"--no_pp {part}", None, array=True),
        job("plan", "--no_pp --finish", "fingerprint"),
        job("preprocess", part, "plan", array=True),
        job("finish", "--finish", "preprocess"),
    ]


def pretraining(data: Data, trainer: str, resources: Resources, after: Sequence[str]) -> Job:
    """The SSL stage on all cases, by a process for each GPU of each node.

    Processes are started by srun, not by torchrun, which ends with 1 whatever they end with.

    Args:
        data: The data set.
        trainer: Name of the trainer of the SSL stage.
        resources: What it gets.
        after: Names of jobs that must be finished.
    """
    processes = resources.nodes * resources.processes
    command = f"emim_pretrain {data.training('all', trainer)} --c"
    before = []
    if processes > 1:
        group = f"RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE={processes}"
        command = f"env MASTER_ADDR=$SLURM_LAUNCH_NODE_IPADDR {group} {command}"  # srun runs on the node of rank 0
        before = ["export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))"]
    return Job(name="pretrain", command=command, resources=resources, before=before, after=after)


def folds(
    data: Data, numbers: Sequence[int], ssl_trainer: str | None, resources: Resources, after: Sequence[str]
) -> list[Job]:
    """Segmentation of folds.

    Args:
        data: The data set.
        numbers: Of the folds.
        ssl_trainer: Trainer of :func:`pretraining`, from whose encoder they start; None = each fold has an SSL stage.
        resources: What each task gets.
        after: Names of jobs that must be finished.
    """
    trainer = BOTH_STAGES if ssl_trainer is None else FINETUNE
    folder = f"{shlex.quote(data.folder(trainer, ''))}{TASK}"
    before = [f"if [ -f {folder}/validation/summary.json ]; then exit 0; fi", "export WEIGHTS= CONTINUE=--c"]
    jobs = []
    if ssl_trainer is not None:
        stage = Path(data.folder(ssl_trainer, "all"))
        weights = str(stage / "weights.pth")
        target = ["-d", data.name, "-p", data.plans_name, "-c", data.configuration, "-o", weights]
        jobs = [
            Job(
                name="export",
                command=f"emim_export {_quoted([str(stage), *target])}",
                resources=resources,
                after=after,
            )
        ]
        after = ["export"]
        begun = f"[ -f {folder}/checkpoint_latest.pth ] || [ -f {folder}/checkpoint_final.pth ]"
        before += [f"{begun} || export WEIGHTS={shlex.quote(weights)} CONTINUE="]  # nnU-Net does not take both
    command = f'emim_train {data.training(TASK, trainer)} $CONTINUE ${{WEIGHTS:+-pretrained_weights "$WEIGHTS"}}'
    array = ",".join(map(str, numbers))
    jobs += [Job(name="folds", command=command, resources=resources, array=array, before=before, after=after)]
    return jobs


def comparison(
    arguments: Sequence[str], parts: Sequence[Part], resources: Resources, after: Sequence[str]
) -> list[Job]:
    """A comparison: the weights of each arm and seed, the draws that use them, and the report.

    Args:
        arguments: Of ``emim_compare``.
        parts: All parts of the comparison.
        resources: What each task gets.
        after: Names of jobs that must be finished.
    """
    command = f"emim_compare {_quoted(arguments)}"
    names = {part.number: f"compare_{part.name}" for part in parts}
    jobs = [
        Job(name=names[p.number], command=f"{command} --only {p.number}", resources=resources, after=after)
        for p in parts
        if p.makes_weights
    ]
    for needed in dict.fromkeys(part.needs for part in parts if not part.makes_weights):
        numbers = [part.number for part in parts if not part.makes_weights and part.needs == needed]
        waits = after if needed is None else [names[needed]]
        name = f"compare_draws_{'scratch' if needed is None else names[needed].removeprefix('compare_')}"
        jobs.append(
            Job(
                name=name,
                command=f"{command} --only {TASK}",
                resources=resources,
                array=",".join(map(str, numbers)),
                after=waits,
            )
        )
    everything = [job.name for job in jobs]
    return [*jobs, Job(name="compare_report", command=command, resources=resources, after=everything)]


def _quoted(words: Sequence[str]) -> str:
    return shlex.join(words)
