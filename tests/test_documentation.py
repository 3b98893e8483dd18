"""The pages: every link leads somewhere, and every trainer and command that ships is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "documentation").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")],
    key=lambda page: page.relative_to(ROOT).as_posix(),
)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: str) -> set[str]:
    """Anchors of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Links to files and headings that do not exist; addresses in the web are not looked at."""
    found = []
    for link in LINK.findall(page.read_text("utf-8")):
        path, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text("utf-8"))):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# `A` heading, two\n")
    page = tmp_path / "page.md"
    page.write_text("[a](other.md#a-heading-two) [b](other.md#b) ![c](c.png) [d](#e) [web](https://example.org/x)\n")
    assert broken_links(page) == ["other.md#b", "c.png", "#e"]


def test_every_trainer_and_command_has_its_row() -> None:
    reference = ROOT / "documentation" / "reference"
    listed = re.findall(r"^\| `(nnUNetTrainer\w+)` ", (reference / "trainers.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(path.stem for path in (ROOT / "trainers").glob("nnUNetTrainer*.py"))
    commands = (reference / "commands.md").read_text("utf-8")
    rows = "\n".join(line for line in commands.splitlines() if line.startswith("| `"))
    shipped = {f"emim_{path.stem}" for path in (ROOT / "emim_nnunet" / "cli").glob("[a-z]*.py")}
    assert set(re.findall(r"`(emim_\w+)`", rows)) == shipped
