"""Settings of the SSL stage and of the segmentation stage, read from the ``emim`` block of the plans."""

from __future__ import annotations

from dataclasses import dataclass

from emim_nnunet.settings.block import require


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings of the SSL stage that belong to no method.

    Attributes:
        batch_size: Number of samples per step, over all GPUs.
        num_epochs: Number of epochs.
        num_iterations_per_epoch: Number of training steps per epoch.
        num_val_iterations_per_epoch: Number of batches of the fixed probe set, which is measured after each epoch.
        initial_lr: Peak learning rate of AdamW.
        weight_decay: Weight decay of AdamW, which acts on weights only (not on biases, norms and fill values).
        warmup_epochs: Number of epochs of linear warm-up before the cosine decay; at most a tenth of the epochs is used.
        gradient_clip: Largest norm of the gradient; larger gradients are scaled down to it.
        mirror: Whether crops are flipped at random along every axis.
        p_rotation: Probability that a crop is rotated; the angles are those of nnU-Net.
        p_scaling: Probability that a crop is scaled; the factors are those of nnU-Net.
        seed: Seed of everything random.
        checkpoint_minutes: Least time between two checkpoints in minutes; 0 = a checkpoint after every epoch.
        reconstruction_every: Number of epochs between two sets of pictures of reconstructions.
        use_validation_cases: Whether the stage trains on the validation cases of the fold too.
        collapse_patience: Number of epochs in a row with a warning of the collapse monitor after which the stage stops; None =
            never stop.
        collapse_reference: Another SSL stage whose losses are drawn beside those of this one in ``collapse_spectrum.png``: its
            folder or its ``ssl_log.csv``, relative to ``nnUNet_results`` or absolute; None = none.
        max_skipped_steps: Number of steps of an epoch whose loss or gradient may be not finite; such steps change nothing. One
            more stops the stage; 0 = stop at the first.
        tracker_pictures: Whether trackers (W&B, TensorBoard) get the pictures too, which show patients.
    """

    batch_size: int
    num_epochs: int
    num_iterations_per_epoch: int = 250
    num_val_iterations_per_epoch: int = 10
    initial_lr: float = 1e-3
    weight_decay: float = 0.01
    warmup_epochs: int = 5
    gradient_clip: float = 1.0
    mirror: bool = True
    p_rotation: float = 0.2
    p_scaling: float = 0.2
    seed: int = 0
    checkpoint_minutes: float = 10.0
    reconstruction_every: int = 10
    use_validation_cases: bool = False
    collapse_patience: int | None = None
    collapse_reference: str | None = None
    max_skipped_steps: int = 5
    tracker_pictures: bool = True

    def __post_init__(self) -> None:
        for name in (
            "batch_size",
            "num_epochs",
            "num_iterations_per_epoch",
            "num_val_iterations_per_epoch",
            "reconstruction_every",
        ):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        require(
            self.collapse_patience is None or self.collapse_patience >= 1,
            f"collapse_patience must be null or at least 1, not {self.collapse_patience}",
        )
        for name in ("p_rotation", "p_scaling"):
            require(0 <= getattr(self, name) <= 1, f"{name} must be in [0, 1], not {getattr(self, name)}")
        for name in ("initial_lr", "gradient_clip"):
            require(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}")
        for name in ("weight_decay", "warmup_epochs", "seed", "checkpoint_minutes", "max_skipped_steps"):
            require(getattr(self, name) >= 0, f"{name} must be at least 0, not {getattr(self, name)}")


SCRATCH = "scratch"
FINETUNE_INITS = ("pretrained", SCRATCH)
SSL_FOLDS = ("same", "all")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Settings of the segmentation stage. The keys start with ``finetune_``.

    Attributes:
        finetune_num_epochs: Number of epochs (nnU-Net: 1000).
        finetune_num_iterations_per_epoch: Number of training steps per epoch (nnU-Net: 250).
        finetune_num_val_iterations_per_epoch: Number of validation batches per epoch (nnU-Net: 50).
        finetune_final_validation: Whether whole validation cases are predicted and scored after the training, as nnU-Net does;
            if not, ``--val`` does it later.
        finetune_initial_lr: Peak learning rate of SGD from a pretrained encoder, ``-pretrained_weights`` included.
        finetune_scratch_lr: Peak learning rate of SGD from scratch (nnU-Net's own).
        finetune_warmup_epochs: Number of epochs of linear warm-up before nnU-Net's polynomial decay; at most a tenth of the
            epochs is used.
        finetune_deep_supervision: Whether losses are taken at all resolutions of the decoder, as in nnU-Net; if not, at
            the full one only.
        finetune_init: How the encoder starts: ``pretrained``, or ``scratch``, the control with a peak rate of its own.
        finetune_ssl_fold: Fold of the SSL stage whose encoder is taken: the ``same`` fold, or ``all``, which has seen the
            validation cases (their images, not their labels).
        finetune_ssl_trainer: Class name of the trainer whose SSL stage is taken; None = the one that the fine-tuning trainer
            belongs to.
        finetune_seed: Seed of decoder, order of cases and augmentation; results repeat exactly only without worker processes
            (``nnUNet_n_proc_DA=0``). None = no seed, as in nnU-Net.
        finetune_p_drop_modality: Probability that a training step does not see a modality of a sample, for each one; at least
            one stays. 0 = the network sees all that the case has, as in nnU-Net.
        finetune_keep_modalities: Names of modalities that are never dropped.
        linear_probe_lr: Peak learning rate of AdamW in the linear probe.
        linear_first_lr: Peak learning rate of AdamW, encoder included, where a linear head was fitted to a pretrained encoder
            first.
        linear_first_scratch_lr: The same where the encoder is from scratch.
    """

    finetune_num_epochs: int = 1000
    finetune_num_iterations_per_epoch: int = 250
    finetune_num_val_iterations_per_epoch: int = 50
    finetune_final_validation: bool = True
    finetune_initial_lr: float = 1e-3
    finetune_scratch_lr: float = 1e-2
    finetune_warmup_epochs: int = 50
    finetune_deep_supervision: bool = True
    finetune_init: str = "pretrained"
    finetune_ssl_fold: str = "same"
    finetune_ssl_trainer: str | None = None
    finetune_seed: int | None = None
    finetune_p_drop_modality: float = 0.0
    finetune_keep_modalities: tuple[str, ...] = ()
    linear_probe_lr: float = 1e-2
    linear_first_lr: float = 1e-3
    linear_first_scratch_lr: float = 1e-3

    def __post_init__(self) -> None:
        for name in (
            "finetune_num_epochs",
            "finetune_num_iterations_per_epoch",
            "finetune_num_val_iterations_per_epoch",
        ):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        rates = (
            "finetune_initial_lr",
            "finetune_scratch_lr",
            "linear_probe_lr",
            "linear_first_lr",
            "linear_first_scratch_lr",
        )
        for name in rates:
            require(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}")
        require(self.finetune_seed is None or self.finetune_seed >= 0, "finetune_seed must be null or at least 0")
        require(self.finetune_warmup_epochs >= 0, "finetune_warmup_epochs must be at least 0")
        require(
            0 <= self.finetune_p_drop_modality <= 1,
            f"finetune_p_drop_modality must be in [0, 1], not {self.finetune_p_drop_modality}",
        )
        require(self.finetune_init in FINETUNE_INITS, f"finetune_init must be one of {', '.join(FINETUNE_INITS)}")
        require(self.finetune_ssl_fold in SSL_FOLDS, f"finetune_ssl_fold must be one of {', '.join(SSL_FOLDS)}")
