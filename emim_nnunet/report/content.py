"""What a page of a report is made of, whatever kind of run it shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

LEVELS = ("ok", "note", "warning", "error", "insufficient")


@dataclass(frozen=True)
class Figure:
    """A picture.

    Attributes:
        source: ``data:`` address of an SVG, PNG or JPEG.
        alt: What it shows, for those who do not see it.
        caption: What to look for.
        wide: Whether it needs the whole width of the page.
    """

    source: str
    alt: str
    caption: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Table:
    """A table; all cells are text.

    Attributes:
        header: Names of the columns.
        rows: The cells, as many per row as there are columns.
        caption: What the table holds.
        marked: Places of rows that should be noticed.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    marked: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Flicker:
    """States of one picture that lie on each other: input, masked input, output and so on.

    Attributes:
        name: The case.
        rows: For each modality its name and the ``data:`` address of each state, in the order of ``states``.
        states: Names of the states.
    """

    name: str
    rows: Sequence[tuple[str, Sequence[str]]]
    states: Sequence[str]


@dataclass(frozen=True)
class CaseCard:
    """A case of the group page.

    Attributes:
        name: Its id.
        role: What it was for: learnt from, held out, with label or without.
        pictures: Name of each modality and ``data:`` address of a slice; an empty address where the case lacks it.
        aspect: Width of a picture over its height.
        facts: Names and values.
        remarks: Why it stands out; empty where it does not.
    """

    name: str
    role: str
    pictures: Sequence[tuple[str, str]]
    aspect: float
    facts: Sequence[tuple[str, str]]
    remarks: Sequence[str] = ()


@dataclass
class Section:
    """A part of the page under a heading.

    Attributes:
        title: The heading.
        text: Paragraphs.
        points: A list.
        figures: Pictures.
        tables: Tables.
        flickers: Pictures with states.
        cards: Cases.
        code: Text to copy: a name and the text.
        folded: Whether the section is closed until it is opened.
    """

    title: str
    text: list[str] = field(default_factory=list)
    points: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    flickers: list[Flicker] = field(default_factory=list)
    cards: list[CaseCard] = field(default_factory=list)
    code: list[tuple[str, str]] = field(default_factory=list)
    folded: bool = False

    def is_empty(self) -> bool:
        """Whether nothing stands under the heading."""
        parts = (self.text, self.points, self.figures, self.tables, self.flickers, self.cards, self.code)
        return not any(parts)


@dataclass
class Page:
    """The part of a report that shows one run.

    Attributes:
        kind: Such as ``Pretraining``.
        name: Which run it is.
        level: One of :data:`LEVELS`; empty where nothing is judged.
        verdict: One sentence.
        reasons: Why.
        facts: Names and values of what comes first.
        sections: The rest.
        problems: What went wrong in the run, or was skipped.
        absent: What a run of this kind may leave and this one did not.
    """

    kind: str
    name: str
    level: str = ""
    verdict: str = ""
    reasons: list[str] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)

    def add(self, section: Section) -> None:
        """Add a section, unless it is empty."""
        if not section.is_empty():
            self.sections.append(section)
