"""Parts around the encoder that nnU-Net planned."""

from emim_nnunet.networks.decoder import ReconstructionDecoder
from emim_nnunet.networks.encoder import first_stages, materialise, own_norm_outputs
from emim_nnunet.networks.geometry import cumulative_strides, stage_grids
from emim_nnunet.networks.projector import Projector

__all__ = [
    "Projector",
    "ReconstructionDecoder",
    "cumulative_strides",
    "first_stages",
    "materialise",
    "own_norm_outputs",
    "stage_grids",
]
