"""Errors that are explained in one line, and those that keep their traceback."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from emim_nnunet.checkpoints.network import planned_network
from emim_nnunet.cli import _run
from emim_nnunet.cli._run import CommandParser, dataset_id, run
from emim_nnunet.errors import UserError, causes_logged, chained_traceback, listed
from emim_nnunet.nnunet.plans import PlansManager
from emim_nnunet.settings.plans import check_architecture, planned

UNET = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
    "arch_kwargs": {
        "n_stages": 2,
        "features_per_stage": [4, 4],
        "conv_op": "torch.nn.modules.conv.Conv2d",
        "kernel_sizes": [[3, 3], [3, 3]],
        "strides": [[1, 1], [2, 2]],
        "n_blocks_per_stage": [1, 1],
        "n_conv_per_stage_decoder": [1],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}


def module(name: str, code: str) -> Any:
    """A module of that name, as Python would import it."""
    made = ModuleType(name)
    exec(code, made.__dict__)
    return made


def build(architecture: dict[str, Any]) -> None:
    with planned("the network cannot be built"):
        planned_network(architecture, 1, 2, deep_supervision=False, seed=0)


@pytest.mark.parametrize(
    "change",
    [
        {"n_stages": 3},
        {"conv_op": "torch.nn.NoSuchLayer"},
        {"norm_op": None},
        {"norm_op_kwargs": {"epsilon": 1e-5}},
        {"unheard_of": 1},
        {"features_per_stage": None},
        {"kernel_sizes": [[3, 3]]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_values_of_plans_end_in_one_line(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^the network cannot be built \(\w+: .*\): plan again") as caught:
        build(UNET | {"arch_kwargs": UNET["arch_kwargs"] | change})
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


def test_a_network_that_does_not_exist_and_keys_that_are_missing_end_in_one_line() -> None:
    build(UNET)
    with pytest.raises(UserError, match="Network class could not be found"):
        build(UNET | {"network_class_name": "dynamic_network_architectures.NoSuchNet"})
    with pytest.raises(UserError, match="KeyError: 'network_class_name'"), planned("the network cannot be built"):
        _ = {}["network_class_name"]
    with pytest.raises(UserError, match="not iterable"), planned("no patch"):
        tuple(
            PlansManager({"configurations": {"a": {"architecture": UNET, "patch_size": None}}})
            .get_configuration("a")
            .patch_size
        )


@pytest.mark.parametrize("strides", [2, None, [[1, 1], []], [[1, 1], [2, 0]], [[1, 1], 2.5], [[1, 1], ["2", "2"]]])
def test_strides_are_numbers_of_each_stage(strides: Any) -> None:
    architecture = UNET | {"arch_kwargs": UNET["arch_kwargs"] | {"strides": strides}}
    with pytest.raises(UserError, match="'strides' of configuration 'x' must hold a positive whole number"):
        check_architecture(architecture, "configuration 'x'")


@pytest.mark.parametrize("strides", [[1, 2], ((1, 1), (2, 2)), [[1, 1], (2, 2)]])
def test_strides_may_be_tuples_or_the_same_for_all_axes(strides: Any) -> None:
    check_architecture(UNET | {"arch_kwargs": UNET["arch_kwargs"] | {"strides": strides}}, "configuration 'x'")


PASSES: dict[str, tuple[type[Exception], Callable[[], object]]] = {
    "a name that our code lacks": (AttributeError, lambda: PlansManager({"a": 1}).no_such_attribute),
    "a mistake in our code": (AttributeError, lambda: module("emim_nnunet.methods.x", "def f(): None.x").f()),
    "a type that our code mistakes": (TypeError, lambda: module("emim_nnunet.methods.x", "def f(): 1 + ''").f()),
    "an index that our code mistakes": (IndexError, lambda: module("emim_nnunet.losses.x", "def f(): [][1]").f()),
    "a trainer of the user's": (KeyError, lambda: module("my_trainer", "def f(): {}[1]").f()),
    "an argument that nnU-Net no longer takes": (TypeError, lambda: PlansManager({}, "former argument")),
    "a function that is none any more": (TypeError, lambda: PlansManager({"plans_name": "x"}).plans_name()),
    "nnU-Net's own missing attribute": (
        AttributeError,
        lambda: module("nnunetv2.x", "def f(o): o.x").f(PlansManager({})),
    ),
    "what torch no longer has": (AttributeError, lambda: module("nnunetv2.x", "import torch\ndef f(): torch.no").f()),
    "a name that nnU-Net lacks": (NameError, lambda: module("nnunetv2.x", "def f(): no").f()),
    "a package that is not installed": (
        ModuleNotFoundError,
        lambda: module("nnunetv2.x", "def f(): import no_such").f(),
    ),
    "a full disk": (OSError, lambda: module("nnunetv2.x", "def f(): raise OSError(28, 'full')").f()),
    "a GPU": (RuntimeError, lambda: module("nnunetv2.x", "def f(): raise RuntimeError('CUDA error')").f()),
}


@pytest.mark.parametrize("case", PASSES)
def test_what_plans_cannot_cause_keeps_its_traceback(case: str) -> None:
    kind, fail = PASSES[case]
    with pytest.raises(kind) as caught, planned("the network cannot be built"):
        fail()
    assert not isinstance(caught.value, UserError)
    assert Path(str(caught.traceback[-1].path)).name != "plans.py"  # it leads to what failed


def explain(_: object) -> None:
    try:
        _ = {}["patch_size"]
    except KeyError as error:
        raise UserError("plans.json: plan again") from error


def command(argv: Any) -> None:
    CommandParser("emim_x", "Does something.", "Example:\n  emim_x").parse_args(argv)
    explain(None)


def test_a_command_shows_the_traceback_when_it_is_asked_to(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["emim_x"])
    for _ in range(2):  # the option holds for one command
        assert run(command, []) == 2
        assert capsys.readouterr().err == "emim_x: error: plans.json: plan again\n"
        assert run(command, ["--traceback"]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert lines[0] == "Traceback (most recent call last):"
        assert "KeyError: 'patch_size'" in lines
        assert lines[-1] == "emim_x: error: plans.json: plan again"


def test_emim_train_takes_the_option_from_nnunets_parser(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from emim_nnunet.cli import train
    from emim_nnunet.nnunet import commands

    monkeypatch.setattr(sys, "argv", ["emim_train"])
    monkeypatch.setattr(commands, "search_trainers_with", lambda _: None)
    monkeypatch.setattr(commands, "check_before_training", lambda _: None)
    monkeypatch.setattr(commands, "run_training_entry", lambda: explain(None))
    assert run(train.main, ["1", "toy", "0", "--traceback", "-device", "cpu"]) == 2
    assert sys.argv[:4] == ["emim_train", "1", "toy", "0"]
    assert "--traceback" not in sys.argv
    assert "KeyError: 'patch_size'" in capsys.readouterr().err


def test_emim_train_understands_what_nnunets_command_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from emim_nnunet.cli.train import TAKE_OVER, nnunets_parser
    from emim_nnunet.nnunet.commands import run_training_entry

    def options(parser: argparse.ArgumentParser) -> dict[str, Any]:
        return {
            action.dest: (action.option_strings, action.nargs, action.required, type(action))
            for action in parser._actions
            if not {"--help", TAKE_OVER, _run.TRACEBACK} & set(action.option_strings)
        }

    theirs: list[dict[str, Any]] = []

    def end(parser: argparse.ArgumentParser) -> None:
        theirs.append(options(parser))
        raise SystemExit

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", end)
    with pytest.raises(SystemExit):
        run_training_entry()
    assert theirs == [options(nnunets_parser())]


def test_every_command_has_the_option() -> None:
    for file in sorted((Path(_run.__file__).parent).glob("[a-z]*.py")):
        source = file.read_text("utf-8")
        assert "CommandParser(" in source, file.name
        assert "ArgumentParser(\n" not in source, file.name


def error_of(fail: Callable[[], object]) -> Exception:
    try:
        fail()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_the_cause_of_an_explained_error_is_logged_without_folders_of_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logged: list[str] = []
    with pytest.raises(UserError, match="plan again"), causes_logged(logged.append):
        explain(None)
    (text,) = logged
    assert text.startswith("Traceback (most recent call last):\n")
    assert 'File "tests/test_errors.py", line' in text
    assert "KeyError: 'patch_size'" in text
    assert text.endswith("UserError: plans.json: plan again\n")
    assert str(Path(__file__).parent) not in text
    monkeypatch.setattr(sys, "path", [])  # as for an editable installation
    assert 'File "emim_nnunet/cli/_run.py", line' in chained_traceback(error_of(lambda: _run.dataset_id("x")))
    for error in (UserError("explains nothing"), ValueError("a mistake in the code")):  # has its traceback already
        with pytest.raises(ValueError, match=str(error)), causes_logged(logged.append):
            raise error
    assert len(logged) == 1


def test_data_sets_go_by_number_or_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Dataset137_X").mkdir()
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    monkeypatch.delenv("nnUNet_raw", raising=False)
    assert dataset_id("137") == dataset_id("Dataset137_X") == 137
    for wrong in ("Dataset137_Y", "Dataset1_X", "X", "-1", ""):
        with pytest.raises(Exception, match="must be the id of a data set, or its name"):
            dataset_id(wrong)


@pytest.mark.parametrize(
    ("number", "expected"),
    [(0, ""), (1, "a"), (3, "a; b; c"), (4, "a; b; c and 1 more (there)"), (1000, "a; b; c and 997 more (there)")],
)
def test_a_long_list_is_cut_and_says_so(number: int, expected: str) -> None:
    names = ["a", "b", "c", *("x" * (number - 3))][:number]
    assert listed(names, 3, separator="; ", where=" (there)") == expected
