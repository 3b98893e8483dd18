"""The site of the pages: where their links lead, its navigation, and the build, which takes no warning."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from documentation import hooks

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTATION = ROOT / "documentation"


def test_links_of_a_page_lead_to_the_site() -> None:
    text = (
        "[a](../../README.md#use-it) ![b](../pictures/b.png) [c](../../benchmarks/c.md) [d](#d) [e](https://x.org/y.md)"
    )
    assert hooks.with_site_links(text, DOCUMENTATION / "how-to" / "page.md") == (
        "[a](../index.md#use-it) ![b](../pictures/b.png) [c](../benchmarks/c.md) [d](#d) [e](https://x.org/y.md)"
    )
    index = hooks.with_site_links("[a](documentation/tutorial.md) [b](CITATION.cff)", ROOT / "README.md")
    assert index == "[a](tutorial.md) [b](CITATION.cff)"
    assert hooks.with_site_links("[a](../README.md)", ROOT / "benchmarks" / "x.md") == "[a](../index.md)"


def test_what_a_page_links_is_part_of_the_site_and_what_that_links_too(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("[b](sub/b.md) [gone](gone.md) [itself](a.md) [web](https://example.org)\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.md").write_text("![c](../c.png)\n")
    (tmp_path / "c.png").touch()
    (tmp_path / "d.md").touch()
    assert hooks.linked([tmp_path / "a.md"]) == [tmp_path / "a.md", tmp_path / "sub" / "b.md", tmp_path / "c.png"]


def test_navigation_has_the_readmes_order_and_names_and_takes_in_new_pages() -> None:
    pages = [path.relative_to(DOCUMENTATION).as_posix() for path in DOCUMENTATION.rglob("*.md")]
    new = ["how-to/new.md", "other/new.md", "new.md", "api/masking.md", "benchmarks/real/new.md"]
    navigation = hooks.navigation(["index.md", *pages, *new])
    assert navigation[0] == {"Home": "index.md"}
    sections = {name: listed for entry in navigation[1:] for name, listed in entry.items()}
    assert list(sections)[:5] == ["Learn", "Do", "Look up", "Understand", "Measured"]
    assert sections["Learn"][0] == {"Your first pretraining": "tutorial.md"}
    assert "how-to/new.md" in sections["Do"]
    assert "benchmarks/real/new.md" in sections["Measured"]
    assert (sections["Other"], sections["API"]) == (["other/new.md"], [{"masking": "api/masking.md"}])
    assert "new.md" in sections["Project"]
    placed = [
        page
        for listed in sections.values()
        for item in listed
        for page in ([item] if isinstance(item, str) else item.values())
    ]
    assert {*pages, *new} <= set(placed)
    assert len(placed) == len(set(placed))


def test_every_importable_room_has_an_api_page() -> None:
    assert {"demo", "masking", "methods", "planners", "trainers"} <= set(hooks.modules())
    for name in hooks.modules():
        assert importlib.util.find_spec(f"emim_nnunet.{name}"), name
    assert "show_submodules: false" in hooks.api_page("masking")  # it says what it offers
    assert "show_submodules: true" in hooks.api_page("methods")


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs the extra 'docs'")
    pytest.importorskip("mkdocstrings", reason="needs the extra 'docs'")
    assert build(ROOT, tmp_path / "site") == []
    index = (tmp_path / "site" / "index.html").read_text("utf-8")
    assert "Self-supervised pretraining" in index
    assert not re.findall(r'(?:src|<link[^>]* href)="(?:https?:)?//[^"]+', index), "it fetches something from elsewhere"
    assert "hybrid_mask" in (tmp_path / "site" / "api" / "masking" / "index.html").read_text("utf-8")
    names = shutil.ignore_patterns(".*", "site", "tests", "demo")
    copy = Path(shutil.copytree(ROOT, tmp_path / "copy", ignore=names, symlinks=True))
    with (copy / "documentation" / "tutorial.md").open("a") as page:
        page.write("\n[x](../benchmarks/gone.md) [y](reference/settings.md#gone) [z](gone.md)\n")
    assert len(build(copy, tmp_path / "broken")) == 3


def build(sources: Path, site: Path) -> list[str]:
    """Build the site, not with ``-q``, which counts no warning; MkDocs' warnings, which must be why it fails if it does."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(site)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    process = subprocess.run(command, cwd=sources, env=environment, capture_output=True, text=True, check=False)
    warnings = re.findall(r"^WARNING.*", process.stderr, re.MULTILINE)
    assert (process.returncode != 0) == bool(warnings), process.stderr
    return warnings
