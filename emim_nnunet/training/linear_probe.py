"""Linear evaluation for segmentation: what can be read off a frozen encoder by one linear map per voxel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from emim_nnunet.networks import PlannedEncoder, encoder_of
from emim_nnunet.nnunet.plans import ConfigurationManager, PlansManager
from emim_nnunet.training.finetune_trainer import FinetuneTrainer
from emim_nnunet.training.schedule import WarmupPolyLRScheduler
from emim_nnunet.views.boxes import resize


class LinearDecoder(nn.Module):
    """A 1x1x1 convolution on every stage output, enlarged to the patch and summed.

    The same as one convolution on the concatenated, enlarged outputs, because a 1x1x1 convolution and linear interpolation can
    change places; but without tensors of all channels at full size.

    Args:
        features_per_stage: Channels of each encoder stage.
        num_classes: Number of output channels, one per class.
        conv_op: ``nn.Conv2d`` or ``nn.Conv3d``.
    """

    deep_supervision = False  # nnU-Net sets this attribute

    def __init__(self, features_per_stage: Sequence[int], num_classes: int, conv_op: type[nn.Module]) -> None:
        super().__init__()
        # nnU-Net does not look for layers of this name in -pretrained_weights
        self.seg_layers = nn.ModuleList(
            conv_op(features, num_classes, 1, bias=stage == 0) for stage, features in enumerate(features_per_stage)
        )

    def forward(self, features: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """(B, num_classes, *size) logits from the stage outputs (B, features_s, *grid_s)."""
        logits = [layer(output) for layer, output in zip(self.seg_layers, features, strict=True)]
        return torch.stack([x if x.shape[2:] == torch.Size(size) else resize(x, size) for x in logits]).sum(0)


class LinearProbeNetwork(nn.Module):
    """An encoder and a :class:`LinearDecoder`.

    Args:
        encoder: An encoder of nnU-Net that returns the outputs of all stages.
        num_classes: Number of output channels, one per class.
        frozen: Whether the encoder is not trained and always in evaluation mode.
    """

    def __init__(self, encoder: PlannedEncoder, num_classes: int, *, frozen: bool = True) -> None:
        super().__init__()
        self.encoder, self.frozen = encoder, frozen
        for parameter in encoder.parameters():
            parameter.requires_grad_(not frozen)
        self.decoder = LinearDecoder(encoder.output_channels, num_classes, encoder.conv_op)
        self.train()

    def train(self, mode: bool = True) -> LinearProbeNetwork:
        """Set the mode of the decoder; a frozen encoder always stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, *P) -> (B, num_classes, *P) logits."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.encoder(image)
        return self.decoder(features, image.shape[2:])


class LinearProbeTrainer(FinetuneTrainer):
    """nnU-Net's training of a :class:`LinearProbeNetwork`; the encoder comes from where :class:`FinetuneTrainer` gets it."""

    stored_trainer_name = None  # the name of this class: prediction needs its network

    def initialize(self) -> None:
        """Initialise as nnU-Net does, without deep supervision."""
        self.enable_deep_supervision = False
        super().initialize()

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
        return LinearProbeNetwork(encoder_of(unet), num_output_channels)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, WarmupPolyLRScheduler]:
        """AdamW on the linear layers, with nnU-Net's polynomial decay of the learning rate."""
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, self._schedule(optimizer)

    def _peak_rate(self, *, pretrained: bool) -> tuple[float, str]:
        return self.config.linear_probe_lr, "linear_probe_lr: the encoder is frozen"

    def _num_warmup_epochs(self) -> int:
        return 0
