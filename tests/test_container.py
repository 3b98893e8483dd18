"""The recipes of the image, read; .github/workflows/release.yml builds them and runs the worked example of the page."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
DEFINITION = (ROOT / "apptainer.def").read_text("utf-8")
PAGE = (ROOT / "documentation" / "how-to" / "container.md").read_text("utf-8")


def words(text: str) -> list[str]:
    """The words of shell text, whatever its lines."""
    return text.replace("\\\n", " ").split()


def instructions(name: str) -> list[str]:
    """All instructions of that name in the Dockerfile, with their continued lines."""
    return re.findall(rf"^{name} ((?:.*\\\n)*.*)$", DOCKERFILE, re.MULTILINE)


def section(name: str) -> str:
    """A section of the Apptainer definition."""
    return re.split(r"^%\w+$", DEFINITION.partition(f"\n%{name}\n")[2], flags=re.MULTILINE)[0]


def test_both_recipes_take_the_same_steps() -> None:
    steps = [step for step in instructions("RUN") if "useradd" not in step]
    assert len(steps) == 3
    post = section("post").partition("PIP_NO_CACHE_DIR=1\n")[2]
    assert words(post) == [word for step in steps for word in words(step)]
    assert f"From: {instructions('FROM')[0]}" in DEFINITION
    assert f"VARIANT={instructions('ARG')[0].removeprefix('VARIANT=')}" in section("arguments")
    folders = re.findall(r"nnUNet_\w+=\S+", section("environment"))
    assert len(folders) == 3
    assert folders == re.findall(r"nnUNet_\w+=\S+", "\n".join(instructions("ENV")))


def test_the_image_has_the_nnunet_that_we_ask_for_and_needs_no_root() -> None:
    requirement = re.search(r'"nnunetv2([^"]+)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    assert requirement
    assert f'"nnunetv2{requirement[1]}"' in DOCKERFILE
    assert instructions("USER") == ["1000"]
    assert DOCKERFILE.rindex("\nUSER ") > DOCKERFILE.rindex("\nRUN ")


def test_what_the_definition_copies_is_all_that_an_installation_takes() -> None:
    copied = [line.split() for line in section("files").splitlines() if line.strip()]
    assert all(target == f"/opt/emim_nnunet/{source}" for source, target in copied)
    sources = {source for source, _ in copied}
    assert all((ROOT / source).exists() for source in sources)
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert sources == packages | {"pyproject.toml", "setup.py", "README.md", "LICENSE"}


def test_the_worked_example_is_found_and_every_command_goes_into_the_container(tmp_path: Path) -> None:
    """The script of the workflow, with ``echo`` for a container."""
    script = ROOT / ".ci" / "container_example"
    if not script.exists():
        pytest.skip("an sdist has no .ci")
    (tmp_path / "data" / "segmentations").mkdir(parents=True)
    (tmp_path / "data" / "segmentations" / "a.nii.gz").touch()
    result = subprocess.run([script, "echo", "RUN"], cwd=tmp_path, capture_output=True, text=True, check=True)
    ran = re.findall(r"^RUN (\S+)", result.stdout, re.MULTILINE)
    assert ran == ["python", "emim_convert", "emim_plan_and_preprocess", "python", "emim_train", "emim_predict"]
    assert result.stdout.endswith("data/segmentations/a.nii.gz\n")
    for code in re.findall(r"emim python -c '(.*?)'", PAGE, re.DOTALL):
        compile("\n".join(line.removeprefix("    ") for line in code.splitlines()), "page", "exec")
    shown = re.findall(r"^    emim (\w+)", PAGE, re.MULTILINE)
    assert shown == ran
    assert os.access(script, os.X_OK)
