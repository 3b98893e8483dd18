"""The jobs of a comparison: the weights of an arm, and its trainings of a draw; each can be run by itself on a cluster."""

from __future__ import annotations

from dataclasses import dataclass

from emim_nnunet.compare.arms import Arm
from emim_nnunet.compare.protocol import Protocol
from emim_nnunet.errors import UserError


@dataclass(frozen=True)
class Job:
    """A part of a comparison that one process runs.

    Attributes:
        name: Its name, unique in a comparison.
        arm: The arm.
        seed: Seed of the pretraining.
        draw: Number of the draw whose trainings are run, for all evaluations and numbers of labelled cases; None = the weights
            are made: an SSL stage and its export, or the export of a checkpoint.
    """

    name: str
    arm: Arm
    seed: int
    draw: int | None = None


def weights_job(protocol: Protocol, arm: Arm, seed: int) -> Job | None:
    """The job that makes the weights of an arm and seed; a checkpoint has one for all seeds, training from scratch has none."""
    if arm.file is not None:
        return Job(f"export_{arm.name}", arm, protocol.seeds[0])
    return Job(f"pretrain_{arm.name}_seed{seed}", arm, seed) if arm.pretrained else None


def weights_jobs(protocol: Protocol) -> list[Job]:
    """All jobs that make weights; the exports, which may fail, come first, because they take seconds."""
    jobs = [weights_job(protocol, arm, seed) for seed in protocol.seeds for arm in protocol.arms]
    different = {job.name: job for job in jobs if job is not None}
    return sorted(different.values(), key=lambda job: job.arm.file is None)


def draw_jobs(protocol: Protocol, draw: int) -> list[Job]:
    """The jobs of a draw, one per arm."""
    seed = protocol.draws[draw]
    return [Job(f"draw{draw}_{arm.name}", arm, seed, draw) for arm in protocol.arms if protocol.evaluations]


def all_jobs(protocol: Protocol) -> list[Job]:
    """All jobs; one that needs the result of another comes after it."""
    return weights_jobs(protocol) + [job for draw in protocol.draws for job in draw_jobs(protocol, draw)]


def find_job(protocol: Protocol, which: str) -> Job:
    """Find a job by its name or its place in :func:`all_jobs`.

    Raises:
        UserError: There is no such job.
    """
    jobs = all_jobs(protocol)
    found = [job for place, job in enumerate(jobs) if which in (job.name, str(place))]
    if not found:
        raise UserError(f"--only {which}: must be a name of --list_jobs, or a number from 0 to {len(jobs) - 1}")
    return found[0]
