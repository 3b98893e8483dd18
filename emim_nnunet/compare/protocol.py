"""The protocol: pretrain every arm with every seed, fine-tune it often on few labelled cases, and test."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import count, cycle, islice

from emim_nnunet.compare.arms import SCRATCH, Arm
from emim_nnunet.compare.sequential import MIN_DRAWS
from emim_nnunet.errors import UserError

FINETUNE, LINEAR_FIRST = "finetune", "linear_first"
EVALUATIONS = {
    FINETUNE: "nnUNetTrainerEMIMFinetune",
    "linear": "nnUNetTrainerLinearProbe",
    LINEAR_FIRST: "nnUNetTrainerLinearFirst",
}
TITLES = {
    FINETUNE: "Fine-tuned Dice",
    "linear": "Dice of the linear probe",
    LINEAR_FIRST: "Dice of the linear head, fine-tuned",
}


def decisive(evaluations: Collection[str]) -> str | None:
    """The evaluation that ``--until``, the worth in labelled cases, the speed and the plain sentences are about.

    Args:
        evaluations: Those that were run.

    Returns:
        nnU-Net's fine-tuning, or else the linear head, whose encoder is trained too; None = nothing was fine-tuned.
    """
    return next((name for name in (FINETUNE, LINEAR_FIRST) if name in evaluations), None)


@dataclass(frozen=True)
class Protocol:
    """The protocol of a comparison.

    Attributes:
        dataset_id: Id of the preprocessed data set.
        configuration: Name of a configuration of the plans; its ``emim`` block sets the budgets of both stages.
        plans_name: Name of the plans.
        arms: The arms that are compared.
        counts: Numbers of labelled training cases to fine-tune on.
        seeds: Seeds of the pretraining; each chooses the test cases of its encoders, which they do not learn from.
        num_draws: Number of draws, at least as many as seeds, see :attr:`draws`.
        evaluations: Some of the keys of :data:`EVALUATIONS`; none = only pretrain and draw the spectra.
        num_test: Number of labelled cases for the test, drawn by each seed; None = the validation cases of one of nnU-Net's
            folds, whose number is the seed (modulo the number of folds).
        reference: Name of the arm whose planned schedule is the compute budget of all arms; None = the first that pretrains.
        until: The difference of Dice below which it does not matter: draws end once the interval of
            :mod:`.sequential` excludes 0 or lies within it; None = all draws are run.
        device: The device to train on: ``cuda``, ``cpu`` or ``mps``.
        jobs: Number of commands that run at the same time.
    """

    dataset_id: int
    configuration: str
    plans_name: str
    arms: Sequence[Arm]
    counts: Sequence[int]
    seeds: Sequence[int]
    num_draws: int
    evaluations: Sequence[str]
    num_test: int | None
    reference: str | None
    until: float | None
    device: str
    jobs: int

    @property
    def draws(self) -> dict[int, int]:
        """Number of each draw -> seed of the encoders that it fine-tunes; the seeds take turns.

        The number chooses the labelled cases and seeds the fine-tuning. The first draws have the numbers of the seeds, later
        ones the smallest that are left, so that a comparison can be given more draws.
        """
        later = (number for number in count() if number not in self.seeds)
        numbers = [*self.seeds, *islice(later, max(0, self.num_draws - len(self.seeds)))]
        return dict(zip(numbers, cycle(self.seeds), strict=False))

    @property
    def decided(self) -> tuple[Arm, Arm]:
        """The arms between which ``until`` decides: the first pretrained one and scratch.

        Raises:
            UserError: There is no such pair, nothing is fine-tuned, or there are too few draws to decide.
        """
        if self.num_draws < MIN_DRAWS:
            raise UserError(f"--draws {self.num_draws}: --until decides after {MIN_DRAWS} draws at the earliest")
        scratch = [arm for arm in self.arms if arm.name == SCRATCH]
        pretrained = [arm for arm in self.arms if arm.pretrained]
        if not scratch or not pretrained or decisive(self.evaluations) is None:
            raise UserError(
                "--until needs scratch and a pretrained arm in --arms, and finetune or linear_first in --evaluate"
            )
        return pretrained[0], scratch[0]

    def ssl_fold(self, seed: int) -> int:
        """Number of the fold of :func:`make_splits` for the SSL stages of that seed."""
        return list(self.seeds).index(seed) * (1 + len(self.counts))

    def fold(self, draw: int, labelled: int) -> int:
        """Number of the fold of :func:`make_splits` with that many training cases, chosen by the draw of that number."""
        place = list(self.counts).index(labelled)
        if draw in self.seeds:
            return self.ssl_fold(draw) + 1 + place
        later = list(self.draws).index(draw) - len(self.seeds)
        return len(self.seeds) * (1 + len(self.counts)) + later * len(self.counts) + place
