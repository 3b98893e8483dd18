"""The arms of the experiment, as ``emim_compare`` writes them."""

from __future__ import annotations

from emim_nnunet.compare.arms import Arm, parse_arms

WITHOUT_BODY = "_no_body"  # ending of an arm that learns from data whose body was not looked for
METHODS = {
    arm.name: arm
    for arm in parse_arms(
        [
            "mim",
            "emim",
            "emim_no_pbt=EMIM,barlow_weight=0.0",
            "moco",
            "moco_local",
            "moco_whitened",
            "moco_zca",
            "mask_in_mask",
            "self_distillation=MaskedSelfDistillation,sparse_encoder=false",
            f"mim{WITHOUT_BODY}=MIM",
        ]
    )
}


def arm_of(name: str) -> Arm:
    """The arm of a name: one of :data:`METHODS`, or any text that ``emim_compare --arms`` takes.

    Raises:
        UserError: There is no such arm.
    """
    return METHODS[name] if name in METHODS else parse_arms([name])[0]
