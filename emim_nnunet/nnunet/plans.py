"""nnU-Net's view of plans, and the networks that they describe."""

from __future__ import annotations

from nnunetv2.configuration import ANISO_THRESHOLD
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import LabelManager, determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

__all__ = [
    "ANISO_THRESHOLD",
    "ConfigurationManager",
    "LabelManager",
    "PlansManager",
    "determine_num_input_channels",
    "get_network_from_plans",
]
