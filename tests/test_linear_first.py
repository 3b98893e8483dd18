"""Linear probing before fine-tuning: the head that is fitted is the optimum, and nnU-Net trains and predicts with it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from emim_nnunet.settings.stages import FinetuneConfig
from emim_nnunet.training.linear_first import LinearFirstTrainer
from emim_nnunet.training.linear_fit import Rows, features_at, fit, set_layers
from emim_nnunet.training.linear_probe import LinearDecoder, LinearProbeNetwork
from tests.pipeline import CPU, PRETRAIN, log_of, train, trained
from tests.toy import toy_unet

LINEAR_FIRST = "nnUNetTrainerLinearFirst"


@pytest.mark.parametrize("num_axes", [2, 3])
def test_features_of_positions_are_those_of_enlarged_outputs(num_axes: int) -> None:
    with torch.no_grad():
        outputs = toy_unet(num_axes=num_axes).encoder(torch.randn(1, 4, *[16] * num_axes))
    mode = "bilinear" if num_axes == 2 else "trilinear"
    enlarged = torch.cat([F.interpolate(output, size=[16] * num_axes, mode=mode) for output in outputs], 1)[0]
    places = torch.tensor([[0, 3, 15], [7, 0, 8], [15, 15, 0]])[:, :num_axes]
    expected = enlarged[(slice(None), *places.T)].T
    assert torch.allclose(features_at(outputs, places, [16] * num_axes), expected, atol=1e-5)


def rows_of(outputs: int, exclusive: bool) -> Rows:
    generator = np.random.default_rng(0)
    features = (generator.normal(size=(400, 12)) * np.linspace(0.1, 9, 12) + 3).astype(np.float32)
    logits = features @ generator.normal(size=(12, outputs)) / 20 + generator.gumbel(size=(400, outputs))
    target = logits.argmax(1)[:, None] == np.arange(outputs) if exclusive else logits > np.median(logits, 0)
    return Rows(features, target, generator.uniform(1, 5, 400), np.arange(400) % 5)


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("outputs", [2, 3])
def test_the_layers_compute_what_scikit_learn_does(exclusive: bool, outputs: int) -> None:
    rows = rows_of(outputs, exclusive)
    slopes, biases, shrinkage = fit(rows, exclusive=exclusive)
    decoder = LinearDecoder([4, 8], outputs, torch.nn.Conv2d)
    set_layers(decoder, slopes, biases)
    features = torch.from_numpy(rows.features).T[None, :, :, None]
    found = decoder([features[:, :4], features[:, 4:]], (400, 1))[0, :, :, 0].T.detach().numpy()
    found = found[:, 1:] - found[:, :-1] if exclusive else found
    labels = [rows.target.argmax(1)] if exclusive else list(rows.target.T)
    expected = []
    for label in labels:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=shrinkage, max_iter=100))
        weights = {f"{name}__sample_weight": rows.weight for name in ("standardscaler", "logisticregression")}
        expected.append(model.fit(rows.features, label, **weights).decision_function(rows.features))
    if exclusive and outputs > 2:
        expected = list((expected[0][:, 1:] - expected[0][:, :-1]).T)
    assert np.allclose(found, np.stack(expected, 1), atol=1e-3)


def test_a_class_that_no_row_shows_is_unlikely_and_not_impossible() -> None:
    rows = rows_of(3, True)
    seen = rows._replace(target=np.insert(rows.target, 1, False, axis=1))
    slopes, biases, _ = fit(seen, exclusive=True)
    logits = rows.features @ slopes.T + biases
    assert np.isfinite(biases).all()
    assert (logits[:, 1] < logits.max(1)).all()
    never = rows._replace(target=np.stack([rows.target[:, 0], np.zeros(400, bool), np.ones(400, bool)], 1))
    slopes, biases, _ = fit(never, exclusive=False)
    assert not slopes[1:].any()
    assert biases[1] == -biases[2] < -5


def test_positions_are_drawn_from_each_class_with_what_they_stand_for() -> None:
    target = torch.zeros(1, 8, 8, dtype=torch.int16)
    target[0, :2], target[0, 7, 7], target[0, 4] = 1, 2, 3
    labels = LabelManager({"background": 0, "a": 1, "b": 2, "ignore": 3}, None)
    trainer = SimpleNamespace(label_manager=labels)
    drawn = LinearFirstTrainer._chosen(trainer, target, 7, torch.Generator().manual_seed(0))
    assert [(rows.argmax(1).tolist(), weight[0]) for _, rows, weight, _ in drawn] == [
        ([0] * 20, 39 / 20),
        ([1] * 16, 1.0),
        ([2], 1.0),
    ]
    assert all((target[0][tuple(places.T)] == rows.argmax(1)).all() for places, rows, *_ in drawn)
    labels = LabelManager({"background": 0, "whole": (1, 2), "core": (2,)}, [1, 2])
    regions = torch.cat([target > 0, target > 1])
    regions[:, 4] = False
    drawn = LinearFirstTrainer._chosen(
        SimpleNamespace(label_manager=labels), regions, 0, torch.Generator().manual_seed(0)
    )
    assert [rows[0].tolist() for _, rows, *_ in drawn] == [[False, False], [True, False], [True, True]]


def test_nnunet_trains_from_the_fitted_head_and_predicts(nnunet: Path) -> None:
    trained(PRETRAIN, "toy_short")
    folder = train(LINEAR_FIRST, "toy_short")
    text = log_of(folder)
    assert "Linear head: fitted to " in text
    assert text.index("Encoder: from scratch") < text.index("Linear head: fitted to ") < text.index("Epoch 0")
    predictor = nnUNetPredictor(device=CPU, use_mirroring=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder.parent), (0,), "checkpoint_final.pth")
    assert isinstance(predictor.network, LinearProbeNetwork)
    weights = torch.load(folder / "checkpoint_final.pth", weights_only=False)
    assert weights["trainer_name"] == LINEAR_FIRST
    assert weights["optimizer_state"]["param_groups"][0]["initial_lr"] == 1e-3
    assert "0.001 (linear_first_scratch_lr: the head is fitted to an encoder from scratch)" in text


def test_a_pretrained_encoder_has_a_rate_of_its_own() -> None:
    trainer = SimpleNamespace(config=FinetuneConfig(linear_first_lr=2e-4))
    assert LinearFirstTrainer._peak_rate(trainer, pretrained=True)[0] == 2e-4
    assert LinearFirstTrainer._peak_rate(trainer, pretrained=False)[0] == 1e-3
