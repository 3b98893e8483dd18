"""Linear evaluation: the decoder is one linear map per voxel, the encoder stays frozen, nnU-Net trains and predicts with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from emim_nnunet.checkpoints.io import load_checkpoint
from emim_nnunet.cli import export
from emim_nnunet.cli._run import run
from emim_nnunet.training.linear_probe import LinearProbeNetwork
from emim_nnunet.training.log import without_paths
from tests.pipeline import CPU, DATASET, PLANS, fold_folder, log_of, train, trained, trainer_of
from tests.toy import toy_unet

PROBE, MIM_PRETRAIN = "nnUNetTrainerLinearProbe", "nnUNetTrainerMIMPretrain"


@pytest.mark.parametrize("num_axes", [2, 3])
def test_it_is_one_convolution_on_the_concatenated_enlarged_outputs(num_axes: int) -> None:
    network = LinearProbeNetwork(toy_unet(num_axes=num_axes).encoder, 3)
    image = torch.randn((2, 4, *[16] * num_axes), generator=torch.Generator().manual_seed(0))
    mode, conv = ("bilinear", F.conv2d) if num_axes == 2 else ("trilinear", F.conv3d)
    outputs = [F.interpolate(f, size=image.shape[2:], mode=mode) for f in network.encoder(image)]
    weight = torch.cat([layer.weight for layer in network.decoder.seg_layers], 1)
    expected = conv(torch.cat(outputs, 1), weight, network.decoder.seg_layers[0].bias)
    assert torch.allclose(network(image), expected, atol=1e-5)


def test_the_encoder_is_frozen_and_in_evaluation_mode() -> None:
    network = LinearProbeNetwork(toy_unet().encoder, 3).train()
    assert network.training
    assert not network.encoder.training
    network(torch.randn(1, 4, 16, 16, 16)).sum().backward()
    trained = [name for name, parameter in network.named_parameters() if parameter.grad is not None]
    assert trained == [n for n, _ in network.named_parameters() if n.startswith("decoder.seg_layers.")]


def test_nnunet_trains_validates_and_predicts_with_it(nnunet: Path, tmp_path: Path) -> None:
    stage = load_checkpoint(train(MIM_PRETRAIN, "toy_probe") / "checkpoint_final.pth")
    folder = train(PROBE, "toy_probe")
    assert (folder / "validation" / "summary.json").is_file()
    assert f"Encoder: from {without_paths(fold_folder(MIM_PRETRAIN, 'toy_probe'))}" in log_of(folder)
    final = torch.load(folder / "checkpoint_final.pth", weights_only=False)
    assert final["trainer_name"] == PROBE
    for key, value in stage["network_weights"].items():
        if key.startswith("encoder."):
            assert torch.equal(final["network_weights"][key], value), key
    assert any(v.abs().sum() > 0 for k, v in final["network_weights"].items() if "seg_layers" in k)
    predictor = nnUNetPredictor(device=CPU, use_mirroring=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder.parent), (0,), "checkpoint_final.pth")
    images = nnunet / "nnUNet_raw" / DATASET / "imagesTr"
    case = sorted(images.glob("*_0000.nii.gz"))[0].name.removesuffix("_0000.nii.gz")
    files = [[str(images / f"{case}_{channel:04d}.nii.gz") for channel in range(4)]]
    out = tmp_path / "out"
    out.mkdir()
    predictor.predict_from_files_sequential(files, [str(out / case)])
    assert (out / f"{case}.nii.gz").is_file()


def test_it_reads_a_primus_out(nnunet: Path) -> None:
    stage = load_checkpoint(trained("nnUNetTrainerEMIMPretrain", "toy_primus") / "checkpoint_final.pth")
    folder = train(PROBE, "toy_primus")
    assert (folder / "validation" / "summary.json").is_file()
    weights = torch.load(folder / "checkpoint_final.pth", weights_only=False)["network_weights"]
    for key, value in stage["network_weights"].items():
        if key.startswith("encoder."):
            assert torch.equal(weights[key], value), key


def test_it_takes_pretrained_weights_and_seeds(nnunet: Path, tmp_path: Path) -> None:
    folder, weights = trained(MIM_PRETRAIN), tmp_path / "weights.pth"
    assert run(export.main, [str(folder), "-d", "1", "-p", PLANS, "-c", "toy_short", "-o", str(weights)]) == 0
    log = log_of(train(PROBE, "toy_short", pretrained_weights=str(weights)))
    assert "Encoder: from -pretrained_weights" in log


def test_a_seed_makes_the_segmentation_stage_reproducible(nnunet: Path) -> None:
    results = []
    for seed in (1, 1, 2):
        trainer = trainer_of("nnUNetTrainerEMIMFinetune", "toy_short")
        trainer.config = type(trainer.config)(**vars(trainer.config) | {"finetune_seed": seed})
        trainer.run_training()
        results.append(trainer.encoder.state_dict()["stages.0.blocks.0.conv1.conv.weight"].clone())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
