"""Linear probing, then fine-tuning (arXiv 2202.10054): segmentation with few labelled cases.

A decoder that knows nothing pulls a pretrained encoder away from what it has learnt, and has enough weights to learn a few
cases by heart. A linear head has one optimum, which logistic regression finds before anything is trained.
"""

from __future__ import annotations

from math import ceil
from typing import cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from emim_nnunet.errors import listed
from emim_nnunet.networks import encoder_of
from emim_nnunet.nnunet.plans import ConfigurationManager, PlansManager
from emim_nnunet.randomness import Stream, seeded_generator
from emim_nnunet.training.finetune_trainer import FinetuneTrainer
from emim_nnunet.training.linear_fit import Rows, chosen_places, features_at, fit, join, set_layers
from emim_nnunet.training.linear_probe import LinearProbeNetwork, LinearProbeTrainer

PATCHES = 200  # of the training that the head is fitted to
PLACES = 20  # of each patch and class


class LinearFirstTrainer(LinearProbeTrainer):
    """Fits a linear head to the pretrained encoder, then trains both with AdamW at a low rate, as nnU-Net trains otherwise."""

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The encoder of the plans with linear layers; there is no deep supervision."""
        unet = FinetuneTrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, False
        )
        return LinearProbeNetwork(encoder_of(unet), num_output_channels, frozen=False)

    def _peak_rate(self, *, pretrained: bool) -> tuple[float, str]:
        if pretrained:
            return self.config.linear_first_lr, "linear_first_lr: the head is fitted to a pretrained encoder"
        return (
            self.config.linear_first_scratch_lr,
            "linear_first_scratch_lr: the head is fitted to an encoder from scratch",
        )

    def _num_warmup_epochs(self) -> int:
        return FinetuneTrainer._num_warmup_epochs(self)

    def on_train_start(self) -> None:
        """Start as nnU-Net does; where a training begins, fit the head."""
        super().on_train_start()
        if not self._resumed:
            self._fit_head()

    def _fit_head(self) -> None:
        decoder = cast(LinearProbeNetwork, self.unwrapped_network).decoder
        if self.local_rank == 0:
            exclusive = not self.label_manager.has_regions
            rows = self._rows()
            slopes, biases, shrinkage = fit(rows, exclusive=exclusive)
            set_layers(decoder, slopes, biases)
            unseen = [str(number) for number in np.flatnonzero(~rows.target.any(0))]
            self.print_to_log_file(
                f"Linear head: fitted to {len(rows.features)} positions of {len(np.unique(rows.group))} cases (C {shrinkage:g})"
                + (f"; no patch showed output {listed(unseen, 10)}" if unseen else "")
            )
        if self.is_ddp:
            for parameter in decoder.parameters():
                dist.broadcast(parameter.data, 0)

    @torch.no_grad()
    def _rows(self) -> Rows:
        """Positions of augmented patches, as many of each class as there are, up to :data:`PLACES`."""
        generator = seeded_generator(self.config.finetune_seed or 0, Stream.LINEAR_HEAD)
        network = cast(LinearProbeNetwork, self.unwrapped_network)
        groups: dict[str, int] = {}
        parts: list[Rows] = []
        network.eval()
        for _ in range(ceil(PATCHES / self.batch_size)):
            batch = next(self.dataloader_train)
            for image, target, key in zip(batch["data"], batch["target"], batch["keys"], strict=True):
                with torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
                    stages = network.encoder(image[None].to(self.device))
                group = groups.setdefault(key, len(groups))
                parts += [
                    Rows(features_at(stages, places.to(self.device), image.shape[1:]).numpy(), *about)
                    for places, *about in self._chosen(target, group, generator)
                ]
        network.train()
        return join(parts)

    def _chosen(self, target: Tensor, group: int, generator: torch.Generator) -> list[tuple]:
        """Positions of one patch: (n, axes), and their target, weight and group as in :class:`Rows`."""
        outputs = self.label_manager.num_segmentation_heads
        ignored = torch.zeros(target.shape[1:], dtype=torch.bool)
        if self.label_manager.has_regions:
            inside = target[:outputs].bool()
            if self.label_manager.has_ignore_label:
                ignored = target[-1].bool()
        else:
            inside = target[0][None] == torch.arange(outputs).view(-1, *[1] * (target.ndim - 1))
            if self.label_manager.has_ignore_label:
                ignored = target[0] == self.label_manager.ignore_label
        code = (inside * 2 ** torch.arange(outputs).view(-1, *[1] * (target.ndim - 1))).sum(0)  # which outputs it is of
        chosen = []
        for value in code[~ignored].unique():
            places, weight = chosen_places((code == value) & ~ignored, PLACES, generator)
            rows = inside[(slice(None), *places.T)].T.numpy()
            chosen.append((places, rows, np.full(len(rows), weight), np.full(len(rows), group)))
        return chosen
