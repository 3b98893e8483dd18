"""Settings of the training of a classifier."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Settings that decide how a classifier is trained.

    Attributes:
        frozen: Whether the encoder stays as it is, so that only the linear layers are fitted.
        class_weights: Whether rare classes count as much as frequent ones.
        steps: Number of steps of fine-tuning.
        batch_size: Number of crops per step, over all processes.
        initial_lr: Peak learning rate of AdamW for the encoder; the rate of the linear layers is ten times as high.
        weight_decay: Weight decay of AdamW.
        inverse_penalty: C of the logistic regression, the inverse of the strength of its L2 penalty; > 0.
        seed: Seed of everything random.
    """

    frozen: bool = False
    class_weights: bool = True
    steps: int = 1000
    batch_size: int = 2
    initial_lr: float = 1e-4
    weight_decay: float = 0.01
    inverse_penalty: float = 0.1
    seed: int = 0
