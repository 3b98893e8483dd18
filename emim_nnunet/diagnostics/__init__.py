"""Numbers that say whether a pretraining has collapsed."""

from emim_nnunet.diagnostics.skill import collapsed_loss, skill, skill_per_modality

__all__ = ["collapsed_loss", "skill", "skill_per_modality"]
