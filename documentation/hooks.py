"""What MkDocs does not do itself for ``mkdocs.yml``: the pages stay where they are and stay readable in the repository.

- ``README.md`` is the index.
- A link that leaves this folder leads to a copy of its target: what is linked is part of the site, and so is what that links.
- The lists under the README's heading "Documentation" are the navigation: its order and its names. A page that they do not name
  comes last in the section of its folder, under its own heading.
- Every package and module of the library gets a page of its docstrings.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)")
SECTION = re.compile(r"^- \*\*(.+?)\*\*:(.*(?:\n  .*)*)", re.MULTILINE)
NAMED_LINK = re.compile(r"\[([^\]]+)\]\(([^)\s#]+)\)")
NO_API_PAGE = ("cli", "nnunet_plugin")  # commands have a page; what nnU-Net finds is made of the trainers


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside the folder, and say where every page stands."""
    from mkdocs.structure.files import File

    pages = [ROOT / "documentation" / file.src_uri for file in files.documentation_pages()]
    for path in linked([*pages, ROOT / "README.md"]):
        if site_path(path) not in files.src_uris:
            files.append(File.generated(config, site_path(path), abs_src_path=str(path)))
    for name in modules():
        files.append(File.generated(config, f"api/{name}.md", content=api_page(name)))
    config.nav = navigation([file.src_uri for file in files.documentation_pages()])
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Lead the links of a page to where their targets lie in the site."""
    if page.file.src_uri == "index.md":
        page.meta["hide"] = ["navigation"]  # it has nothing beside it
    source = page.file.abs_src_path
    return markdown if source is None else with_site_links(markdown, Path(source))


def with_site_links(markdown: str, source: Path) -> str:
    """The text of a page with its links as they are in the site.

    Args:
        markdown: The text.
        source: File in the repository that the text is of.
    """
    here = os.path.dirname(site_path(source))

    def there(match: re.Match[str]) -> str:
        target = os.path.relpath(site_path(target_of(match[1], source)), here or ".")
        return "](" + target.replace(os.sep, "/")

    return LINK.sub(there, markdown)


def linked(pages: list[Path]) -> list[Path]:
    """Those files, and all that they link, and so on; a link to nothing is left for MkDocs to complain of."""
    found = dict.fromkeys(pages)
    queue = list(pages)
    while queue:
        page = queue.pop()
        if page.suffix == ".md":
            new = [target_of(link, page) for link in LINK.findall(page.read_text("utf-8"))]
            new = [target for target in new if target.is_file() and target not in found]
            found.update(dict.fromkeys(new))
            queue += new
    return list(found)


def target_of(link: str, page: Path) -> Path:
    """The file that a relative link of a page means."""
    return Path(os.path.normpath(page.parent / link))


def site_path(path: Path) -> str:
    """Where a file of the repository lies in the site, as MkDocs writes it."""
    name = path.relative_to(ROOT).as_posix()
    return "index.md" if name == "README.md" else name.removeprefix("documentation/")


def modules() -> list[str]:
    """Packages and modules at the top of the library, without those that nobody imports."""
    entries = sorted((ROOT / "emim_nnunet").iterdir(), key=lambda entry: entry.name.lower())
    names = [entry.stem for entry in entries if entry.suffix == ".py" or (entry / "__init__.py").is_file()]
    return [name for name in names if not name.startswith("_") and name not in NO_API_PAGE]


def api_page(name: str) -> str:
    """The page of a package or module: what its ``__all__`` offers, or else what its modules define."""
    package = ROOT / "emim_nnunet" / name / "__init__.py"
    offers = package.is_file() and "\n__all__ = " in package.read_text("utf-8")
    options = f"    options: {{show_submodules: {str(not offers).lower()}}}\n"
    return f"---\ntitle: emim_nnunet.{name}\n---\n\n::: emim_nnunet.{name}\n{options}"


def navigation(pages: list[str]) -> list[Any]:
    """MkDocs' ``nav``: the README's lists, then what they do not name.

    Args:
        pages: All pages, as MkDocs writes their paths.
    """
    sections = {name: dict(entries) for name, entries in readme_sections()}
    owner = {os.path.dirname(page): name for name in reversed(sections) for page in sections[name]}
    named = {"index.md"}.union(*sections.values())
    for page in sorted(set(pages) - named):
        folder = page.partition("/")[0] if "/" in page else ""
        section = {"api": "API", "": "Project"}.get(folder) or owner.get(folder, folder.capitalize())
        sections.setdefault(section, {})[page] = page[4:-3] if section == "API" else None
    entries = {
        name: [page if title is None else {title: page} for page, title in listed.items()]
        for name, listed in sections.items()
    }
    return [{"Home": "index.md"}, *({name: listed} for name, listed in entries.items())]


def readme_sections() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Heading of each list under "Documentation" in the README, and its (page, name)s."""
    readme = ROOT / "README.md"
    text = readme.read_text("utf-8").partition("\n## Documentation\n")[2].partition("\n## ")[0]
    for name, links in SECTION.findall(text):
        yield (
            name,
            [
                (site_path(target_of(link, readme)), label[0].upper() + label[1:])
                for label, link in NAMED_LINK.findall(links)
            ],
        )
