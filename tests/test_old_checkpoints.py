"""Checkpoints of earlier versions load, continue and end where the version that wrote them ended."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from nnunetv2.run.run_training import maybe_load_checkpoint

from emim_nnunet.checkpoints.io import load_checkpoint, save_checkpoint
from emim_nnunet.cli import export
from emim_nnunet.cli._run import run
from emim_nnunet.errors import UserError
from emim_nnunet.methods.mask_in_mask import MaskInMaskConfig
from emim_nnunet.methods.moco import MoCoZCAConfig
from tests.pipeline import fold_folder, log_of, trainer_of

FOLDER = Path(__file__).parent / "old_checkpoints"


@pytest.mark.parametrize("method", ["EMIM", "MaskInMask"])
def test_a_checkpoint_of_an_earlier_version_continues(method: str, nnunet: Path, tmp_path: Path) -> None:
    name = f"nnUNetTrainer{method}Pretrain"
    folder = fold_folder(name)
    folder.mkdir(parents=True)
    shutil.copy(FOLDER / f"{method}.pth", folder / "checkpoint_latest.pth")
    assert run(export.main, [str(folder), "-d", "1", "-c", "toy", "-o", str(tmp_path / "weights.pth")]) == 0
    trainer = trainer_of(name, continued=True)
    maybe_load_checkpoint(trainer, True, False)
    then = trainer.method_config
    assert {key: getattr(then, key) for key in then.formerly} == then.formerly
    trainer.run_training()
    log = log_of(folder)
    assert "Continuing after 2 of 3 epochs" in log
    assert "holds no checksums of its cases" in log
    final = load_checkpoint(folder / "checkpoint_final.pth")
    assert final["finished"]
    then = json.loads((FOLDER / "last_epoch.json").read_text())[method]
    now = {key: value for key, value in final["history"][-1].items() if key in then}
    assert now == pytest.approx(then, rel=1e-3, abs=1e-4)


def test_a_stage_goes_on_with_the_settings_that_it_was_begun_with(nnunet: Path) -> None:
    folder = fold_folder("nnUNetTrainerEMIMPretrain")
    folder.mkdir(parents=True)
    settings = {"barlow_kappa": 7.0}  # of a version with another default
    save_checkpoint(load_checkpoint(FOLDER / "EMIM.pth") | {"settings": settings}, folder / "checkpoint_latest.pth")
    trainer = trainer_of("nnUNetTrainerEMIMPretrain", continued=True)
    assert trainer.method_config.barlow_kappa != 7.0
    maybe_load_checkpoint(trainer, True, False)
    assert trainer.method_config.barlow_kappa == trainer.method.config.barlow_kappa == 7.0


def test_a_stage_keeps_what_its_settings_stood_for_or_is_refused_in_a_line() -> None:
    block = {"cell_size": [4, 4]}
    begun = MaskInMaskConfig.of_checkpoint({}, block)
    assert (begun.alignment, begun.alignment_regions) == ("cosine", 1)
    assert MoCoZCAConfig.of_checkpoint({}, block | {"zca": False}).global_vector == "mean"
    with pytest.raises(
        UserError, match="whitened the 'mean' without a gradient: a stage that was begun so cannot go on"
    ):
        MoCoZCAConfig.of_checkpoint({}, block)
