"""``emim_compare``: runs a comparison by its protocol, from the preprocessed data to the report, or a single job of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emim_nnunet.compare.commands import Commands
from emim_nnunet.compare.jobs import Job, all_jobs, draw_jobs, find_job, weights_jobs
from emim_nnunet.compare.power import draw_differences
from emim_nnunet.compare.preparation import Preparation, find_data, prepare
from emim_nnunet.compare.protocol import Protocol, decisive
from emim_nnunet.compare.report import write_results
from emim_nnunet.compare.scores import collect_spectra, read_scores
from emim_nnunet.compare.sequential import Decision, decide
from emim_nnunet.compare.speed import read_curves
from emim_nnunet.compare.workspace import Workspace
from emim_nnunet.report import leave_report
from emim_nnunet.storage.locks import acquire


def compare(protocol: Protocol, output: Path, json_path: Path | None) -> Path:
    """Run a comparison, or continue one that was interrupted or whose jobs were run one by one.

    Args:
        protocol: The protocol of the comparison.
        output: The folder for all files of the comparison; finished parts are not done again.
        json_path: A second file to write the results to; None = none.

    Returns:
        The path of ``results.md``.

    Raises:
        UserError: The protocol cannot be carried out, a command failed, or another process writes the folder.
        SystemExit: SIGTERM came; its commands have ended, with a checkpoint where they train. The code is
            :data:`.errors.EXIT_INTERRUPTED`.
    """
    with acquire(output, f"the comparison {output}"):
        prepared = prepare(protocol, output)
        commands = Commands(protocol, prepared.workspace)
        with commands.processes.stopped_together():
            commands.run_all(weights_jobs(protocol), "SSL stages")
            draws, decision = _run_draws(protocol, commands)
        page = write_results(_results(protocol, prepared, commands, draws, decision), output, json_path)
        leave_report(output)
        return page


def run_job(protocol: Protocol, output: Path, which: str) -> Job:
    """Run one job of a comparison; others may run at the same time, on other machines too.

    Args:
        protocol: The protocol of the comparison.
        output: The folder for all files of the comparison.
        which: Name of the job, or its place in :func:`list_jobs`.

    Returns:
        The job.

    Raises:
        UserError: The protocol cannot be carried out, there is no such job, what it needs is not finished, or a command failed.
        SystemExit: As of :func:`compare`.
    """
    job = find_job(protocol, which)
    commands = Commands(protocol, prepare(protocol, output).workspace)
    with commands.processes.stopped_together():
        commands.run(job)
    return job


def list_jobs(protocol: Protocol, output: Path) -> list[tuple[Job, bool]]:
    """All jobs of a comparison in an order in which they can be run, and whether each is finished. Writes nothing.

    Args:
        protocol: The protocol of the comparison.
        output: The folder for all files of the comparison; it need not exist.

    Raises:
        UserError: There is no such data set or configuration.
    """
    commands = Commands(protocol, Workspace(output.absolute(), find_data(protocol)))
    return [(job, commands.finished(job)) for job in all_jobs(protocol)]


def _run_draws(protocol: Protocol, commands: Commands) -> tuple[list[int], Decision | None]:
    """Run the draws, all or until the interval decides; the numbers of those that count, and the decision."""
    draws = list(protocol.draws)
    if protocol.until is None:
        commands.run_all([job for draw in draws for job in draw_jobs(protocol, draw)], "segmentations")
        return draws, None
    arms, decision = [arm.name for arm in protocol.decided], None
    evaluation = str(decisive(protocol.evaluations))
    for number, draw in enumerate(draws, 1):
        commands.run_all(draw_jobs(protocol, draw), f"draw {number} of at most {len(draws)}")
        scores = read_scores(commands.score_files(draws[:number]))
        decision = decide(draw_differences(scores, evaluation, min(protocol.counts), *arms), protocol.until)
        if decision.reason is not None:
            return draws[:number], decision
    return draws, decision


def _results(
    protocol: Protocol, prepared: Preparation, commands: Commands, draws: list[int], decision: Decision | None
) -> dict[str, Any]:
    files = commands.score_files(draws)
    data = prepared.workspace.data
    folds = {
        count: [prepared.splits[protocol.fold(draw, count)]["train"] for draw in draws] for count in protocol.counts
    }
    until = None
    if decision is not None:
        arm, _ = protocol.decided
        until = {"difference": protocol.until, "arm": arm.name, "labelled": min(protocol.counts)} | vars(decision)
    return {
        "dataset": data.name,
        "configuration": protocol.configuration,
        "cases": {
            "unlabelled": len(data.unlabelled),
            "labelled_pool": len(prepared.splits[0]["train"]),
            "test": len({case for test in prepared.tests.values() for case in test}),
        },
        "test_cases": sorted({case for test in prepared.tests.values() for case in test}),
        "seeds": list(protocol.seeds),
        "draws": draws,
        "num_draws": protocol.num_draws,
        "labelled": list(protocol.counts),
        "labelled_sets": {count: len({tuple(cases) for cases in sets}) for count, sets in folds.items()},
        "compute": prepared.compute,
        "files": prepared.files,
        "budget": prepared.budget,
        "until": until,
        "scores": read_scores(files),
        "curves": read_curves(files),
        "spectra": collect_spectra(commands.ssl_folders()),
    }
