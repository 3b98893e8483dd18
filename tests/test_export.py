"""The export into nnU-Net's own loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from emim_nnunet.checkpoints.encoder import compare_topology, encoder_state, load_encoder, stem_keys
from emim_nnunet.checkpoints.export import export, export_encoder
from emim_nnunet.checkpoints.io import EXPORT_FORMAT, FORMAT_VERSION, SSL_FORMAT, load_checkpoint, save_checkpoint
from emim_nnunet.checkpoints.source import read_source
from emim_nnunet.checkpoints.stem import adapt_stem, explain, stem_by_name
from emim_nnunet.cli import export as command
from emim_nnunet.cli._run import run
from emim_nnunet.datasets.channel_names import standard_name
from emim_nnunet.errors import UserError
from emim_nnunet.planners.transfer import read_like
from tests.toy import toy_unet

CLASSES = {
    "plain": ("dynamic_network_architectures.architectures.unet.PlainConvUNet", "n_conv_per_stage"),
    "residual": ("dynamic_network_architectures.architectures.unet.ResidualEncoderUNet", "n_blocks_per_stage"),
}


def architecture(kind: str, num_axes: int = 3, **changes: Any) -> dict[str, Any]:
    name, blocks = CLASSES[kind]
    kwargs = {
        "n_stages": 3,
        "features_per_stage": [4, 8, 16],
        "conv_op": f"torch.nn.modules.conv.Conv{num_axes}d",
        "kernel_sizes": [[3] * num_axes] * 3,
        "strides": [[1] * num_axes, [2] * num_axes, [2] * num_axes],
        blocks: [1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{num_axes}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    requires_import = ["conv_op", "norm_op", "dropout_op", "nonlin"]
    return {"network_class_name": name, "arch_kwargs": kwargs | changes, "_kw_requires_import": requires_import}


def plans(arch: dict[str, Any]) -> dict[str, Any]:
    configuration = {"architecture": arch, "spacing": [1.0] * 3, "patch_size": [16] * 3, "batch_size": 2}
    return {
        "dataset_name": "Dataset001_Toy",
        "plans_name": "ToyPlans",
        "label_manager": "LabelManager",
        "configurations": {"toy": configuration},
    }


def dataset_json(num_channels: int, num_classes: int = 2) -> dict[str, Any]:
    return {
        "channel_names": {str(c): f"M{c}" for c in range(num_channels)},
        "labels": {"background": 0} | {f"l{i}": i for i in range(1, num_classes)},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }


def ssl_checkpoint(path: Path, kind: str, num_axes: int = 3, num_channels: int = 4, prefix: str = "") -> nn.Module:
    torch.manual_seed(1)
    unet = toy_unet(kind, num_axes=num_axes, num_channels=num_channels)
    weights = {f"{prefix}encoder.{k}": v for k, v in unet.encoder.state_dict().items()}
    save_checkpoint(
        {
            "format": SSL_FORMAT,
            "format_version": FORMAT_VERSION,
            "method": "EMIM",
            "trainer_name": "nnUNetTrainerEMIMPretrain",
            "dataset_json": dataset_json(num_channels),
            "network_weights": weights | {"fill": torch.zeros(num_channels)},
            "current_epoch": 3,
            "finished": True,
            "plans": plans(architecture(kind, num_axes)),
            "configuration": "toy",
            "fold": 0,
            "emim": {"cell_size": [4] * num_axes},
            "channel_names": [f"M{c}" for c in range(num_channels)],
            "training_cases": ["a", "b"],
            "seed": 0,
            "versions": {},
        },
        path,
    )
    return unet.encoder


def stock_network(arch: dict[str, Any], num_channels: int, num_heads: int) -> nn.Module:
    args = (arch["network_class_name"], arch["arch_kwargs"], arch["_kw_requires_import"])
    return get_network_from_plans(*args, num_channels, num_heads, allow_init=True, deep_supervision=True)


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("num_axes", [2, 3])
@pytest.mark.parametrize(("old", "new"), [(4, 4), (1, 4), (4, 1), (4, 7)])
def test_nnunets_own_loader_takes_the_export(kind: str, num_axes: int, old: int, new: int, tmp_path: Path) -> None:
    encoder = ssl_checkpoint(tmp_path / "ssl.pth", kind, num_axes, old)
    arch = architecture(kind, num_axes)
    summary = export(tmp_path / "ssl.pth", plans(arch), "toy", dataset_json(new, 5), tmp_path / "out.pth")
    network = stock_network(arch, new, 5)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    load_pretrained_weights(network, str(tmp_path / "out.pth"))
    stems = stem_keys(encoder)
    assert bool(summary.adaptations) == (old != new)
    names = [[f"M{c}" for c in range(number)] for number in (old, new)]
    expected = {k: stem_by_name(v, *names) if k in stems else v for k, v in encoder.state_dict().items()}
    for prefix in ("encoder.", "decoder.encoder."):
        loaded = {k.removeprefix(prefix): v for k, v in network.state_dict().items() if k.startswith(prefix)}
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[k], expected[k]) for k in expected)
    assert any(not torch.equal(v, before[k]) for k, v in network.state_dict().items() if k.startswith("encoder."))
    image = torch.randn(1, new, *[16] * num_axes)
    reference = torch.nn.Sequential()
    reference.encoder = toy_unet(kind, num_axes=num_axes, num_channels=new).encoder
    reference.encoder.load_state_dict(expected)
    for ours, theirs in zip(network.encoder(image), reference.encoder(image), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("new", [1, 2, 7])
def test_adapted_stem_answers_equal_channels_as_before(new: int) -> None:
    weight, one = torch.randn(8, 4, 3, 3), torch.randn(2, 1, 9, 9)
    before = nn.functional.conv2d(one.expand(-1, 4, -1, -1), weight)
    after = nn.functional.conv2d(one.expand(-1, new, -1, -1), adapt_stem(weight, new))
    assert torch.allclose(before, after, atol=1e-4)


def test_exporting_twice_gives_the_same_tensors_and_spares_the_global_generator(tmp_path: Path) -> None:
    ssl_checkpoint(tmp_path / "ssl.pth", "residual")
    contents = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        export(tmp_path / "ssl.pth", plans(architecture("residual")), "toy", dataset_json(4), tmp_path / "out.pth")
        assert torch.equal(torch.get_rng_state(), state)
        contents.append(load_checkpoint(tmp_path / "out.pth", formats=("emim_nnunet.export",))["network_weights"])
    assert all(torch.equal(contents[0][k], contents[1][k]) for k in contents[0])


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_adaptation_plan_describes_the_network_that_is_in_the_file(kind: str, tmp_path: Path) -> None:
    ssl_checkpoint(tmp_path / "ssl.pth", kind)
    export(tmp_path / "ssl.pth", plans(architecture(kind)), "toy", dataset_json(4), tmp_path / "out.pth")
    content = torch.load(tmp_path / "out.pth", weights_only=True)
    plan = content["nnssl_adaptation_plan"]
    arch = plan["architecture_plans"]
    network = stock_network(
        {
            "network_class_name": arch["arch_class_name"],
            "arch_kwargs": arch["arch_kwargs"],
            "_kw_requires_import": arch["arch_kwargs_requiring_import"],
        },
        plan["pretrain_num_input_channels"],
        2,
    )
    network.load_state_dict(content["network_weights"])
    for key in (plan["key_to_encoder"], plan["key_to_stem"], *plan["keys_to_in_proj"]):
        network.get_submodule(key)
    (configuration,) = plan["pretrain_plan"]["configurations"].values()
    assert configuration == {"spacing": [1.0] * 3, "patch_size": [16] * 3}
    assert plan["recommended_downstream_patchsize"] == [16] * 3
    assert "key_to_lpe" in plan
    assert content["provenance"]["num_training_cases"] == 2
    json.dumps(plan)


def test_other_topology_is_refused_and_the_differences_are_listed(tmp_path: Path) -> None:
    ssl_checkpoint(tmp_path / "ssl.pth", "residual")
    # same shapes of weights: only the plans know that the strides differ
    other = architecture("residual", strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2]])
    with pytest.raises(UserError, match=r"strides .*\[1, 2, 2\]"):
        export(tmp_path / "ssl.pth", plans(other), "toy", dataset_json(4), tmp_path / "out.pth")
    with pytest.raises(UserError, match="network ResidualEncoderUNet -> PlainConvUNet"):
        export(tmp_path / "ssl.pth", plans(architecture("plain")), "toy", dataset_json(4), tmp_path / "out.pth")
    with pytest.raises(UserError, match="plans 'ToyPlans' have no configuration 'other'; they have: toy"):
        export(tmp_path / "ssl.pth", plans(other), "other", dataset_json(4), tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


def test_topologies_compare_by_meaning() -> None:
    first = architecture("residual")
    assert compare_topology(first, json.loads(json.dumps(first))) == []
    assert compare_topology(first, architecture("residual", kernel_sizes=3)) == []
    assert compare_topology(first, architecture("residual", n_conv_per_stage_decoder=[2, 2])) == []
    assert compare_topology(first, architecture("residual", features_per_stage=[4, 8, 8])) == [
        "features_per_stage [4, 8, 16] -> [4, 8, 8]"
    ]


def test_an_encoder_that_does_not_fit_is_named_and_nothing_is_loaded() -> None:
    source, target = toy_unet(), toy_unet(features=(4, 8, 12))
    before = {k: v.clone() for k, v in target.encoder.state_dict().items()}
    with pytest.raises(UserError, match=r"does not fit.*needed \[12.* and \d+ more"):
        load_encoder(target.encoder, source.encoder.state_dict(), source="x.pth")
    assert all(torch.equal(v, before[k]) for k, v in target.encoder.state_dict().items())


def test_prefixes_of_compilation_and_ddp_are_removed(tmp_path: Path) -> None:
    encoder = ssl_checkpoint(tmp_path / "ssl.pth", "plain", prefix="module._orig_mod.")
    assert encoder_state(load_checkpoint(tmp_path / "ssl.pth")).keys() == encoder.state_dict().keys()
    with pytest.raises(UserError, match="holds no encoder"):
        encoder_state({"network_weights": {"decoder.x": torch.zeros(1)}})


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_an_encoder_alone_is_small_and_is_a_source_like_the_checkpoint(kind: str, half: bool, tmp_path: Path) -> None:
    encoder = ssl_checkpoint(tmp_path / "ssl.pth", kind)
    summary = export_encoder(tmp_path / "ssl.pth", tmp_path / "encoder.pth", half=half)
    assert (summary.method, summary.epochs, summary.num_cases, summary.finished) == ("EMIM", 3, 2, True)
    content = load_checkpoint(tmp_path / "encoder.pth", formats=(EXPORT_FORMAT,))
    assert {v.dtype for v in content["network_weights"].values()} == {torch.float16 if half else torch.float32}
    size = sum(p.numel() for p in encoder.parameters()) * (2 if half else 4)
    stored = {v.untyped_storage().data_ptr(): v.untyped_storage().nbytes() for v in content["network_weights"].values()}
    assert sum(stored.values()) == size  # every layer once
    tolerance = 1e-3 if half else 0.0
    source = read_source(tmp_path / "encoder.pth")
    assert source.epochs == 3
    diagnosed, _ = source.encoder(["M0", "M1", "M2", "M3"])
    for key, value in encoder.state_dict().items():
        assert torch.allclose(diagnosed.state_dict()[key], value, atol=tolerance, rtol=0), key

    target_plans = plans(architecture(kind))
    export(tmp_path / "ssl.pth", target_plans, "toy", dataset_json(2), tmp_path / "direct.pth")
    again = export(tmp_path / "encoder.pth", target_plans, "toy", dataset_json(2), tmp_path / "again.pth")
    assert again.adaptations == ["channel 0 'M0': filter of 'M0'", "channel 1 'M1': filter of 'M1'"]
    direct, indirect = (load_checkpoint(tmp_path / f"{n}.pth", formats=(EXPORT_FORMAT,)) for n in ("direct", "again"))
    assert indirect["provenance"] == direct["provenance"]
    for key, value in direct["network_weights"].items():
        assert torch.allclose(indirect["network_weights"][key], value, atol=2 * tolerance, rtol=0), key
    with pytest.raises(UserError, match="is no checkpoint of an SSL stage"):
        export_encoder(tmp_path / "direct.pth", tmp_path / "twice.pth")


@pytest.fixture
def target(nnunet_dirs: Path) -> Path:
    folder = nnunet_dirs / "nnUNet_preprocessed" / "Dataset001_Toy"
    folder.mkdir()
    (folder / "ToyPlans.json").write_text(json.dumps(plans(architecture("residual"))))
    (folder / "dataset.json").write_text(json.dumps(dataset_json(4)))
    (nnunet_dirs / "fold_0").mkdir()
    ssl_checkpoint(nnunet_dirs / "fold_0" / "checkpoint_final.pth", "residual")
    return nnunet_dirs


def test_command(target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = target / "weights.pth"
    arguments = [str(target / "fold_0"), "-d", "1", "-p", "ToyPlans", "-c", "toy", "-o", str(out)]
    assert run(command.main, arguments) == 0
    assert "nnUNetv2_train 1 toy FOLD -p ToyPlans -pretrained_weights" in capsys.readouterr().out
    assert out.is_file()
    assert run(command.main, arguments) == 2
    assert f"-o {out} exists" in capsys.readouterr().err
    assert run(command.main, [*arguments, "--overwrite"]) == 0
    alone = target / "encoder.pth"
    assert run(command.main, [str(target / "fold_0"), "--encoder_only", "--half", "-o", str(alone)]) == 0
    assert f"wrote {alone}: " in capsys.readouterr().out
    for options, message in ((["--half"], "--half goes with"), ([], "-d is needed")):
        with pytest.raises(SystemExit, match="2"):
            run(command.main, [str(alone), "-o", str(out), *(["-d", "1"] if options else []), *options])
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"-d": "2"}, "-d 2: expected one folder Dataset002_NAME"),
        ({"-p": "nnUNetPlans"}, "-p nnUNetPlans: Dataset001_Toy has ToyPlans"),
        ({"-c": "3d_fullres"}, "plans 'ToyPlans' have no configuration '3d_fullres'; they have: toy"),
        ({"-o": "nowhere/weights.pth"}, "its folder does not exist"),
        ({"checkpoint": "no_such_folder"}, "CHECKPOINT no_such_folder: neither a file nor a folder"),
        ({"checkpoint": __file__}, "test_export.py is not a checkpoint"),
    ],
)
def test_bad_options_are_named(
    changes: dict[str, str], message: str, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"-d": "1", "-p": "ToyPlans", "-c": "toy", "-o": str(target / "weights.pth")} | changes
    checkpoint = options.pop("checkpoint", str(target / "fold_0"))
    assert run(command.main, [checkpoint, *(x for item in options.items() for x in item)]) == 2
    assert message in capsys.readouterr().err
    assert not (target / "weights.pth").exists()


# ---------------------------------------------------------------------------------------------------------- channels


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_permuting_channels_with_their_names_changes_nothing(kind: str) -> None:
    names, order = ["T1", "T1ce", "T2", "Flair"], [2, 0, 3, 1]
    source = toy_unet(kind, num_channels=4).encoder
    target = toy_unet(kind, num_channels=4).encoder
    permuted = [names[i] for i in order]
    lines = load_encoder(target, source.state_dict(), source="x", names=(names, permuted))
    assert lines[0] == "channel 0 'T2': filter of 'T2'"
    image = torch.randn((1, 4, 16, 16, 16), generator=torch.Generator().manual_seed(0))
    for a, b in zip(source(image), target(image[:, order]), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (["T1", "T1ce", "T2", "Flair"], ["FLAIR", "t1w"], [3, 0]),
        (["T1", "T1ce", "T2", "Flair"], ["T2w"], [2]),
        (["T1"], ["T1c", "T1w", "T2", "Flair"], [None, 0, None, None]),
        (
            ["T1", "T1ce", "T2", "Flair"],
            ["T1n", "T1gd", "T2-w", "T2F", "DWI", "ADC", "SWI"],
            [0, 1, 2, 3, None, None, None],
        ),
    ],
)
def test_filters_go_by_name_and_unknown_names_get_the_mean(old: list[str], new: list[str], expected: list) -> None:
    weight = torch.randn((8, len(old), 3, 3, 3), generator=torch.Generator().manual_seed(0))
    adapted = stem_by_name(weight, old, new)
    assert adapted.shape == (8, len(new), 3, 3, 3)
    lines = explain(old, new)
    for number, place in enumerate(expected):
        reference = weight.mean(1) if place is None else weight[:, place]
        assert torch.equal(adapted[:, number], reference)
        wanted = "mean filter" if place is None else f"filter of '{old[place]}'"
        assert lines[number] == f"channel {number} '{new[number]}': {wanted}"


def test_names_that_nobody_knows_go_by_position_and_it_is_said() -> None:
    source, target = (toy_unet(num_channels=2).encoder for _ in range(2))
    lines = load_encoder(target, source.state_dict(), source="x", names=(["T1", "T2"], ["channel0", "channel1"]))
    assert lines == ["no channel name is known (T1, T2 -> channel0, channel1): filters go by position"]
    assert all(torch.equal(v, target.state_dict()[k]) for k, v in source.state_dict().items())
    assert explain(["T1w", "FLAIR"], ["T1", "Flair"]) == []
    assert standard_name("T1-Gd") == "t1ce"


def test_an_export_remembers_the_names_of_its_own_channels(tmp_path: Path) -> None:
    ssl_checkpoint(tmp_path / "ssl.pth", "plain", 3, 4)
    arch = architecture("plain", 3)
    names = {"channel_names": {"0": "Flair", "1": "DWI"}}
    export(tmp_path / "ssl.pth", plans(arch), "toy", dataset_json(2, 3) | names, tmp_path / "out.pth")
    again = read_source(tmp_path / "out.pth")
    assert again.channel_names == ["Flair", "DWI"]


def test_a_plan_can_be_like_any_checkpoint_that_describes_its_network(tmp_path: Path) -> None:
    ssl_checkpoint(tmp_path / "ssl.pth", "residual", 3, 4)
    stage = json.loads(json.dumps(plans(architecture("residual"))))
    content = load_checkpoint(tmp_path / "ssl.pth")
    stage["configurations"]["toy"] |= {"data_identifier": "x", "preprocessor_name": "DefaultPreprocessor"}
    save_checkpoint(content | {"plans": stage | {"transpose_backward": [0, 1, 2]}}, tmp_path / "stage.pth")
    export_encoder(tmp_path / "ssl.pth", tmp_path / "encoder only.pth")  # as nnssl's: an adaptation plan and no plans
    for name, expected in (("stage.pth", (1.0, 1.0, 1.0)), ("encoder only.pth", None)):
        like = read_like(str(tmp_path / name), "nnUNetEMIMPlans", "3d_fullres")
        assert compare_topology(like.architecture, architecture("residual")) == []
        assert like.patch_size == (16, 16, 16)
        assert like.batch_size == 2
        assert like.spacing == expected
        assert like.configuration == "3d_fullres"
        assert like.name in ("stage", "encoder_only")
