"""What to cite: entries of BibTeX for the papers that the methods name, and the paragraph of a paper's methods section."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.resources import files

from emim_nnunet import __version__
from emim_nnunet.checkpoints.export import NNUNET_PAPER
from emim_nnunet.methods import papers_of

IDENTIFIER = re.compile(r"arXiv[ :]?(\d{4}\.\d{4,5})|doi:(\S+)", re.IGNORECASE)
ENTRY = re.compile(r"^@\w+\{(\w+),\n(?:.*\n)*?\}", re.MULTILINE)


def identifiers(papers: Iterable[str]) -> list[str]:
    """The arXiv numbers and DOIs that a list of papers names, as :func:`emim_nnunet.methods.papers_of` gives it."""
    found = [match[1] or match[2] for paper in papers for match in IDENTIFIER.finditer(paper)]
    return list(dict.fromkeys(found))


def entries() -> dict[str, tuple[str, str]]:
    """All entries of the bibliography: arXiv number or DOI -> key and text."""
    text = (files("emim_nnunet.report") / "references.bib").read_text("utf-8")
    found = {}
    for match in ENTRY.finditer(text):
        field = re.search(r"(?:eprint|doi) = \{([^}]+)\}", match[0])
        assert field is not None  # a test looks at the file
        found[field[1]] = (match[1], match[0])
    return found


def cited_for(method: str) -> list[tuple[str, str]]:
    """Key and BibTeX entry of what to cite for a method: its papers, nnU-Net, and this software.

    Args:
        method: Class name of the SSL method; another word adds no paper.
    """
    known = entries()
    cited = [known[name] for name in identifiers([*papers_of(method), NNUNET_PAPER]) if name in known]
    return [*cited, ("emimnnunet", SOFTWARE)]


SOFTWARE = f"""@software{{emimnnunet,
  title = {{emim\\_nnunet: self-supervised pretraining for multimodal MRI inside nnU-Net}},
  author = {{{{emim\\_nnunet developers}}}},
  version = {{{__version__}}},
  license = {{Apache-2.0}}
}}"""
