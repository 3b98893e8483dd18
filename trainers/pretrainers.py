"""SSL trainers of methods that have no file here, named after them: ``Mine`` -> ``nnUNetTrainerMinePretrain``."""

from __future__ import annotations

from collections.abc import Container

from emim_nnunet.methods import method_classes
from emim_nnunet.training.ssl_trainer import SSLTrainer


def pretrainers_except(names: Container[str]) -> dict[str, type[SSLTrainer]]:
    """A trainer for each method of ``emim_nnunet/methods`` whose trainer is not written.

    Args:
        names: Trainers that are.

    Returns:
        By name; members of ``emim_nnunet.trainers``, where pickle looks for them.
    """
    methods = {f"nnUNetTrainer{method.__name__}Pretrain": method for method in method_classes()}
    return {
        name: type(
            name,
            (SSLTrainer,),
            {"method_class": method, "__doc__": method.__doc__, "__module__": "emim_nnunet.trainers"},
        )
        for name, method in methods.items()
        if name not in names
    }
