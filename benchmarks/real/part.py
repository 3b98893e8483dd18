"""What a part of the experiment is, and how a network is fine-tuned in it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from real.arms import arm_of
from real.data import CHANNELS, CONFIGURATION, SEARCH

STEPS = 500  # of fine-tuning
UNET, LINEAR = "U-Net", "linear"
# what rows of results were where they do not say it
FIRST_ROWS = {"encoder_factor": 1.0, "frozen": 0.0, "head": UNET, "p_drop": 0.0, "subsets": False}
FIRST_ROWS |= {"channels": "+".join(CHANNELS), "configuration": CONFIGURATION}


@dataclass(frozen=True)
class Tuning:
    """How a network is fine-tuned; from scratch, rate and head alone count.

    Attributes:
        rate: Peak rate of AdamW.
        encoder_factor: Factor of it for the encoder; the decoder, which is new, keeps the rate.
        frozen: Share of the steps in which the encoder is not trained at all, so that a decoder that knows nothing does not
            pull it away.
        head: What follows the encoder: ``U-Net``, the decoder of the plans, or ``linear``, one linear map of all stages per
            voxel, which begins where logistic regression on the frozen encoder ends (linear probing before fine-tuning: arXiv
            2202.10054).
        steps: Number of steps.
        p_drop: Probability that a modality of a sample is dropped, see ``finetune_p_drop_modality``.
    """

    rate: float
    encoder_factor: float = 1.0
    frozen: float = 0.0
    head: str = UNET
    steps: int = STEPS
    p_drop: float = 0.0


@dataclass(frozen=True)
class Part:
    """A part of the experiment.

    Attributes:
        fold: The fold whose training patients SSL stages learn from.
        arms: The arms besides training from scratch, see :func:`arms.arm_of`.
        epochs: Epochs of an SSL stage, of ``steps_per_epoch`` steps.
        seeds: Number of pretraining seeds; they rotate over the draws.
        crossed: Whether every draw fine-tunes the encoders of all seeds instead.
        label_fold: The fold that labelled and test patients come from.
        labelled: Numbers of labelled patients.
        draws: Number of draws of labelled patients.
        first_draw: Number of the first of them.
        tunings: How to fine-tune, each a training of its own; none = no fine-tuning.
        scratch: The same for training from scratch; None = like the arms, but for what concerns a pretrained encoder alone.
        linear: Whether frozen features are read out.
        subsets: Whether every subset of the modalities is tested at the end.
        after: Epochs after which encoders are taken; none = the last.
        steps_per_epoch: Of SSL stages.
        channels: The modalities of labelled and test patients; the stem of an encoder is adapted to them by name.
        configuration: That of the plans whose network is trained, see :mod:`data`.
        source: The data set that SSL stages learnt from, of another run whose folder is given with --encoders; none = this one.
    """

    fold: int
    arms: tuple[str, ...]
    epochs: int = 20
    seeds: int = 1
    crossed: bool = False
    label_fold: int = SEARCH
    labelled: tuple[int, ...] = ()
    draws: int = 0
    first_draw: int = 0
    tunings: tuple[Tuning, ...] = ()
    scratch: tuple[Tuning, ...] | None = None
    linear: bool = False
    subsets: bool = False
    after: tuple[int, ...] = ()
    steps_per_epoch: int = 250
    channels: tuple[str, ...] = CHANNELS
    configuration: str = CONFIGURATION
    source: str = ""

    @property
    def encoders(self) -> tuple[int, ...]:
        """Epochs after which encoders are taken."""
        return self.after or (self.epochs,)

    @property
    def draw_numbers(self) -> range:
        """The draws, by number."""
        return range(self.first_draw, self.first_draw + self.draws)

    @property
    def scratch_tunings(self) -> tuple[Tuning, ...]:
        """How to train from scratch."""
        alike = tuple(t for t in self.tunings if (t.encoder_factor, t.frozen) == (1.0, 0.0))
        return alike if self.scratch is None else self.scratch

    def stage(self, arm: str, seed: int) -> str:
        """The name of an SSL stage in files."""
        network = self.configuration.removeprefix(CONFIGURATION)
        return f"{self.label(arm)}{network}_fold{self.fold}_epochs{self.epochs}_seed{seed}"

    def label(self, arm: str) -> str:
        """The name of an arm in results."""
        return arm_of(arm).name + (f"_from_{self.source}" if self.source else "")

    def quick(self) -> Part:
        """The same in minutes: it shows that everything runs, and decides nothing."""
        tunings, scratch = (
            tuple(replace(tuning, steps=16) for tuning in group) for group in (self.tunings, self.scratch_tunings)
        )
        return replace(
            self,
            epochs=1,
            steps_per_epoch=8,
            labelled=self.labelled[:1],
            draws=min(self.draws, 1),
            after=(),
            tunings=tunings,
            scratch=scratch,
        )
