"""Primus as second backbone: the network's own numbers, visible tokens alone, and every stage of the pipeline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.primus import primus_trainers
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from emim_nnunet.checkpoints.encoder import encoder_state, fit_positions
from emim_nnunet.checkpoints.io import load_checkpoint, read_checkpoint
from emim_nnunet.checkpoints.network import planned_method, planned_network
from emim_nnunet.checkpoints.source import read_source
from emim_nnunet.cli import diagnose, plan_and_preprocess
from emim_nnunet.cli import export as export_command
from emim_nnunet.cli._run import run
from emim_nnunet.errors import UserError
from emim_nnunet.methods import method_class
from emim_nnunet.methods.emim import EMIM
from emim_nnunet.methods.masked_modelling import ViewWeights
from emim_nnunet.networks import PrimusEncoder, TokenDecoder, encoder_of, first_stages, planned_geometry, visible_only
from emim_nnunet.networks.backbones import BACKBONES, primus_architecture, primus_trainer
from emim_nnunet.planners.ssl_plan import token_patch
from tests.pipeline import DATASET, FINETUNE, PLANS, PRETRAIN, fold_folder, train, trained, trainer_of
from tests.pipeline import toy_primus_architecture as toy_architecture
from tests.toy import toy_batch, toy_method


def toy_primus(*, rotary: bool = True, learned: bool = True, drop: float = 0.0) -> Primus:
    """A Primus of four narrow blocks for patches of 16x24x16."""
    torch.manual_seed(0)
    return Primus(
        2,
        24,
        (8, 8, 8),
        3,
        eva_depth=4,
        eva_numheads=2,
        input_shape=(16, 24, 16),
        use_rot_pos_emb=rotary,
        use_abs_pos_embed=learned,
        drop_path_rate=drop,
        init_values=0.1,
        scale_attn_inner=True,
    )


def image(samples: int = 3) -> torch.Tensor:
    return torch.randn(samples, 2, 16, 24, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("rotary", [True, False])
def test_the_last_stage_is_what_primus_decodes(rotary: bool, learned: bool) -> None:
    primus = toy_primus(rotary=rotary, learned=learned).eval()
    encoder = PrimusEncoder(primus)
    features = encoder(image())
    assert [tuple(f.shape) for f in features] == [(3, 24, 2, 3, 2)] * 4
    torch.testing.assert_close(primus.up_projection(features[-1]), primus(image()))
    everything = torch.ones(3, 1, 2, 3, 2, dtype=torch.bool)
    for ours, told in zip(features, encoder(image(), visible=everything), strict=True):
        torch.testing.assert_close(ours, told)


def test_hidden_tokens_tell_nothing_and_are_empty() -> None:
    encoder = PrimusEncoder(toy_primus()).eval()
    visible = torch.rand(3, 1, 2, 3, 2, generator=torch.Generator().manual_seed(2)) < 0.5
    visible[1] = True  # samples of different numbers of tokens
    voxels = visible.repeat_interleave(8, 2).repeat_interleave(8, 3).repeat_interleave(8, 4)
    other = torch.where(voxels, image(), torch.full_like(image(), 7.0))
    for ours, same in zip(encoder(image(), visible=visible), encoder(other, visible=visible), strict=True):
        assert torch.equal(ours, same)
        assert (ours.masked_select(~visible) == 0).all()
        assert ours.masked_select(visible).std() > 0.1


def test_a_sample_is_the_same_beside_one_of_more_tokens() -> None:
    encoder = PrimusEncoder(toy_primus()).eval()
    visible = torch.zeros(2, 1, 2, 3, 2, dtype=torch.bool)
    visible[0, :, 0] = True
    visible[1] = True
    alone = encoder(image()[:1], visible=visible[:1])
    for together, single in zip(encoder(image()[:2], visible=visible), alone, strict=True):
        torch.testing.assert_close(together[:1], single)


def test_a_token_is_where_it_was() -> None:
    """With positions, a token that moves changes the others; without, attention does not know the order."""
    for rotary, known in ((True, True), (False, False)):
        encoder = PrimusEncoder(toy_primus(rotary=rotary, learned=False)).eval()
        tokens = image(1)
        moved = tokens.flip(2)  # exchanges the tokens of the first axis and mirrors their voxels
        moved = moved.unflatten(2, (2, 8)).flip(3).flatten(2, 3)  # back inside the tokens
        one, other = encoder(tokens)[-1], encoder(moved)[-1].flip(2)
        assert (not torch.allclose(one, other, atol=1e-4)) == known


def test_a_sample_without_visible_tokens_is_finite_and_gradients_reach_all_weights() -> None:
    encoder = PrimusEncoder(toy_primus())
    visible = torch.zeros(2, 1, 2, 3, 2, dtype=torch.bool)
    visible[1, :, :, :2] = True
    decoder = TokenDecoder(encoder.output_channels, encoder.strides, 2, encoder.conv_op)
    predicted = decoder(encoder(image()[:2], visible=visible))
    assert predicted.shape == (2, 2, 16, 24, 16)
    predicted.square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in encoder.named_parameters()}
    assert all(g is not None and g.isfinite().all() and g.abs().sum() > 0 for g in gradients.values())


def test_the_keys_are_those_of_primus() -> None:
    primus = toy_primus()
    ours = PrimusEncoder(primus).state_dict()
    own = primus.state_dict()
    assert set(ours) == {key for key in own if key.startswith(("eva.", "down_projection."))}
    assert all(own[key] is not None and torch.equal(own[key], value) for key, value in ours.items())


def test_hidden_voxels_become_hidden_tokens_and_first_stages_stop_early() -> None:
    encoder = PrimusEncoder(toy_primus()).eval()
    visible = torch.zeros(2, 1, 16, 24, 16, dtype=torch.bool)
    visible[:, :, :8, 5:6, :3] = True  # some voxels of the first token
    with visible_only(encoder, visible):
        features = encoder(image(2))
    assert [int((f != 0).any(1).sum()) for f in features] == [2] * 4
    assert (encoder(image(2))[-1] != 0).any(1).all()  # behind the block all enter again
    for whole, first in zip(encoder(image(2)), first_stages(encoder, image(2), 3), strict=False):
        assert torch.equal(whole, first)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_plans_describe_the_network_that_nnunets_trainer_builds(backbone: str) -> None:
    patch = [32, 48, 32]
    architecture = primus_architecture(backbone, patch)
    trainer = getattr(primus_trainers, str(primus_trainer(architecture)))
    with torch.device("meta"):
        manager = ConfigurationManager({"patch_size": patch, "architecture": architecture})
        own = trainer.build_network_architecture(None, manager, 4, 3)
        ours = planned_network(architecture, 4, 3, deep_supervision=True)
    assert repr(ours) == repr(own)  # layers, and rates of what drops out
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in own.state_dict().items()}
    strides, channels = planned_geometry(architecture)
    encoder = encoder_of(ours)
    assert (encoder.strides, encoder.output_channels) == (strides, channels)


@pytest.mark.parametrize("method", ["MIM", "EMIM", "MaskInMask", "MoCoZCA", "VICReg", "MaskedSelfDistillation"])
def test_every_method_trains_the_whole_encoder_and_repeats(method: str) -> None:
    own = method_class(method)
    settings = {"pyramid_levels": (1, 3), "projector_widths": (16, 16), "local_regions": 2, "queue_size": 16}
    known = {key: value for key, value in settings.items() if key in own.config_class.__dataclass_fields__}
    config = own.config_class(cell_size=(8, 8, 8), **known)
    made = [planned_method(own, toy_architecture(), 2, (16, 16, 16), config, seed=3) for _ in range(2)]
    size = own.crop_size(config, (16, 16, 16))
    voxels = torch.randn(2, 2, *size, generator=torch.Generator().manual_seed(0))
    inside = torch.ones(2, 1, *size, dtype=torch.bool)
    losses = []
    for stage in made:
        samples = [stage.draw(torch.Generator().manual_seed(i)) | {"subject": torch.tensor([i])} for i in range(2)]
        draws = {key: torch.cat([sample[key] for sample in samples]) for key in samples[0]}
        torch.rand(1)  # nothing may come of the global generator
        output = stage(voxels, inside, draws)
        output.loss.backward()
        losses.append(output.loss.detach())
    assert torch.equal(*losses)
    gradients = {name: parameter.grad for name, parameter in made[0].encoder.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.any()] == []


def test_a_patch_is_planned_in_whole_tokens() -> None:
    assert token_patch((130, 56, 20)) == [128, 56, 32]


def test_a_stage_is_continued_exported_diagnosed_and_fine_tuned(nnunet: Path, tmp_path: Path) -> None:
    folder = trained(PRETRAIN, "toy_primus")
    checkpoint = load_checkpoint(folder / "checkpoint_final.pth")
    weights = tmp_path / "weights.pth"
    assert run(export_command.main, [str(folder), "-d", "1", "-p", PLANS, "-c", "toy_primus", "-o", str(weights)]) == 0
    content = read_checkpoint(weights)
    assert content["nnssl_adaptation_plan"]["key_to_lpe"] == "eva.pos_embed"
    pretrained = encoder_state(checkpoint)
    exported = encoder_state(content)
    assert exported.keys() == pretrained.keys()
    assert all(torch.equal(value, exported[key]) for key, value in pretrained.items())
    alone = tmp_path / "encoder.pth"
    assert run(export_command.main, [str(folder), "--encoder", "-o", str(alone)]) == 0
    assert encoder_state(read_checkpoint(alone)).keys() == pretrained.keys()
    options = [
        "-d",
        "1",
        "-p",
        PLANS,
        "-c",
        "toy_primus",
        "-o",
        str(tmp_path / "report"),
        "--patches",
        "4",
        "-device",
        "cpu",
    ]
    assert run(diagnose.main, [str(folder), *options]) == 0
    tuned = train(FINETUNE, "toy_primus")
    checkpoint = torch.load(tuned / "checkpoint_final.pth", weights_only=False)
    group = checkpoint["optimizer_state"]["param_groups"][0]
    assert (group["betas"], group["weight_decay"], group["initial_lr"]) == ((0.9, 0.98), 0.05, 1e-4)
    assert checkpoint["trainer_name"] == FINETUNE  # no trainer of nnU-Net's builds this toy
    given = trainer_of(FINETUNE, "toy_primus")
    given.initialize()
    load_pretrained_weights(given.network, str(weights))
    assert given._weights_given


def test_resuming_is_exact(nnunet: Path) -> None:
    whole = load_checkpoint(trained(PRETRAIN, "toy_primus") / "checkpoint_final.pth")
    folder = fold_folder(PRETRAIN, "toy_primus")
    before = load_checkpoint(folder / "checkpoint_previous.pth")
    (folder / "checkpoint_final.pth").unlink()
    (folder / "checkpoint_previous.pth").rename(folder / "checkpoint_latest.pth")
    assert before["current_epoch"] < whole["current_epoch"]
    train(PRETRAIN, "toy_primus", continue_training=True)
    again = load_checkpoint(folder / "checkpoint_final.pth")["network_weights"]
    assert all(torch.equal(value, again[key]) for key, value in whole["network_weights"].items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": [20, 16, 16]}, "cannot be cut into the network's tokens of"),
        ({"patch_size": [24, 16, 16]}, "its positions are those of one patch"),
        ({"emim": {"cell_size": [4, 4, 4]}}, "must be a multiple of the network's tokens"),
    ],
)
def test_what_does_not_fit_tokens_is_refused_before_anything_is_written(
    change: dict[str, Any], message: str, nnunet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = nnunet / "nnUNet_preprocessed" / DATASET / f"{PLANS}.json"
    text = file.read_text()
    plans = json.loads(text)
    plans["configurations"]["bad"] = {"inherits_from": "toy_primus"} | change
    file.write_text(json.dumps(plans))
    try:
        with pytest.raises(UserError, match=message):
            train(PRETRAIN, "bad")
    finally:
        file.write_text(text)
    assert not fold_folder(PRETRAIN, "bad").exists()


def test_weights_of_the_other_backbone_are_refused(nnunet: Path, tmp_path: Path, capsys: Any) -> None:
    for source, target in (("toy", "toy_primus"), ("toy_primus", "toy")):
        folder = trained(PRETRAIN, source)
        output = tmp_path / f"{source}.pth"
        assert run(export_command.main, [str(folder), "-d", "1", "-p", PLANS, "-c", target, "-o", str(output)]) == 2
        assert "network" in capsys.readouterr().err
        assert not output.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [(["-c", "2d"], "Primus is 3D only"), (["-c", "3d_fullres", "--like", "1"], "contradict each other")],
)
def test_options_that_do_not_go_together_are_refused(
    options: list[str], message: str, nnunet: Path, capsys: Any
) -> None:
    assert run(plan_and_preprocess.main, ["-d", "1", "--backbone", "primus_s", *options]) == 2
    assert message in capsys.readouterr().err


def test_from_planning_to_stock_prediction(nnunet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Primus S as nnU-Net has it, planned, pretrained, fine-tuned, and predicted without this package's trainers."""
    options = ["-d", "1", "-c", "3d_fullres", "-gpu_memory_target", "2", "-np", "1", "-npfp", "1"]
    assert run(plan_and_preprocess.main, [*options, "--backbone", "primus_s"]) == 0
    plans_name = f"{PLANS}_primus_s"
    file = nnunet / "nnUNet_preprocessed" / DATASET / f"{plans_name}.json"
    plans = json.loads(file.read_text())
    planned = plans["configurations"]["3d_fullres"]
    assert planned["patch_size"] == [32, 32, 32]
    assert planned["architecture"] == primus_architecture("primus_s", [32, 32, 32])
    assert planned["emim"]["cell_size"] == [8, 8, 8]
    steps = {"num_epochs": 1, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "batch_size": 2}
    tuning = {
        "finetune_num_epochs": 1,
        "finetune_num_iterations_per_epoch": 1,
        "finetune_num_val_iterations_per_epoch": 1,
    }
    block = planned["emim"] | steps | tuning | {"finetune_final_validation": False}
    plans["configurations"]["3d_fullres"] = planned | {"emim": block, "batch_size": 2}
    file.write_text(json.dumps(plans))
    for trainer in (PRETRAIN, FINETUNE):
        command = ["nnUNetv2_train", "1", "3d_fullres", "0", "-tr", trainer, "-p", plans_name, "-device", "cpu"]
        subprocess.run([str(Path(sys.executable).with_name(command[0])), *command[1:]], check=True, timeout=600)
    model = Path(os.environ["nnUNet_results"]) / DATASET / f"{FINETUNE}__{plans_name}__3d_fullres"
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, use_mirroring=False)
    monkeypatch.delenv("nnUNet_extTrainer")
    predictor.initialize_from_trained_model_folder(str(model), (0,), "checkpoint_final.pth")
    assert isinstance(predictor.network, Primus)
    assert predictor.trainer_name == "nnUNet_Primus_S_Trainer"
    case = next((nnunet / "nnUNet_raw" / DATASET / "imagesTr").glob("*_0000.nii.gz")).name.removesuffix("_0000.nii.gz")
    images = [str(path) for path in sorted((nnunet / "nnUNet_raw" / DATASET / "imagesTr").glob(f"{case}_*"))]
    predictor.predict_from_files(
        [images], str(tmp_path), num_processes_preprocessing=1, num_processes_segmentation_export=1
    )
    assert (tmp_path / f"{case}.nii.gz").is_file()


def openmind_file(file: Path, name: str, network: torch.nn.Module | None, patches: tuple[int, int]) -> Path:
    """A checkpoint as nnssl writes it: the network by its name alone, for one channel."""
    plan = {
        "architecture_plans": {"arch_class_name": name, "arch_kwargs": None, "arch_kwargs_requiring_import": None},
        "pretrain_plan": {"plans_name": "p", "configurations": {"onemmiso": {"patch_size": [patches[0]] * 3}}},
        "pretrain_num_input_channels": 1,
        "recommended_downstream_patchsize": [patches[1]] * 3,
        "key_to_encoder": "eva",
        "key_to_stem": "down_projection",
        "keys_to_in_proj": ["down_projection.proj"],
        "key_to_lpe": "eva.pos_embed",
    }
    weights = {} if network is None else network.state_dict()
    torch.save({"network_weights": weights, "nnssl_adaptation_plan": plan}, file)
    return file


def test_nnssls_primus_is_planned_like_and_exported_with_its_positions(nnunet: Path, tmp_path: Path) -> None:
    network = planned_network(primus_architecture("primus_s", (16, 16, 16)), 1, 2, deep_supervision=False, seed=0)
    axis = torch.linspace(-1, 1, 2)
    ramp = torch.cartesian_prod(axis, axis, axis).sum(1)  # linear in the place, so that its interpolation is known
    network.eva.pos_embed.data = ramp[None, :, None].expand(1, 8, 396).clone()
    file = openmind_file(tmp_path / "openmind.pth", "PrimusS", network, (16, 32))
    options = ["-d", "1", "-c", "3d_fullres", "--like", str(file), "-gpu_memory_target", "4", "-np", "1", "-npfp", "1"]
    assert run(plan_and_preprocess.main, options) == 0
    plans_name = f"{PLANS}_like_openmind"
    plans = json.loads((nnunet / "nnUNet_preprocessed" / DATASET / f"{plans_name}.json").read_text())
    planned = plans["configurations"]["3d_fullres"]
    assert planned["architecture"] == primus_architecture("primus_s", (32, 32, 32))
    assert planned["emim"]["cell_size"] == [8, 8, 8]
    assert planned["emim"]["finetune_initial_lr"] == 1e-4
    output = tmp_path / "weights.pth"
    target = ["-d", "1", "-p", plans_name, "-c", "3d_fullres", "-o", str(output)]
    assert run(export_command.main, [str(file), *target]) == 0
    content = read_checkpoint(output)
    assert content["provenance"]["adapted"] == [
        "positions interpolated from [2, 2, 2] to [4, 4, 4] tokens",
        "stem adapted from 1 to 4 input channels (mean filter, scaled by 1/4)",
    ]
    assert content["nnssl_adaptation_plan"]["architecture_plans"]["arch_class_name"] == "PrimusS"
    wide = torch.tensor([-1.0, -0.5, 0.5, 1.0])  # half-voxel centres, constant beyond the outermost
    expected = torch.cartesian_prod(wide, wide, wide).sum(1)
    assert torch.allclose(content["network_weights"]["eva.pos_embed"][0, :, 0], expected, atol=1e-6)


def test_res_enc_l_is_known_by_its_name_and_other_names_are_refused(tmp_path: Path) -> None:
    source = read_source(openmind_file(tmp_path / "l.pth", "ResEncL", None, (160, 160)))
    encoder = encoder_of(source.fresh_network(1, seed=0))
    assert list(encoder.output_channels) == [32, 64, 128, 256, 320, 320]
    for name, patch in (("PrimusV2M", 160), ("PrimusM", 60)):
        file = openmind_file(tmp_path / "other.pth", name, None, (patch, patch))
        with pytest.raises(UserError, match=f"is of the network '{name}', which is none of those"):
            read_source(file)


def test_positions_of_another_grid_than_the_file_says_are_refused() -> None:
    with pytest.raises(UserError, match="positions for 8 tokens, but says that its grid is"):
        fit_positions({"eva.pos_embed": torch.zeros(1, 8, 4)}, [3, 2, 2], [2, 2, 2])


def test_barlow_twins_on_masked_cells_are_given_their_tokens() -> None:
    for masked_cells in (False, True):
        settings = {"pyramid_levels": (3,), "projector_widths": (0,), "barlow_masked_cells": masked_cells}
        method = toy_method(EMIM, backbone="primus", **settings)
        image_, _, draws = toy_batch(method)
        _, features = method.modelling.encode(
            image_, draws["masked"], ViewWeights(method.encoder, method.decoder, method.fill)
        )
        hidden = draws["masked"].all(1, keepdim=True).expand_as(features[-1])
        assert hidden.any()
        assert bool((features[-1][hidden] == 0).all()) is not masked_cells
