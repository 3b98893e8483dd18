"""What the trainers of both stages share: settings from the plans, one writer, stopping on a signal, logs without paths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from emim_nnunet.datasets.dataset import PreprocessedDataset
from emim_nnunet.datasets.stage_cases import prepare_splits
from emim_nnunet.devices import check_device
from emim_nnunet.nnunet.plans import ConfigurationManager, PlansManager
from emim_nnunet.nnunet.training import get_cluster_job_id, nnUNetTrainer
from emim_nnunet.settings.plans import check_tokens, planned
from emim_nnunet.training.interruption import Interruption
from emim_nnunet.training.log import without_paths
from emim_nnunet.training.output_folder import OutputFolder
from emim_nnunet.training.stage import read_block
from emim_nnunet.training.trackers import Trackers, switched_on, without_nnunets_own


class StageTrainer(nnUNetTrainer):
    """nnU-Net's trainer with the ``emim`` block of the plans, for the SSL stage and the segmentation stage.

    Args:
        plans: The plans JSON as a dict, with an ``emim`` block.
        configuration: The name of a configuration of the plans.
        fold: The number of a fold, or ``all``.
        dataset_json: The content of ``dataset.json``.
        device: The device to train on.

    Raises:
        UserError: The block does not fit the plans; nothing has been written then.
    """

    # attributes of nnU-Net's trainer, which has no types
    local_rank: int
    current_epoch: int
    num_epochs: int
    was_initialized: bool

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int | str,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's signature, checked by name
    ) -> None:
        check_device(device.type)
        self._asked_to_continue = plans.get("continue_training", False)  # nnU-Net takes the key away
        self._asked_device = device  # in a process group nnU-Net takes a GPU, whatever was asked for
        self.block = read_block(plans, configuration)
        self.dataset_json = dataset_json
        self._read_settings()
        kinds = switched_on()
        with planned(f"configuration '{configuration}' of the plans cannot be used"):
            manager = PlansManager(plans).get_configuration(configuration)
            check_tokens(manager.configuration["architecture"], manager.patch_size)
            self._check_configuration(configuration, manager)
            with without_nnunets_own():
                super().__init__(plans, configuration, fold, dataset_json, device)
        self._interruption = Interruption()
        self._folder = OutputFolder(self.output_folder, self.local_rank)
        self.trackers = Trackers(
            Path(self.output_folder), kinds if self.local_rank == 0 else [], self.print_to_log_file
        )
        self.trackers.update_config({"JobID": get_cluster_job_id(), "plans": plans, "configuration": configuration})
        self.trackers.update_config({"fold": fold, "dataset": dataset_json, "trainer": type(self).__name__})
        self.logger.loggers.append(self.trackers)
        self._set_up()

    def _read_settings(self) -> None:
        """Read the settings of the stage from :attr:`block`; called before nnU-Net makes a folder.

        Raises:
            UserError: A setting has a wrong type or a value that is not allowed.
        """
        raise NotImplementedError

    def _check_configuration(self, name: str, configuration: ConfigurationManager) -> None:
        """Check that the settings fit a configuration of the plans; called before nnU-Net makes a folder.

        Raises:
            UserError: The settings do not fit the configuration.
        """

    def _set_up(self) -> None:
        """Set what the stage needs besides, once nnU-Net's trainer is made."""
        raise NotImplementedError

    def do_split(self) -> tuple[list[str], list[str]]:
        """Training and validation case ids of the fold, by nnU-Net's split; leave-one-out with fewer than five cases."""
        prepare_splits(self.preprocessed, self.fold)
        return super().do_split()

    @property
    def preprocessed(self) -> PreprocessedDataset:
        """The preprocessed data set; each access gives a new object, which reads the folder as it is now."""
        folder = Path(self.preprocessed_dataset_folder_base)
        return PreprocessedDataset(folder, self.plans_manager.plans, self.dataset_json, self.configuration_name)

    def print_to_log_file(self, *args: object, **options: bool) -> None:
        """Write to nnU-Net's log, without the paths of this machine."""
        super().print_to_log_file(*map(without_paths, args), **options)

    def _log_quietly(self, text: str) -> None:
        """Write to the log file, and not to the terminal."""
        self.print_to_log_file(text, also_print_to_console=False)

    def _write(self, write: Callable[[], object]) -> bool:
        """Write on the first rank; on a full disk, wait until there is space or a signal asks to stop."""
        interruption = self._interruption
        return self._folder.write(write, self.print_to_log_file, lambda: interruption.signal is not None)
