"""An SSL trainer for every method of ``emim_nnunet/methods``, named after it: ``EMIM`` -> ``nnUNetTrainerEMIMPretrain``."""

from __future__ import annotations

from emim_nnunet.methods import method_classes
from emim_nnunet.training.ssl_trainer import SSLTrainer

PRETRAINERS: dict[str, type[SSLTrainer]] = {
    name: type(
        name, (SSLTrainer,), {"method_class": method, "__doc__": method.__doc__, "__module__": "emim_nnunet.trainers"}
    )
    for name, method in ((f"nnUNetTrainer{method.__name__}Pretrain", method) for method in method_classes())
}
