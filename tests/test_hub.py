"""Encoders as folders for Hugging Face's Hub: what is in them, what is not, and who takes them."""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import socket
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from emim_nnunet.checkpoints.io import load_checkpoint, save_checkpoint
from emim_nnunet.checkpoints.locate import find_checkpoint
from emim_nnunet.checkpoints.source import read_source
from emim_nnunet.cli import export as command
from emim_nnunet.cli._run import run
from emim_nnunet.errors import UserError
from emim_nnunet.planners.transfer import read_like
from tests.test_export import dataset_json, ssl_checkpoint

FILES = ["README.md", "adaptation_plan.json", "checkpoint_final.pth", "config.json", "model.safetensors"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
HOST = "neuro-workstation-07"
CASES = ["patient_Smith_1970", "patient_Jones_1981"]
pytest.importorskip("safetensors", reason="safetensors is not installed (it is an extra)")


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """A checkpoint of an SSL stage with all that a real one holds about patients, folders and computers."""
    folder = tmp_path / "results" / "fold_all"
    folder.mkdir(parents=True)
    file = folder / "checkpoint_final.pth"
    ssl_checkpoint(file, "residual")
    stages = [{"effective_rank": 2.5, "channels": 4}, {"effective_rank": float("nan"), "channels": 8}]
    measured = {"epoch": 3, "level": "note", "stages": stages, "reconstruction": {"all": {"skill": 0.25}}}
    finding = {
        "rule": "low_skill",
        "level": "note",
        "scope": "reconstruction",
        "message": "little skill over a constant",
    }
    about = dataset_json(4) | {"licence": "CC-BY-4.0", "reference": "Someone 2020", "converted_by": getpass.getuser()}
    content = load_checkpoint(file) | {
        "history": [{"epoch": 0, "seconds": 1800.0}, {"epoch": 1, "seconds": 3600.0}],
        "collapse": [measured | {"epoch": 0}, measured],
        "verdict": {"level": "note", "findings": [finding]},
        "training_cases": CASES[:1],
        "validation_cases": CASES[1:],
        "case_digests": dict.fromkeys(CASES, "0"),
        "dataset_json": about | {"description": f"from {HOST}", "dataset": str(tmp_path)},
    }
    content["emim"] = content["emim"] | {"collapse_reference": str(tmp_path / "other_run")}
    content["plans"] = content["plans"] | {"source": str(tmp_path)}
    save_checkpoint(content, file)
    return file


def written(stage: Path, *options: str) -> Path:
    folder = stage.parent.parent.parent / "hub"
    assert run(command.main, [str(stage.parent), "--hub", str(folder), *options]) == 0
    return folder


def test_the_folder_holds_what_the_hub_and_nnunet_read(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = written(stage, "--licence", "cc-by-4.0")
    assert f"hf upload OWNER/NAME {folder}" in capsys.readouterr().out
    assert sorted(file.name for file in folder.iterdir()) == sorted(FILES)
    assert [path.name for path in folder.parent.glob(".*")] == []
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {stage.stat().st_mode & 0o777}
    content = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    assert json.loads((folder / "adaptation_plan.json").read_text()) == content["nnssl_adaptation_plan"]
    citations = sorted(content["citations"], key=lambda cited: cited.get("type", ""))  # as nnU-Net prints them
    assert [(c["type"], c["name"]) for c in citations] == [("Framework", "nnU-Net"), ("Method", "EMIM")]
    assert all(isinstance(paper, str) and paper for cited in citations for paper in cited["apa_citations"])

    _, head, text = (folder / "README.md").read_text("utf-8").split("---\n", 2)
    card = yaml.safe_load(head)
    assert card["license"] == "cc-by-4.0"
    assert card["citations"] == content["citations"]
    known = card["emim_nnunet"]
    data = {"dataset": "Dataset001_Toy", "num_cases": 1, "licence": "CC-BY-4.0", "reference": "Someone 2020"}
    assert known["data"] == data
    assert (known["channels"], known["spacing"]) == (["M0", "M1", "M2", "M3"], [1.0] * 3)
    assert (known["patch_size"], known["method"], known["epochs"], known["hours"]) == ([16] * 3, "EMIM", 3, 1.5)
    assert known["verdict"] == "NOTE: little skill over a constant"
    assert (known["probe"]["held_out_cases"], known["probe"]["skill"]) == (1, {"all": 0.25})
    assert known["probe"]["effective_rank"] == [2.5, None]
    for row in (
        "| hours | 1.5 of",
        "| skill over a constant | all 0.25 |",
        "| patch | 16 x 16 x 16 |",
        "arXiv 2407.10377",
    ):
        assert row in text
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == content["nnssl_adaptation_plan"]["architecture_plans"]


def test_without_a_licence_the_card_says_so(stage: Path) -> None:
    card = yaml.safe_load((written(stage) / "README.md").read_text("utf-8").split("---\n")[1])
    assert (card["license"], card["license_name"]) == ("other", "not stated")


@pytest.mark.parametrize("half", [False, True])
def test_the_safetensors_are_the_encoder(stage: Path, half: bool) -> None:
    from safetensors.torch import load_file, load_model

    folder = written(stage, *(["--half"] if half else []))
    content = torch.load(folder / "checkpoint_final.pth", weights_only=True)["network_weights"]
    tensors = load_file(folder / "model.safetensors")
    assert all(torch.equal(value, content[name]) for name, value in tensors.items())
    assert {value.dtype for value in tensors.values()} == {torch.float16 if half else torch.float32}
    network: Any = read_source(stage).fresh_network(4, seed=7)
    missing, unexpected = load_model(network, folder / "model.safetensors", strict=False)
    assert unexpected == []
    assert [name for name in missing if name.startswith("encoder.")] == []
    expected: nn.Module = read_source(stage).encoder(["M0", "M1", "M2", "M3"])[0]
    tolerance = 1e-3 if half else 0.0
    for name, value in expected.state_dict().items():
        assert torch.allclose(network.encoder.state_dict()[name], value, atol=tolerance, rtol=0)


def texts(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file, and of every file inside an archive."""
    for file in sorted(folder.rglob("*")):
        yield file.name, file.name.encode() + b"\n" + file.read_bytes()
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                yield from ((f"{file.name}:{name}", name.encode() + archive.read(name)) for name in archive.namelist())


def leaks(folder: Path, secrets: list[str]) -> list[tuple[str, str]]:
    path = re.compile(
        rb"(?<![\w.:/])/(?:home|root|opt|work|mnt|media|scratch|Users|tmp|usr|var)/\w+|\b[A-Z]:\\\\?Users"
    )
    found = [(name, secret) for name, data in texts(folder) for secret in secrets if secret.encode() in data]
    return found + [(name, str(match[0])) for name, data in texts(folder) for match in [path.search(data)] if match]


def test_nothing_names_a_patient_a_path_or_a_computer(stage: Path, tmp_path: Path) -> None:
    secrets = [*CASES, str(tmp_path), tmp_path.name, "fold_all", socket.gethostname(), HOST, os.path.expanduser("~")]
    secrets = [secret for secret in secrets if len(secret) > 3]  # shorter ones are found in weights by chance
    folder = written(stage)
    assert leaks(folder, secrets) == []
    shutil.copy(stage, folder)  # the whole stage instead: the search finds it in the compressed and the plain file
    assert {secret for _, secret in leaks(folder, secrets)} >= {*CASES, HOST, str(tmp_path)}


@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_folder_is_a_source_like_the_stage(what: str, stage: Path, tmp_path: Path) -> None:
    folder = written(stage)
    file = find_checkpoint(folder if what == "folder" else folder / "checkpoint_final.pth")
    ours, theirs = (read_source(f).encoder(["M0", "M1", "M2", "M3"])[0].state_dict() for f in (stage, file))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    like = read_like(str(folder), "nnUNetEMIMPlans", "3d_fullres")
    assert (like.name, like.patch_size) == ("hub", (16, 16, 16))


class Hub(SimpleHTTPRequestHandler):
    """Answers as the Hub does for one repository, ``lab/encoder``."""

    def translate_path(self, path: str) -> str:
        found = re.fullmatch(r"/lab/encoder/resolve/main/([\w.]+)", path)
        return super().translate_path(f"/{found[1]}" if found else "/no")

    def end_headers(self) -> None:
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", '"0123456789abcdef"')
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@pytest.fixture
def hub(stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    constants = pytest.importorskip("huggingface_hub.constants", reason="huggingface_hub is not installed (an extra)")
    folder = written(stage)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "127.0.0.1")
        yield folder
        server.shutdown()


def test_a_repository_of_the_hub_is_a_source(hub: Path, tmp_path: Path) -> None:
    file = find_checkpoint(Path("hf://lab/encoder"))
    assert file.is_relative_to(tmp_path / "cache")
    assert file.read_bytes() == (hub / "checkpoint_final.pth").read_bytes()
    with pytest.raises(UserError, match=r"^hf://lab/other: checkpoint_final.pth cannot be downloaded ") as error:
        find_checkpoint(Path("hf://lab/other"))
    assert "\n" not in str(error.value)


def test_packages_that_are_missing_are_named(
    stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert run(command.main, ["hf://lab/encoder", "--encoder_only", "-o", str(tmp_path / "x.pth")]) == 2
    assert "hf://lab/encoder needs huggingface_hub: pip install emim_nnunet[hub]" in capsys.readouterr().err
    assert run(command.main, [str(stage), "--hub", str(tmp_path / "hub")]) == 2
    assert "--hub needs safetensors: pip install emim_nnunet[hub]" in capsys.readouterr().err
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize("half_done", [False, True])
def test_a_folder_that_is_not_empty_or_cannot_be_finished_is_left_as_it_was(
    half_done: bool, stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    if half_done:
        monkeypatch.setattr("safetensors.torch.save", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "full")))
    else:
        (folder / "mine").touch()
    before = sorted(p.name for p in tmp_path.rglob("*"))
    assert run(command.main, [str(stage), "--hub", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert half_done or f"--hub {folder} is not an empty folder" in error
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_what_is_no_stage_cannot_be_shared(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = written(stage)
    for checkpoint, message in ((folder, "is no checkpoint of an SSL stage"), (Path(__file__), "is not a checkpoint")):
        assert run(command.main, [str(checkpoint), "--hub", str(folder.with_name("again"))]) == 2
        assert message in capsys.readouterr().err
    assert not folder.with_name("again").exists()
    for options in (["-o", "x.pth"], ["--encoder_only"]):
        with pytest.raises(SystemExit, match="2"):
            run(command.main, [str(stage), "--hub", str(folder.with_name("again")), *options])
    with pytest.raises(SystemExit, match="2"):
        run(command.main, [str(stage), "--encoder_only", "-o", "x.pth", "--licence", "mit"])
    assert "--licence goes with --hub" in capsys.readouterr().err
