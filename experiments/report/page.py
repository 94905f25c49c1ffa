"""A page of sections with tables, pictures and code; every text in it is escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from experiments.runs import write_text
from uara.figures.svg import Figure, svg_text


@dataclass(frozen=True)
class Table:
    """Cells as they are shown."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """Markup of a picture, and what it shows in words."""

    markup: Markup
    caption: str

    @classmethod
    def of(cls, figure: Figure, name: str, caption: str) -> Picture:
        """Take a figure as SVG; `name` is unique in the page."""
        return cls(Markup(svg_text(figure, name)), caption)

    @classmethod
    def from_png(cls, path: Path, caption: str) -> Picture:
        """Take a PNG file as data of the page."""
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        source = Markup('<img alt="" src="data:image/png;base64,{}">').format(data)
        return cls(source, caption)


@dataclass(frozen=True)
class Part:
    """What stands under one small heading."""

    title: str = ""
    table: Table | None = None
    pictures: Sequence[Picture] = ()
    is_wide: bool = False
    summary: str = ""
    code: str = ""


@dataclass(frozen=True)
class Section:
    """A heading of the page, a sentence and its parts."""

    anchor: str
    title: str
    text: str = ""
    parts: Sequence[Part] = field(default_factory=tuple)


def render(title: str, lines: Sequence[str], sections: Sequence[Section]) -> str:
    """Make the page; it needs no network and runs no script.

    Args:
        title: of the page.
        lines: where the numbers come from.
        sections: in order; those without parts are left out.
    """
    environment = Environment(
        loader=PackageLoader("experiments.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html.j2")
    shown = [section for section in sections if section.parts]
    return page.render(title=title, lines=lines, sections=shown) + "\n"


def write_page(path: Path, title: str, lines: Sequence[str], sections: Sequence[Section]) -> None:
    """Write the page whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render(title, lines, sections))
