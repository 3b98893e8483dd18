"""The protocol: pretrain every arm with every seed, fine-tune it on few labelled cases, and test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from emim_nnunet.compare.arms import Arm

EVALUATIONS = {"finetune": "nnUNetTrainerEMIMFinetune", "linear": "nnUNetTrainerLinearProbe"}
TITLES = {"finetune": "Fine-tuned Dice", "linear": "Dice of the linear probe"}


@dataclass(frozen=True)
class Protocol:
    """The protocol of a comparison.

    Attributes:
        dataset_id: Id of the preprocessed data set.
        configuration: Name of a configuration of the plans; its ``emim`` block sets the budgets of both stages.
        plans_name: Name of the plans.
        arms: The arms that are compared.
        counts: Numbers of labelled training cases to fine-tune on.
        seeds: Seeds; each is used for pretraining, the choice of test cases and labelled cases, and fine-tuning.
        evaluations: Some of the keys of :data:`EVALUATIONS`; none = only pretrain and draw the spectra.
        num_test: Number of labelled cases for the test, drawn by each seed; None = the validation cases of one of nnU-Net's
            folds, whose number is the seed (modulo the number of folds).
        reference: Name of the arm whose planned schedule is the compute budget of all arms; None = the first that pretrains.
        device: The device to train on: ``cuda``, ``cpu`` or ``mps``.
        jobs: Number of commands that run at the same time.
    """

    dataset_id: int
    configuration: str
    plans_name: str
    arms: Sequence[Arm]
    counts: Sequence[int]
    seeds: Sequence[int]
    evaluations: Sequence[str]
    num_test: int | None
    reference: str | None
    device: str
    jobs: int

    def ssl_fold(self, seed: int) -> int:
        """Number of the fold of :func:`make_splits` for the SSL stages of that seed."""
        return list(self.seeds).index(seed) * (1 + len(self.counts))

    def fold(self, seed: int, count: int) -> int:
        """Number of the fold of :func:`make_splits` with that many training cases, chosen by that seed."""
        return self.ssl_fold(seed) + 1 + list(self.counts).index(count)
