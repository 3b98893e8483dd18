"""Parts around the encoder that nnU-Net planned."""

from emim_nnunet.networks.decoder import ReconstructionDecoder, TokenDecoder
from emim_nnunet.networks.encoder import first_stages, in_parts, materialise, own_norm_outputs
from emim_nnunet.networks.geometry import cumulative_strides, stage_grids
from emim_nnunet.networks.masked_encoder import added_to_stem, mask_stem, visible_moments, visible_only
from emim_nnunet.networks.momentum import KeyQueue, momentum_copy, momentum_update_
from emim_nnunet.networks.planned import PRIMUS, PlannedEncoder, encoder_of, is_primus, planned_geometry
from emim_nnunet.networks.primus import PrimusEncoder
from emim_nnunet.networks.projector import MLP, Projector
from emim_nnunet.networks.zca import ZCA, zca_matrix

__all__ = [
    "MLP",
    "PRIMUS",
    "ZCA",
    "KeyQueue",
    "PlannedEncoder",
    "PrimusEncoder",
    "Projector",
    "ReconstructionDecoder",
    "TokenDecoder",
    "added_to_stem",
    "cumulative_strides",
    "encoder_of",
    "first_stages",
    "in_parts",
    "is_primus",
    "mask_stem",
    "materialise",
    "momentum_copy",
    "momentum_update_",
    "own_norm_outputs",
    "planned_geometry",
    "stage_grids",
    "visible_moments",
    "visible_only",
    "zca_matrix",
]
