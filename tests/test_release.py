"""What is said of a release in several places agrees, and an index can show the README."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from emim_nnunet import __version__
from emim_nnunet.checkpoints.export import NNUNET_PAPER
from emim_nnunet.methods import method_classes

ROOT = Path(__file__).resolve().parent.parent
ZENODO = ROOT / ".zenodo.json"
IDENTIFIER = re.compile(r"\b(?:\d{4}\.\d{5}|10\.\d{4}/[\w.-]+)")


def citation(key: str) -> str:
    """A plain value at the top of CITATION.cff."""
    found = re.search(rf'^{key}: "?(.*?)"?$', (ROOT / "CITATION.cff").read_text("utf-8"), re.MULTILINE)
    assert found, key
    return found[1]


def project(key: str) -> str:
    """A plain value of pyproject.toml."""
    found = re.search(rf"^{key} = (.*)$", (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert found, key
    return found[1].strip('"')


def test_version_title_licence_and_keywords_agree() -> None:
    zenodo = json.loads(ZENODO.read_text("utf-8"))
    assert citation("version") == zenodo["version"] == __version__
    assert re.search(rf"^## {re.escape(__version__)} - ", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert citation("title") == zenodo["title"]
    assert citation("license") == zenodo["license"] == project("license")
    assert citation("abstract") == project("description")
    assert citation("keywords").strip("[]").split(", ") == zenodo["keywords"] == json.loads(project("keywords"))


def test_every_paper_that_an_export_cites_can_be_cited_with_the_software() -> None:
    listed = set(IDENTIFIER.findall((ROOT / "CITATION.cff").read_text("utf-8")))
    cited = {
        found for text in [NNUNET_PAPER, *(m.paper for m in method_classes())] for found in IDENTIFIER.findall(text)
    }
    assert len(cited) >= 7
    assert cited <= listed
    related = json.loads(ZENODO.read_text("utf-8"))["related_identifiers"]
    assert {entry["identifier"].removeprefix("arXiv:") for entry in related} == listed


def setup_arguments(address: str) -> dict[str, Any]:
    """What setup.py says where the repository has that address, in a process of its own: setuptools replaces distutils."""
    program = (
        "import json, runpy, setuptools; said = {}; setuptools.setup = said.update; "
        "runpy.run_path('setup.py'); print(json.dumps({key: said[key] for key in ('long_description', 'project_urls')}))"
    )
    environment = os.environ | {"REPOSITORY_URL": address}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, check=True)
    return json.loads(done.stdout)


def test_the_readme_of_a_release_has_addresses() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    said = setup_arguments("")
    assert (said["long_description"], said["project_urls"]) == (text, {})
    said = setup_arguments("https://example.org/us/it")
    assert said["project_urls"] == {"Repository": "https://example.org/us/it"}
    shown = said["long_description"]
    assert "](https://example.org/us/it/raw/HEAD/documentation/pictures/reconstruction.png)" in shown
    assert "](https://example.org/us/it/blob/HEAD/documentation/tutorial.md#a-small-run)" in shown
    assert "](https://github.com/MIC-DKFZ/nnUNet)" in shown
    assert re.findall(r"\]\((?!https://)", shown) == []
    assert re.sub(r"https://example.org/us/it/\w+/HEAD/", "", shown) == text
