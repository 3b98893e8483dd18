"""The text of batch scripts, and of the program that submits them in order."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from emim_nnunet.errors import EXIT_INTERRUPTED, UserError

TIME = re.compile(r"\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d+(?::\d\d){0,2}")  # as sbatch takes it
MEMORY = re.compile(r"\d+[KMGT]?")
FOLDER = re.compile(r"[\w/.+,@-]+")  # without %, which sbatch replaces, and spaces
WORD = re.compile(r"[\w.+@,-]+")
LAST_SECONDS = 60  # after the first process of a job has ended; the others hang then if it died
MAX_KILLS = 3
MAX_WARNING_SECONDS = 65535  # of sbatch --signal
# In a requeued array task SLURM_JOB_ID may be that of the whole array.
REQUEUE = f"""\
finish() {{  # a checkpoint was written: go on in the queue; killed: try again, but not for ever
    if [ "$1" -eq {EXIT_INTERRUPTED} ] || {{ [ "$1" -gt 128 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {MAX_KILLS} ]; }}; then
        scontrol requeue "${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}${{SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}}"
    fi
    exit "$1"
}}"""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What each task of a job gets.

    Attributes:
        partition: Where it runs; None = the cluster's default, as for the following.
        account: Who pays.
        time: The most that it may take, as sbatch writes it: ``90``, ``12:00:00``, ``2-00``.
        memory: Of a node, as sbatch writes it: ``64G``.
        cpus: Cores of a process.
        gpus: GPUs of a node, each with a process of its own; 0 = one process without a GPU.
        nodes: Number of nodes.
        more: Further options of sbatch, each ``--name`` or ``--name=value``.

    Raises:
        UserError: One is not as sbatch needs it.
    """

    partition: str | None = None
    account: str | None = None
    time: str | None = None
    memory: str | None = None
    cpus: int | None = None
    gpus: int = 0
    nodes: int = 1
    more: Sequence[str] = ()

    def __post_init__(self) -> None:
        for option, text, pattern, wanted in (
            ("--partition", self.partition, WORD, "a name"),
            ("--account", self.account, WORD, "a name"),
            ("--time", self.time, TIME, "minutes, hours:minutes:seconds or days-hours, for example 12:00:00 or 2-00"),
            ("--mem", self.memory, MEMORY, "a number with K, M, G or T, for example 64G"),
        ):
            if text is not None and not pattern.fullmatch(text):
                raise UserError(f"{option} {text!r}: must be {wanted}")
        for option, number, least in (("--cpus", self.cpus, 1), ("--gpus", self.gpus, 0), ("--nodes", self.nodes, 1)):
            if number is not None and number < least:
                raise UserError(f"{option} {number}: must be at least {least}")
        for line in self.more:
            check_line("--sbatch", line)
            if not line.startswith("-"):
                raise UserError(f"--sbatch {line!r}: must be an option of sbatch, for example --sbatch=--qos=long")

    @property
    def processes(self) -> int:
        """Processes of a node."""
        return max(1, self.gpus)

    def lines(self) -> list[str]:
        """The options of sbatch."""
        given: dict[str, object] = {
            "partition": self.partition,
            "account": self.account,
            "time": self.time,
            "mem": self.memory,
            "nodes": self.nodes,
            "ntasks-per-node": self.processes,
            "cpus-per-task": self.cpus,
            "gpus-per-node": self.gpus or None,
        }
        return [*(f"--{name}={value}" for name, value in given.items() if value is not None), *self.more]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job of SLURM.

    Attributes:
        name: Its name, unique in a project.
        command: What its processes run, a line of bash.
        resources: What it gets.
        array: Numbers of its tasks, as sbatch writes them (``1-8``); None = it is no array.
        before: Lines of bash that run once, on the first node.
        after: Names of jobs that must be finished.
        even_if_failed: Whether those may have failed; the command itself finds out then whether it has what it needs.
        succeeds_with: A file that says, where the command ends with 2, that all is done but for cases that are left out.
    """

    name: str
    command: str
    resources: Resources
    array: str | None = None
    before: Sequence[str] = ()
    after: Sequence[str] = ()
    even_if_failed: bool = False
    succeeds_with: str | None = None


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What all jobs of a project share.

    Attributes:
        logs: Folder of their output.
        warning_seconds: So long before the time is up a job is told to write its checkpoint.
        setup: Lines of bash that come first, such as ``module load``.
        variables: Environment variables that are set.

    Raises:
        UserError: Something is not as sbatch needs it.
    """

    logs: str
    warning_seconds: int = 300
    setup: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not FOLDER.fullmatch(self.logs):
            raise UserError(f"--logs {self.logs!r}: sbatch takes letters, digits, / _ . + , @ and - only")
        if not 0 < self.warning_seconds <= MAX_WARNING_SECONDS:
            raise UserError(f"--warning {self.warning_seconds}: must be 1 to {MAX_WARNING_SECONDS} seconds")
        for line in self.setup:
            check_line("--setup", line)


def check_line(option: str, line: str) -> None:
    """Check that what a user gives is one line.

    Args:
        option: The option that it stands after, for the message.
        line: What stands there.

    Raises:
        UserError: It is empty, or several lines.
    """
    if not line.strip() or not line.isprintable():
        raise UserError(f"{option} {line!r}: must be one line")


def batch_script(job: Job, around: Surroundings) -> str:
    """The script of a job, for sbatch.

    Args:
        job: The job.
        around: What all jobs share.
    """
    number = "%j" if job.array is None else "%A_%a"
    options = [f"--job-name={job.name}", f"--output={around.logs}/%x_{number}.txt", "--open-mode=append", "--requeue"]
    options += [f"--signal=TERM@{around.warning_seconds}", *([f"--array={job.array}"] if job.array else [])]
    cores = "" if job.resources.cpus is None else f" --cpus-per-task={job.resources.cpus}"  # not inherited since 22.05
    run = f"srun{cores} --kill-on-bad-exit=0 --wait={LAST_SECONDS} bash -c {shlex.quote(f'exec {job.command}')}"
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in [*options, *job.resources.lines()])]
    lines += [REQUEUE, *around.setup]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in around.variables.items()]
    lines += job.before
    if job.succeeds_with is not None:
        left_out = shlex.quote(job.succeeds_with)
        lines += [f"rm -f {left_out}", run, "code=$?"]
        lines += [f'if [ "$code" -eq 2 ] && [ -f {left_out} ]; then code=0; fi', 'finish "$code"']
    else:
        lines += [run, "finish $?"]
    return "\n".join([*lines, ""])


def program(jobs: Sequence[Job], around: Surroundings) -> str:
    """A bash program that submits the jobs of a project, all or none, and prints their numbers.

    Args:
        jobs: They, each after those that it waits for.
        around: What all share.
    """
    lines = ["#!/bin/bash", "set -euo pipefail", "submitted=()"]
    lines += [
        "trap 'code=$?; if [ $code -ne 0 ] && [ ${#submitted[@]} -gt 0 ]; then scancel \"${submitted[@]}\"; fi' EXIT"
    ]
    numbers = {job.name: number for number, job in enumerate(jobs, 1)}
    for job in jobs:
        kind = "afterany" if job.even_if_failed else "afterok"
        waits = "".join(f":$job{numbers[name]}" for name in job.after)
        options = f" --dependency={kind}{waits} --kill-on-invalid-dep=yes" if job.after else ""
        variable = f"job{numbers[job.name]}"
        lines += ["", f"{variable}=$(sbatch --parsable{options} <<'END_OF_SCRIPT'"]
        lines += [batch_script(job, around) + "END_OF_SCRIPT", ")"]
        lines += [f"{variable}=${{{variable}%%;*}}", f'submitted+=("${variable}")']  # sbatch may print NUMBER;CLUSTER
        lines += [f'echo "${variable} {job.name}"']
    return "\n".join([*lines, ""])
