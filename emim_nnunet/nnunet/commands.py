"""nnU-Net's training command: what our commands call of it, and the two places where they change it, in their own process."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from nnunetv2.run import run_training
from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint, run_training_entry

__all__ = [
    "check_before_training",
    "get_trainer_from_args",
    "maybe_load_checkpoint",
    "run_training_entry",
    "search_trainers_with",
]

TrainerSearch = Callable[[str], type | None]


def search_trainers_with(search: Callable[[str, TrainerSearch], type | None]) -> None:
    """Let nnU-Net's command ask for trainers elsewhere.

    Processes that nnU-Net starts search as usual.

    Args:
        search: It is given the name of a trainer, and nnU-Net's own search, which raises RuntimeError for an unknown name.
    """
    nnunets: TrainerSearch = run_training.recursive_find_trainer_class_by_name

    @wraps(nnunets)
    def find(trainer_name: str) -> type | None:
        return search(trainer_name, nnunets)

    run_training.recursive_find_trainer_class_by_name = find


def check_before_training(check: Callable[[str, str, int | str, str, str | None], None]) -> None:
    """Let nnU-Net's command look first at what it is asked for.

    Args:
        check: It is given data set, configuration, fold, name of the plans, and the file of ``-pretrained_weights`` or None;
            what it raises ends the command before anything is written.
    """
    train: Callable[..., Any] = run_training.run_training

    @wraps(train)
    def checked(
        dataset: str,
        configuration: str,
        fold: int | str,
        trainer: str,
        plans: str,
        weights: str | None = None,
        *more: Any,
        **named: Any,
    ) -> None:
        check(dataset, configuration, fold, plans, weights)
        train(dataset, configuration, fold, trainer, plans, weights, *more, **named)

    run_training.run_training = checked
