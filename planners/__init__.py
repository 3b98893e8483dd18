"""nnU-Net planners for the SSL stage; what depends on the data goes into the plans."""

from __future__ import annotations

from emim_nnunet.planners.nnUNetPlannerEMIM import nnUNetPlannerEMIM

__all__ = ["nnUNetPlannerEMIM"]
