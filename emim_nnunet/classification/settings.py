"""Settings of the training of a classifier."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Settings of a training.

    Attributes:
        frozen: Leave the encoder as it is.
        class_weights: Count rare classes as much as frequent ones.
        steps: Of fine-tuning.
        batch_size: Crops per step.
        initial_lr: Peak rate of AdamW for the encoder; the linear layers get ten times as much.
        weight_decay: Of AdamW.
        inverse_penalty: C of the logistic regression.
        seed: Everything random follows from it.
    """

    frozen: bool = False
    class_weights: bool = True
    steps: int = 1000
    batch_size: int = 2
    initial_lr: float = 1e-4
    weight_decay: float = 0.01
    inverse_penalty: float = 0.1
    seed: int = 0
